"""Processes that validate one key as fast as they can, and when each of their requests counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

HAMMER = """
import os, sys
from datetime import UTC, datetime, timedelta
from keysmith import Engine, QuotaExceededError, RateLimitedError, SqliteStore

path, log_path, seconds_ahead, limiter = sys.argv[1:]
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ahead = timedelta(seconds=float(seconds_ahead))

class Clock:
    def __call__(self):
        self.said = datetime.now(UTC) + ahead
        return self.said

def us(moment):
    return round(moment.timestamp() * 1_000_000)

clock = Clock()
engine = Engine(SqliteStore(path), clock=clock, rate_limiter=limiter or None)
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

Grant = tuple[int, int, int]
"""Before it, when it counted by the engine's clock, and after it, in microseconds."""


class Hammer:
    """A process that validates as fast as it can, until the quota is used up."""

    def __init__(self, path: Path, log: Path, ahead: float, limiter: str) -> None:
        self._log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(path), str(log), str(ahead), limiter],
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

    def grants(self) -> list[Grant]:
        """What it was granted so far."""
        if not self._log.exists():
            return []
        lines = self._log.read_text().splitlines(keepends=True)
        return [_grant(line) for line in lines if line.endswith("\n")]


def _grant(line: str) -> Grant:
    before, counted, after = map(int, line.split())
    return before, counted, after


@contextmanager
def hammers(path: Path, folder: Path, count: int, *, limiter: str = "") -> Iterator[list[Hammer]]:
    """So many of them, ready to go; `limiter` is the URI of one, if it is not the default."""
    # It is noon for them, so that no run meets the end of a day.
    now = datetime.now(UTC)
    ahead = (now.replace(hour=12, minute=0, second=0) - now).total_seconds()
    with ExitStack() as stack:
        started = [Hammer(path, folder / f"log-{n}", ahead, limiter) for n in range(count)]
        for hammer in started:
            stack.callback(hammer.process.communicate)
            stack.callback(hammer.process.kill)
        for hammer in started:
            hammer.wait_until_ready()
        yield started


def most_counted(grants: list[Grant], window: int) -> int:
    """The most grants in any stretch as long as the window, both ends included, as was counted."""
    counted = sorted(at for _, at, _ in grants)
    return max(sum(start <= at <= start + window for at in counted) for start in counted)


def most_seen(grants: list[Grant], window: int) -> int:
    """The most grants that certainly came within a stretch as long as the window.

    Certainly: the first moment at which any of them can have been counted, and the last, lie no
    further apart.
    """
    return max(
        sum(start <= before and after <= start + window for before, _, after in grants)
        for start, _, _ in grants
    )
