"""Limits among real processes, of which some are killed: never more than was allowed, in all."""

from __future__ import annotations

import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keysmith import Engine, KeyCreate, PolicyCreate, SqliteStore
from keysmith.engine import limits

PROCESSES = 4
LIMIT = 100
QUOTA = 1000

HAMMER = """
import os, sys, time
from datetime import UTC, datetime, timedelta
from keysmith import Engine, QuotaExceededError, RateLimitedError, SqliteStore

path, log, ahead = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), \
timedelta(seconds=float(sys.argv[3]))

class Clock:
    def __call__(self):
        self.said = datetime.now(UTC) + ahead
        return self.said

def us(moment):
    return round(moment.timestamp() * 1_000_000)

clock = Clock()
engine = Engine(SqliteStore(path), clock=clock)
print("ready", flush=True)
raw_key = sys.stdin.readline().strip()
while True:
    before = clock()
    try:
        engine.validate_key(raw_key)
    except RateLimitedError:
        continue
    except QuotaExceededError:
        break
    counted = clock.said
    os.write(log, f"{us(before)} {us(counted)} {us(clock())}\\n".encode())
os._exit(0)
"""


class Hammer:
    """A process that validates as fast as it can, and notes when each of its requests counted."""

    def __init__(self, path: Path, log: Path, ahead: float) -> None:
        self._log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(path), str(log), str(ahead)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self, raw_key: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{raw_key}\n")
        self.process.stdin.flush()

    def grants(self) -> list[tuple[int, int, int]]:
        """Of each grant: before it, when it counted, and after it, in microseconds."""
        if not self._log.exists():
            return []
        lines = self._log.read_text().splitlines(keepends=True)
        return [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]


@contextmanager
def hammers(path: Path, count: int, folder: Path) -> Iterator[list[Hammer]]:
    # It is noon for them, so that no run meets the end of a day.
    now = datetime.now(UTC)
    ahead = (now.replace(hour=12, minute=0, second=0) - now).total_seconds()
    with ExitStack() as stack:
        started = [Hammer(path, folder / f"log-{number}", ahead) for number in range(count)]
        for hammer in started:
            stack.callback(hammer.process.communicate)
            stack.callback(hammer.process.kill)
        for hammer in started:
            hammer.wait_until_ready()
        yield started


def most_in_a_window(grants: list[tuple[int, int, int]], window: int) -> tuple[int, int]:
    """The most grants in any stretch as long as the window, both of its ends included.

    By the time that the limiter went by, and as seen from outside: where even the first moment at
    which the first of them can have been, and the last of the last, lie no further apart.
    """
    counted = sorted(at for _, at, _ in grants)
    by_limiter = max(
        sum(start <= at <= start + window for at in counted[number : number + 2 * LIMIT])
        for number, start in enumerate(counted)
    )
    spans = sorted((before, after) for before, _, after in grants)
    from_outside = max(
        sum(after <= start + window for _, after in spans[number : number + 2 * LIMIT])
        for number, (start, _) in enumerate(spans)
    )
    return by_limiter, from_outside


@pytest.mark.parametrize("killed", [False, True], ids=["", "one is killed"])
@pytest.mark.parametrize(
    "window",
    [
        pytest.param(timedelta(milliseconds=100), id="brief"),
        pytest.param(timedelta(seconds=1), id="full", marks=pytest.mark.slow),
    ],
)
def test_all_processes_together_get_what_the_policy_allows(
    tmp_path: Path, window: timedelta, killed: bool
) -> None:
    path = tmp_path / "keys.db"
    with Engine(SqliteStore(path)) as engine, hammers_of(engine, path, tmp_path) as started:
        policy = engine.create_policy(
            PolicyCreate(name="p", rate_limit=LIMIT, rate_limit_window=window, daily_quota=QUOTA)
        )
        created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
        *working, spare = started
        for hammer in working:
            hammer.go(created.raw_key)
        if killed:
            victim = working[0]
            while len(victim.grants()) < 20:
                time.sleep(0.002)
            victim.process.kill()
            spare.go(created.raw_key)
            working = [*working[1:], spare]
        for hammer in working:
            assert hammer.process.wait(60) == 0

        grants = [grant for hammer in started for grant in hammer.grants()]
        lost = QUOTA - len(grants)
        assert lost in ({0, 1} if killed else {0}), "a kill loses the request under way at most"
        assert max(most_in_a_window(grants, window // timedelta(microseconds=1))) <= LIMIT
        day = limits._DAY + limits._COUNT
        assert engine.store.counters.update(created.key.id, lambda cells: cells[day]) == QUOTA


@contextmanager
def hammers_of(engine: Engine, path: Path, folder: Path) -> Iterator[list[Hammer]]:
    engine.store.migrate()
    with hammers(path, PROCESSES + 1, folder) as started:
        yield started


CLOCKS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from keysmith.stores.counters import FileCounters

def note(cells):
    now = datetime.now(UTC)
    us = round((now.timestamp() - 1_700_000_000) * 1_000_000)
    cells[0] += us < cells[1]
    cells[1] = us
    cells[2] += 1

counters = FileCounters(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5000):
    counters.update("clock", note)
"""


def test_time_read_while_nobody_else_counts_does_not_step_back(tmp_path: Path) -> None:
    from keysmith.stores.counters import FileCounters

    path = tmp_path / "keys.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLOCKS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("\n", timeout=60)

    def read(cells: array[int]) -> tuple[int, int]:
        return cells[0], cells[2]

    assert FileCounters(path).update("clock", read) == (0, PROCESSES * 5000)
