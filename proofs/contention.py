"""Eight processes of four threads that write and validate all they can: `--only contention`."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import CreatedKey, Engine, KeyCreate, KeyUpdate, SqliteStore, UsageCreate
from keysmith.raw_keys import Hasher
from proofs.kills import Killable

PROMISE = (
    "Processes and threads that write at once wait for one another: none fails, none is stuck, "
    "and no change gets lost."
)
BROKEN = (
    "a writer asked for the lock once, and did not wait for another process; `delete_key` deleted "
    "nothing; `update_key` left a description as it was"
)

PROCESSES, THREADS, SECONDS = 8, 4, 60.0
QUICK = (2, 2, 0.5)
STUCK = 30.0
"""Seconds after which a thread that has not ended is stuck."""


@dataclass(frozen=True)
class Told:
    """What was last acknowledged of a key."""

    key_hash: str
    description: str = ""
    state: str = "active"
    rotations: int = 0


@dataclass
class Work:
    """What a thread has done."""

    waits: list[float] = field(default_factory=list)
    """Seconds that each write took."""
    validated: int = 0
    counted: int = 0
    """How often the counter that all share was raised."""
    keys: dict[str, Told] = field(default_factory=dict)
    """Those that it has made, and not deleted."""
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
        done.keys[key_id] = _told(created)
        while not done.waits or time.monotonic() < end:
            began = time.perf_counter()
            own = done.keys[key_id]
            match random.randrange(4):
                case 0:
                    _count_up(engine, shared)
                    done.counted += 1
                case 1:
                    raw_key = engine.rotate_key(key_id).raw_key
                    own = replace(own, key_hash=_hash(raw_key), rotations=own.rotations + 1)
                case 2:
                    engine.update_key(key_id, KeyUpdate(description=str(began)))
                    own = replace(own, description=str(began))
                case 3:
                    _make_another(engine, done.keys)
            done.keys[key_id] = own
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


def _make_another(engine: Engine, keys: dict[str, Told]) -> None:
    """Makes a key, and stops it in one way or the other."""
    created = engine.create_key(KeyCreate(name="another"))
    key_id = created.key.id
    match random.randrange(3):
        case 0:
            engine.delete_key(key_id)
        case 1:
            engine.revoke_key(key_id)
            keys[key_id] = replace(_told(created), state="revoked")
        case 2:
            engine.suspend_key(key_id)
            keys[key_id] = replace(_told(created), state="suspended")


def _count_up(engine: Engine, key_id: str) -> None:
    with engine.store.transaction():
        count = engine.get_key(key_id).meta.get("count", 0)
        engine.update_key(key_id, KeyUpdate(meta={"count": int(str(count)) + 1}))


def _told(created: CreatedKey) -> Told:
    return Told(_hash(created.raw_key))


def _hash(raw_key: str) -> str:
    return Hasher().hash(raw_key)


def _assert_nothing_lost(engine: Engine, counter: CreatedKey, done: list[Work]) -> None:
    counted = engine.get_key(counter.key.id).meta.get("count", 0)
    assert counted == sum(each.counted for each in done), "a change was lost"
    assert engine.store.usages.count() == sum(each.validated for each in done), "usage was lost"
    told = {counter.key.id: _told(counter)}
    for each in done:
        told |= each.keys
    rotations = Counter(rotation.key_id for rotation in engine.list_rotations())
    found = {
        key.id: Told(key.key_hash, key.description, key.state.value, rotations[key.id])
        for key in engine.list_keys()
    }
    different = found.items() ^ told.items()
    assert not different, f"not as it was acknowledged: {list(different)[:4]}"


def trial(quick: bool = False) -> str:
    """Tells how many writes there were, and how long they took."""
    processes, threads, seconds = QUICK if quick else (PROCESSES, THREADS, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.db"
        with Engine(SqliteStore(path)) as engine:
            engine.store.migrate()
            counter = engine.create_key(KeyCreate(name="counter"))
            working = [
                Killable(work, path, counter.key.id, threads, seconds) for _ in range(processes)
            ]
            for each in working:
                each.wait()
            told = [found for each in working for found in each.kill(STUCK)]
            assert len(told) == processes, "a process ended without a word"
            done = [each for of_process in told for each in of_process]
            failures = [each.failure for each in done if each.failure]
            assert not failures, f"{len(failures)} threads failed, such as: {failures[0]}"
            _assert_nothing_lost(engine, counter, done)
    validated = sum(each.validated for each in done)
    keys = sum(len(each.keys) for each in done)
    waits = sorted(wait for each in done for wait in each.waits)
    p50, p99 = (1000 * waits[int(len(waits) * part)] for part in (0.5, 0.99))
    return (
        f"{processes} processes × {threads} threads, {seconds:g} s: {len(waits):,} changes beside "
        f"{validated:,} validations, none failed, and all {keys:,} keys are as they should be; "
        f"a change took {p50:.0f} ms at p50, {p99:.0f} ms at p99, {1000 * waits[-1]:.0f} ms at most"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
