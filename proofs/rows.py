"""Many rows of usage, written past the engine: fast, and as the engine would have left them."""

from __future__ import annotations

import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from keysmith.ids import IdPrefix, new_id
from keysmith.models import Period
from keysmith.stores.sketch import LatencySketch, bin_of

CHUNK = 100_000
LATENCIES = [round(random.Random(1).lognormvariate(3, 1), 3) for _ in range(10_007)]

RECORD = """
    INSERT INTO keysmith_usage (id, key_id, tenant_id, endpoint, method, status_code, ip_address,
        user_agent, latency_ms, metadata, created_at)
    VALUES (?, ?, 'default', '/users/{id}', 'GET', 200, '', '', ?, '{}', ?)
"""
AGGREGATE = """
    INSERT INTO keysmith_usage_agg (key_id, period, period_start, tenant_id, request_count,
        error_count, total_latency, p50_latency, p99_latency, latency_sketch)
    VALUES (?, ?, ?, 'default', ?, 0, ?, ?, ?, ?)
"""


def add_usage(path: Path, key_ids: list[str], count: int, start: datetime, over: timedelta) -> None:
    """Adds so many records, spread evenly over keys and time, with their days and months."""
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for first in range(0, count, CHUNK):
            connection.execute("BEGIN IMMEDIATE")
            rows = _records(key_ids, range(first, min(first + CHUNK, count)), count, start, over)
            connection.executemany(RECORD, _counted(rows, sums))
            connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(AGGREGATE, map(_aggregate, sums, sums.values()))
        connection.execute("COMMIT")


Row = tuple[str, str, float, str]


def _records(
    key_ids: list[str], numbers: range, count: int, start: datetime, over: timedelta
) -> Iterator[tuple[Row, datetime]]:
    step = over / count
    for number in numbers:
        at = start + number * step
        yield (
            (
                new_id(IdPrefix.USAGE, at),
                key_ids[number % len(key_ids)],
                LATENCIES[number % len(LATENCIES)],
                _stored(at),
            ),
            at,
        )


def _counted(
    rows: Iterator[tuple[Row, datetime]], sums: dict[tuple[str, str, str], list[float]]
) -> Iterator[Row]:
    for row, at in rows:
        for period in Period:
            sums[row[1], period.value, _stored(period.start(at))].append(row[2])
        yield row


def _aggregate(identity: tuple[str, str, str], latencies: list[float]) -> tuple[object, ...]:
    sketch = LatencySketch()
    sketch.add([bin_of(latency) for latency in latencies])
    p50, p99 = sketch.quantiles(0.5, 0.99)
    return (*identity, len(latencies), sum(latencies), p50, p99, sketch.to_bytes())


def _stored(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")
