"""Limits among real processes, of which some are killed: never more than was allowed, in all."""

from __future__ import annotations

import subprocess
import sys
import time
from array import array
from datetime import timedelta
from pathlib import Path

import pytest

from keysmith import Engine, KeyCreate, PolicyCreate, SqliteStore
from keysmith.engine import limits
from keysmith.stores.counters import FileCounters
from tests.hammering import hammers, most_counted, most_seen

PROCESSES = 4
LIMIT = 100
QUOTA = 1000


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
    with Engine(SqliteStore(path)) as engine, hammers(path, tmp_path, PROCESSES + 1) as started:
        engine.store.migrate()
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
        length = window // timedelta(microseconds=1)
        assert most_counted(grants, length) <= LIMIT
        assert most_seen(grants, length) <= LIMIT
        day = limits._DAY + limits._COUNT
        assert engine.store.counters.update(created.key.id, lambda cells: cells[day]) == QUOTA


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
for _ in range(2000):
    counters.update("clock", note)
"""


def test_time_read_while_nobody_else_counts_does_not_step_back(tmp_path: Path) -> None:
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

    assert FileCounters(path).update("clock", read) == (0, PROCESSES * 2000)
