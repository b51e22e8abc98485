"""Threads that validate and record, while a process rotates their keys: `--only soak`."""

from __future__ import annotations

import gc
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
    "A rotation in one process counts from the next validation on in every thread of another, no "
    "count of usage is lost meanwhile, and memory does not grow."
)
BROKEN = (
    "an answer from memory was given without a look at the version of the database; each "
    "validation kept 500 bytes"
)

SECONDS, QUICK = 10.0, 0.5
STATM = Path("/proc/self/statm")
THREADS = 16
KEYS = 20
MOST_GROWTH, NOISE = 100, 6 * 2**20
"""Bytes for each validation, and for all together: the allocator keeps some, now more, now less."""


@dataclass
class Soaked:
    """What came of it."""

    validated: int
    rotated: int
    growth: int
    """Bytes that the process had more of at the end than after a third of the time."""
    validated_meanwhile: int


class Soak:
    """Engine, keys and threads of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = Engine(SqliteStore(path), cache_size=50)
        self._engine.store.migrate()
        created = [self._engine.create_key(KeyCreate(name=str(n))) for n in range(KEYS)]
        self._key_ids = [each.key.id for each in created]
        renewed = [self._engine.rotate_key(key_id) for key_id in self._key_ids]
        self._secrets = [
            (old.raw_key, new.raw_key) for old, new in zip(created, renewed, strict=True)
        ]
        """Of each key the one that is outgoing, and the one that has replaced it."""
        self._counts = [0] * KEYS
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    def run(self, seconds: float) -> Soaked:
        with self._engine, Elsewhere(self._path) as elsewhere:
            elsewhere("migrate")  # it has begun
            rotated = self._run(elsewhere, seconds / 3)
            memory, validated = _memory(), sum(self._counts)
            rotated += self._run(elsewhere, seconds * 2 / 3)
            growth, total = _memory() - memory, sum(self._counts)
        return Soaked(total, rotated, growth, total - validated)

    def _run(self, elsewhere: Elsewhere, seconds: float) -> int:
        over = threading.Event()
        threads = [threading.Thread(target=self._use, args=(over,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            rotated = self._rotate(elsewhere, seconds)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert self._failures == []
        self._assert_nothing_lost()
        return rotated

    def _use(self, over: threading.Event) -> None:
        counts = [0] * KEYS
        try:
            while not over.is_set():
                number = random.randrange(KEYS)
                outgoing, current = self._secrets[number]
                raw_key = random.choice((outgoing, current))
                result = self._engine.validate_key(raw_key)
                assert result.key.id == self._key_ids[number]
                assert result.rotated or raw_key == current
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
            _, old = self._secrets[number]
            new = elsewhere("renew", self._key_ids[number])
            self._secrets[number] = old, new
            assert not self._engine.validate_key(new).rotated
            assert self._engine.validate_key(old).rotated
            rotated += 1
        return rotated

    def _assert_nothing_lost(self) -> None:
        self._engine.flush()
        for key_id, count in zip(self._key_ids, self._counts, strict=True):
            assert self._engine.store.usages.count(key_id=key_id) == count
            days = self._engine.aggregate_usage(key_id=key_id)
            assert sum(day.request_count for day in days) == count
        assert self._engine.dropped_usage == 0


def _memory() -> int:
    """What the process has of it, in bytes; where nobody tells, what it had at most."""
    gc.collect()
    try:
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def trial(quick: bool = False) -> str:
    """Tells how much was validated and rotated."""
    seconds = QUICK if quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        soaked = Soak(Path(folder) / "keys.db").run(seconds)
    each = max(0, soaked.growth) / soaked.validated_meanwhile
    assert soaked.growth < NOISE + MOST_GROWTH * soaked.validated_meanwhile, (
        f"{each:.0f} bytes more for each validation"
    )
    return (
        f"{THREADS} threads, {seconds:g} s: {soaked.validated:,} validations, none lost; "
        f"{soaked.rotated:,} rotations in another process, each seen at once; {each:.0f} bytes "
        "more for each validation after the first third"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
