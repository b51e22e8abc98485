"""How long others wait to write while one process writes all it can: `make purge`.

The others are another process with an engine of its own. Milliseconds differ from machine to
machine, and with what else it does: compare with the first line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from proofs.rows import add_usage

ROWS = 200_000
SECONDS = 4.0

WRITER = """
import sys, time
from keysmith import Engine, KeyUpdate, SqliteStore
path, key_id, seconds = sys.argv[1:]
engine = Engine(SqliteStore(path))
print("ready", flush=True)
while sys.stdin.readline():
    waits, end = [], time.monotonic() + float(seconds)
    while time.monotonic() < end:
        began = time.perf_counter()
        engine.update_key(key_id, KeyUpdate(description=str(began)))
        waits.append(1000 * (time.perf_counter() - began))
        time.sleep(0.002)
    waits.sort()
    median, slow = (waits[int(len(waits) * part)] for part in (0.5, 0.99))
    print(f"median {median:.1f} ms, p99 {slow:.1f} ms, longest {waits[-1]:.1f} ms", flush=True)
"""


class Writer:
    """The other process."""

    def __init__(self, path: Path, key_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), key_id, str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def begin(self) -> None:
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    """Three lines: alone, during a purge, and during recording without a pause."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.db"
        with Engine(SqliteStore(path)) as engine:
            engine.store.migrate()
            key_id = engine.create_key(KeyCreate(name="production")).key.id
            year = datetime(2024, 1, 1, tzinfo=UTC)
            add_usage(path, [key_id], ROWS, year, timedelta(days=365))
            writer = Writer(path, key_id)
            writer.begin()
            print("alone:    ", writer.answer())
            writer.begin()
            began = time.perf_counter()
            purged = engine.purge_usage(year + timedelta(days=365))
            took = time.perf_counter() - began
            print("purging:  ", writer.answer(), f"({purged / took:,.0f} records/s)")
            writer.begin()
            recorded = record(engine, key_id)
            print("recording:", writer.answer(), f"({recorded / SECONDS:,.0f} records/s)")
            writer.end()


def record(engine: Engine, key_id: str) -> int:
    """Records as fast as it can; tells how much."""
    usage = UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200, latency_ms=7.0)
    recorded, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        for _ in range(100):
            engine.record_usage(usage)
        recorded += 100
    return recorded


if __name__ == "__main__":
    main()
