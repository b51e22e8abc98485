"""Killed at any moment: what was acknowledged is there, and sums agree with records."""

from __future__ import annotations

import multiprocessing
import random
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate

START = datetime(2024, 1, 31, 20, tzinfo=UTC)

RECORDS = """
    SELECT key_id, 'daily', substr(created_at, 1, 10), count(*), sum(latency_ms)
    FROM keysmith_usage GROUP BY key_id, substr(created_at, 1, 10)
    UNION ALL
    SELECT key_id, 'monthly', substr(created_at, 1, 7) || '-01', count(*), sum(latency_ms)
    FROM keysmith_usage GROUP BY key_id, substr(created_at, 1, 7)
"""
SUMS = """
    SELECT key_id, period, substr(period_start, 1, 10), request_count, total_latency
    FROM keysmith_usage_agg
"""


def record(path: Path, key_ids: list[str], acknowledge: Connection) -> None:
    """Records until it is killed, and tells how much is in the store for sure."""
    engine = Engine(SqliteStore(path))
    recorded = 0
    acknowledge.send(0)
    while True:
        for _ in range(random.randrange(1, 700)):
            recorded += 1
            engine.record_usage(
                UsageCreate(
                    key_id=random.choice(key_ids),
                    endpoint="/",
                    method="GET",
                    status_code=200,
                    latency_ms=recorded % 1000,
                    created_at=START + timedelta(seconds=recorded * 7 % 28_800),
                )
            )
        if random.random() < 0.5:
            engine.flush()
            acknowledge.send(recorded)


def kill_while_recording(path: Path, key_ids: list[str], seconds: float) -> int:
    """Kills a process that records, so long after it has begun; gives what it acknowledged."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keysmith", __name__])
    acknowledged, acknowledge = context.Pipe(duplex=False)
    process = context.Process(target=record, args=(path, key_ids, acknowledge))
    process.start()
    acknowledge.close()
    told: int = acknowledged.recv()
    process.join(seconds)
    process.kill()
    process.join()
    try:
        while True:
            told = acknowledged.recv()
    except EOFError:
        return told
    finally:
        acknowledged.close()
        process.close()


def assert_nothing_acknowledged_is_lost(folder: Path, times: int, seed: int) -> int:
    """Gives how many records there are in the end."""
    path, chance, count = folder / "keys.db", random.Random(seed), 0
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        key_ids = [engine.create_key(KeyCreate(name=str(n))).key.id for n in range(3)]
    for _ in range(times):
        acknowledged = count + kill_while_recording(path, key_ids, chance.uniform(0, 0.06))
        with SqliteStore(path) as store, store.db.connect() as connection:
            count = store.usages.count()
            assert count >= acknowledged
            sums = connection.exec_driver_sql(SUMS).all()
            assert sorted(sums) == sorted(connection.exec_driver_sql(RECORDS).all())
            assert connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
    return count


def test_killed_at_any_moment(tmp_path: Path) -> None:
    assert assert_nothing_acknowledged_is_lost(tmp_path, times=20, seed=1) > 0
