"""Eight processes of four threads that write and validate all they can: `--only contention`."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import Engine, KeyCreate, KeyUpdate, SqliteStore, UsageCreate
from proofs.kills import Killable

PROMISE = (
    "Processes and threads that write at once wait for one another: none fails, none is stuck, "
    "and no change gets lost."
)
BROKEN = "a writer asked for the lock once, and did not wait for another process"

PROCESSES, THREADS, SECONDS = 8, 4, 60.0
QUICK = (2, 2, 0.5)
STUCK = 30.0
"""Seconds after which a thread that has not ended is stuck."""


@dataclass
class Work:
    """What a thread has done."""

    waits: list[float] = field(default_factory=list)
    """Seconds that each write took."""
    validated: int = 0
    counted: int = 0
    """How often the counter that all share was raised."""
    failure: str = "it is stuck"


def work(path: Path, key_id: str, threads: int, seconds: float, tell: Connection) -> None:
    """Works for so long, and tells what came of it."""
    done = [Work() for _ in range(threads)]
    with Engine(SqliteStore(path)) as engine:
        end = time.monotonic() + seconds
        workers = [
            threading.Thread(target=_use, args=(engine, key_id, each, end), daemon=True)
            for each in done
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, end + STUCK - time.monotonic()))
    tell.send(done)


def _use(engine: Engine, shared: str, done: Work, end: float) -> None:
    try:
        created = engine.create_key(KeyCreate(name="n"))
        raw_key, key_id = created.raw_key, created.key.id
        while time.monotonic() < end:
            began = time.perf_counter()
            match random.randrange(4):
                case 0:
                    _count_up(engine, shared)
                    done.counted += 1
                case 1:
                    raw_key = engine.rotate_key(key_id).raw_key
                case 2:
                    engine.update_key(key_id, KeyUpdate(description=str(began)))
                case 3:
                    other = engine.create_key(KeyCreate(name="another")).key.id
                    engine.delete_key(other)
            done.waits.append(time.perf_counter() - began)
            for _ in range(10):
                assert engine.validate_key(raw_key).key.id == key_id
                engine.record_usage(
                    UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)
                )
                done.validated += 1
    except BaseException as error:  # noqa: BLE001  whatever it is, nothing may reach a caller
        done.failure = f"{type(error).__name__}: {error}"
    else:
        done.failure = ""


def _count_up(engine: Engine, key_id: str) -> None:
    with engine.store.transaction():
        count = engine.get_key(key_id).meta.get("count", 0)
        engine.update_key(key_id, KeyUpdate(meta={"count": int(str(count)) + 1}))


def trial(quick: bool = False) -> str:
    """Tells how many writes there were, and how long they took."""
    processes, threads, seconds = QUICK if quick else (PROCESSES, THREADS, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.db"
        with Engine(SqliteStore(path)) as engine:
            engine.store.migrate()
            shared = engine.create_key(KeyCreate(name="counter")).key.id
            working = [Killable(work, path, shared, threads, seconds) for _ in range(processes)]
            for each in working:
                each.wait()
            told = [found for each in working for found in each.kill(STUCK)]
            assert len(told) == processes, "a process ended without a word"
            done = [each for of_process in told for each in of_process]
            failures = [each.failure for each in done if each.failure]
            assert not failures, f"{len(failures)} threads failed, such as: {failures[0]}"
            counted = engine.get_key(shared).meta.get("count", 0)
            assert counted == sum(each.counted for each in done), "a change was lost"
            validated = sum(each.validated for each in done)
            assert engine.store.usages.count() == validated, "usage was lost"
    waits = sorted(wait for each in done for wait in each.waits)
    p50, p99 = (1000 * waits[int(len(waits) * part)] for part in (0.5, 0.99))
    return (
        f"{processes} processes × {threads} threads, {seconds:g} s: {len(waits):,} changes beside "
        f"{validated:,} validations, none failed; a change took {p50:.0f} ms at p50, "
        f"{p99:.0f} ms at p99, {1000 * waits[-1]:.0f} ms at most"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
