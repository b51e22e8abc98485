"""Limits among real processes, of which some are killed: never more than was allowed, in all."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from keysmith import Engine, KeyCreate, PolicyCreate, SqliteStore
from keysmith.engine import limits
from tests.hammering import Hammer, hammers, most_counted, most_seen

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
    with (
        Engine(SqliteStore(path)) as engine,
        hammers(path, tmp_path, PROCESSES + killed) as started,
    ):
        engine.store.migrate()
        policy = engine.create_policy(
            PolicyCreate(name="p", rate_limit=LIMIT, rate_limit_window=window, daily_quota=QUOTA)
        )
        created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
        for hammer in started[:PROCESSES]:
            hammer.go(created.raw_key)
        victim = first_to_have(20, started) if killed else None
        if victim is not None:
            victim.process.kill()
            started[-1].go(created.raw_key)
        for hammer in started:
            if hammer is not victim:
                assert hammer.process.wait(120) == 0

        grants = [grant for hammer in started for grant in hammer.grants()]
        lost = QUOTA - len(grants)
        assert lost in ({0, 1} if killed else {0}), "a kill loses the request under way at most"
        length = window // timedelta(microseconds=1)
        assert most_counted(grants, length) <= LIMIT
        assert most_seen(grants, length) <= LIMIT
        day = limits._DAY + limits._COUNT
        assert engine.store.counters.update(created.key.id, lambda cells: cells[day]) == QUOTA


def first_to_have(grants: int, started: list[Hammer]) -> Hammer:
    """Not one that was chosen before: the others may leave it none."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for hammer in started:
            if len(hammer.grants()) >= grants:
                return hammer
        time.sleep(0.002)
    raise AssertionError("nobody was granted so many")


CLOCKS = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from keysmith.stores.counters import FileCounters

def note(cells):
    us = round((datetime.now(UTC).timestamp() - 1_700_000_000) * 1_000_000)
    cells[0] += us < cells[1]
    cells[1] = us
    cells[2] += 1
    return cells[0], cells[2]

counters = FileCounters(Path(sys.argv[1]))
children = []
for _ in range(int(sys.argv[2])):
    children.append(os.fork())
    if not children[-1]:
        for _ in range(5000):
            counters.update("clock", note)
        os._exit(0)
for child in children:
    os.waitpid(child, 0)
print(*counters.update("clock", note))
"""


def test_time_read_while_nobody_else_counts_does_not_step_back(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CLOCKS, str(tmp_path / "keys.db"), str(PROCESSES)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["0", str(PROCESSES * 5000 + 1)]
