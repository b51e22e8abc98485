"""Five million records against five thousand: `make scale`.

Each figure is the time on the large database over that on the small one, in the same run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from keysmith import Engine, KeyCreate, KeyUpdate, SqliteStore, UsageCreate
from proofs.rows import add_usage

SMALL = 5_000
LARGE = 5_000_000
KEYS = 10
YEAR = datetime(2024, 1, 1, tzinfo=UTC)
LENGTH = timedelta(days=366)
MAY, JUNE = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)


class Scale:
    """A database with so many records, of ten keys in one year."""

    def __init__(self, folder: Path, count: int) -> None:
        path = folder / f"{count}.db"
        self._engine = Engine(SqliteStore(path))
        self._engine.store.migrate()
        created = [self._engine.create_key(KeyCreate(name=str(n))) for n in range(KEYS)]
        self._key_ids = [each.key.id for each in created]
        self._raw_keys = [each.raw_key for each in created]
        began = time.perf_counter()
        add_usage(path, self._key_ids, count, YEAR, LENGTH)
        print(f"{count:,} records built in {time.perf_counter() - began:.0f} s", flush=True)

    def works(self) -> dict[str, Callable[[], object]]:
        """What is timed."""
        engine, key_id = self._engine, self._key_ids[3]
        usages = engine.store.usages
        return {
            "aggregate_usage: the days of a month, one key": lambda: engine.aggregate_usage(
                key_id=key_id, since=MAY, until=JUNE
            ),
            "aggregate_usage: a month, all keys of a tenant": lambda: engine.aggregate_usage(
                tenant_id="default", period="monthly", since=MAY, until=JUNE
            ),
            "daily_count": lambda: usages.daily_count(key_id, date(2024, 5, 17)),
            "monthly_count": lambda: usages.monthly_count(key_id, date(2024, 5, 17)),
            "query_usage: the newest 100": lambda: engine.query_usage(key_id=key_id, limit=100),
            "validate_key, after a change": self._validate,
            "record_usage and flush, 100 records": self._record,
            "update_key": lambda: engine.update_key(
                key_id, KeyUpdate(description=str(time.perf_counter()))
            ),
        }

    def close(self) -> None:
        self._engine.close()

    def _validate(self) -> None:
        self._engine.store.keys.update_last_used(
            self._key_ids[0],
            self._engine._context.now(),  # noqa: SLF001
        )
        for raw_key in self._raw_keys:
            self._engine.validate_key(raw_key)

    def _record(self) -> None:
        for number in range(100):
            self._engine.record_usage(
                UsageCreate(
                    key_id=self._key_ids[number % KEYS],
                    endpoint="/",
                    method="GET",
                    status_code=200,
                    latency_ms=float(number),
                    created_at=MAY + timedelta(days=number % 30),
                )
            )
        self._engine.flush()


def best(work: Callable[[], object], times: int) -> float:
    """Seconds, at best."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """The number of records of the large one may be given as an argument."""
    large_count = int(sys.argv[1]) if len(sys.argv) > 1 else LARGE
    with tempfile.TemporaryDirectory() as folder:
        small, large = Scale(Path(folder), SMALL), Scale(Path(folder), large_count)
        for (name, little), much in zip(small.works().items(), large.works().values(), strict=True):
            on_small, on_large = best(little, 30), best(much, 30)
            print(
                f"{on_large / on_small:5.2f} x  {name}  "
                f"({1e6 * on_small:.0f} -> {1e6 * on_large:.0f} µs)",
                flush=True,
            )
        small.close()
        large.close()


if __name__ == "__main__":
    main()
