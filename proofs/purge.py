"""How long others wait to write while usage is purged: `make purge`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from keysmith import Engine, KeyCreate, KeyUpdate, SqliteStore
from proofs.rows import add_usage

ROWS = 150_000

WRITER = """
import sys, time
from keysmith import Engine, KeyUpdate, SqliteStore
engine = Engine(SqliteStore(sys.argv[1]))
print("ready", flush=True)
while sys.stdin.readline():
    waits = []
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        began = time.perf_counter()
        engine.update_key(sys.argv[2], KeyUpdate(description=str(began)))
        waits.append(time.perf_counter() - began)
        time.sleep(0.002)
    waits.sort()
    print(*(f"{1000 * waits[int(len(waits) * q)]:.1f}" for q in (0.5, 0.99)), f"{1000*waits[-1]:.1f}", flush=True)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "keys.db"
        with Engine(SqliteStore(path)) as engine:
            engine.store.migrate()
            key_id = engine.create_key(KeyCreate(name="production")).key.id
            add_usage(path, [key_id], ROWS, datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=365))
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), key_id, "3"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            writer.stdout.readline()

            def measure():
                writer.stdin.write("go\n")
                writer.stdin.flush()

            measure()
            print("alone", writer.stdout.readline().strip())
            measure()
            began = time.perf_counter()
            print(
                "purged",
                engine.purge_usage(datetime(2025, 1, 1, tzinfo=UTC)),
                time.perf_counter() - began,
            )
            print("during", writer.stdout.readline().strip())
            writer.communicate()


if __name__ == "__main__":
    main()
