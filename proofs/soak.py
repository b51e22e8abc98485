"""Threads that validate and record, while a process rotates their keys: `--only soak`."""

from __future__ import annotations

import random
import resource
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from tests.elsewhere import Elsewhere

PROMISE = (
    "A rotation in one process counts from the next validation on in all others, no count of usage "
    "is lost meanwhile, and memory does not grow."
)
BROKEN = "an answer from memory was given without a look at the version of the database"

SECONDS, QUICK = 10.0, 0.5
THREADS = 16
KEYS = 20
MOST_GROWTH = 50
"""MiB."""


@dataclass
class Soaked:
    """What came of it."""

    validated: int
    rotated: int
    growth: int
    """Bytes that the process had more of at the end than after a third of the time."""


class Soak:
    """Engine, keys and threads of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = Engine(SqliteStore(path), cache_size=50)
        self._engine.store.migrate()
        created = [self._engine.create_key(KeyCreate(name=str(n))) for n in range(KEYS)]
        self._key_ids = [each.key.id for each in created]
        self._raw_keys = [each.raw_key for each in created]
        self._counts = [0] * KEYS
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failures: list[BaseException] = []

    def run(self, seconds: float) -> Soaked:
        with self._engine:
            return self._run(seconds)

    def _run(self, seconds: float) -> Soaked:
        threads = [threading.Thread(target=self._use) for _ in range(THREADS)]
        with Elsewhere(self._path) as elsewhere:
            elsewhere("migrate")  # it has begun
            for thread in threads:
                thread.start()
            rotated = self._rotate(elsewhere, seconds / 3)
            before = _peak_memory()
            rotated += self._rotate(elsewhere, seconds * 2 / 3)
            growth = _peak_memory() - before
            self._over.set()
        for thread in threads:
            thread.join()
        assert self._failures == []
        self._assert_nothing_lost()
        return Soaked(sum(self._counts), rotated, growth)

    def _use(self) -> None:
        counts = [0] * KEYS
        try:
            while not self._over.is_set():
                number = random.randrange(KEYS)
                result = self._engine.validate_key(self._raw_keys[number])
                assert result.key.id == self._key_ids[number]
                self._engine.record_usage(
                    UsageCreate(key_id=result.key.id, endpoint="/", method="GET", status_code=200)
                )
                counts[number] += 1
        except BaseException as error:  # noqa: BLE001  whatever it is, it counts
            self._failures.append(error)
        with self._lock:
            self._counts = [sum(pair) for pair in zip(self._counts, counts, strict=True)]

    def _rotate(self, elsewhere: Elsewhere, seconds: float) -> int:
        rotated, end = 0, time.monotonic() + seconds
        while rotated == 0 or (time.monotonic() < end and not self._failures):
            number = random.randrange(KEYS)
            old = self._raw_keys[number]
            new = elsewhere("renew", self._key_ids[number])
            assert not self._engine.validate_key(new).rotated
            assert self._engine.validate_key(old).rotated
            self._raw_keys[number] = new
            rotated += 1
        return rotated

    def _assert_nothing_lost(self) -> None:
        self._engine.flush()
        for key_id, count in zip(self._key_ids, self._counts, strict=True):
            assert self._engine.store.usages.count(key_id=key_id) == count
            days = self._engine.aggregate_usage(key_id=key_id)
            assert sum(day.request_count for day in days) == count
        assert self._engine.dropped_usage == 0


def _peak_memory() -> int:
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def trial(quick: bool = False) -> str:
    """Tells how much was validated and rotated."""
    seconds = QUICK if quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        soaked = Soak(Path(folder) / "keys.db").run(seconds)
    growth = soaked.growth / 2**20
    assert growth < MOST_GROWTH, f"{growth:.0f} MiB more than after a third of the time"
    return (
        f"{THREADS} threads, {seconds:g} s: {soaked.validated:,} validations, none lost; "
        f"{soaked.rotated:,} rotations in another process, each seen at once; {growth:.1f} MiB "
        "more at the end than after a third of the time"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
