"""The bare things: what the same work costs without any library. Standard library only.

A connection is as the driver gives it. One that writes also keeps to foreign keys, as Keysmith's
do, and to the `synchronous` that the row of the table names.
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Timed, drawn, each

USAGE_BATCH = 1_000
"""Rows in one transaction, as many as Keysmith's writer takes."""

_SKETCH_BYTES = 500
"""What the latencies of a service that answers within 1 to 10 ms take up."""

_FIRST_NEW = 10**12
"""Numbers below are those of the keys that are there."""

_LOOKUP = "SELECT * FROM keysmith_keys WHERE key_hash = ?"
_LOOKUP_WITH_SCOPES = """
    SELECT *, (
        SELECT json_group_array(name) FROM keysmith_key_scopes
        JOIN keysmith_scopes ON keysmith_scopes.id = scope_id WHERE key_id = keysmith_keys.id
    ) FROM keysmith_keys WHERE key_hash = ?
"""


def lookup(database: Path, hashes: Sequence[str]) -> Timed:
    """One key by its hash, every column."""
    return _look_up(database, hashes, _LOOKUP)


def lookup_with_scopes(database: Path, hashes: Sequence[str]) -> Timed:
    """The same, with the names of its scopes in the same statement."""
    return _look_up(database, hashes, _LOOKUP_WITH_SCOPES)


def _look_up(database: Path, hashes: Sequence[str], statement: str) -> Timed:
    cursor = sqlite3.connect(database, isolation_level=None).cursor()

    def one(parameters: tuple[str]) -> None:
        if cursor.execute(statement, parameters).fetchone() is None:
            raise LookupError("There is no such key.")

    return Timed(drawn([(key_hash,) for key_hash in hashes]), each(one))


def insert_key(database: Path) -> Timed:
    """A key, with a commit of its own that reaches the disk."""
    connection = _writer(database, "FULL")
    template = row_of(connection, "keysmith_keys")
    statement = insertion("keysmith_keys", template)
    numbers = itertools.count(_FIRST_NEW)

    def fresh(count: int) -> list[tuple[Any, ...]]:
        return [
            tuple({**template, "id": new_id("akey", number), **_secret(number)}.values())
            for number in itertools.islice(numbers, count)
        ]

    return Timed(fresh, each(lambda row: connection.execute(statement, row)))


def _secret(number: int) -> dict[str, str]:
    """What is stored of a secret: as random as it is, and so all over the indexes."""
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    return {"key_hash": digest, "hint": digest[:4]}


def insert_usage(database: Path, key_ids: Sequence[str], *, aggregates: bool = False) -> Timed:
    """Usage, in transactions of `USAGE_BATCH` rows, `synchronous` NORMAL.

    With `aggregates`, a day and a month of each key are written with each transaction, too. What is
    in them has not to be worked out.
    """
    connection = _writer(database, "NORMAL")
    added = row_of(connection, "keysmith_usage_agg") | {"latency_sketch": bytes(_SKETCH_BYTES)}
    sums = [
        tuple({**added, "key_id": key_id, "period": period}.values())
        for key_id in (key_ids if aggregates else ())
        for period in ("daily", "monthly")
    ]
    add_up = f"""
        {insertion("keysmith_usage_agg", added)} ON CONFLICT (key_id, period, period_start)
        DO UPDATE SET request_count = request_count + excluded.request_count,
            latency_sketch = excluded.latency_sketch
    """
    template = row_of(connection, "keysmith_usage")
    statement = insertion("keysmith_usage", template)
    numbers, keys = itertools.count(_FIRST_NEW), itertools.cycle(key_ids)

    def fresh(count: int) -> list[tuple[Any, ...]]:
        return [
            tuple({**template, "id": new_id("kusg", number), "key_id": next(keys)}.values())
            for number in itertools.islice(numbers, count)
        ]

    def insert(rows: list[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), USAGE_BATCH):
            connection.execute("BEGIN")
            connection.executemany(statement, rows[start : start + USAGE_BATCH])
            connection.executemany(add_up, sums)
            connection.execute("COMMIT")

    return Timed(fresh, insert)


def meter(database: Path) -> Callable[[], None]:
    """Notes a request with each call; a thread inserts the rows once a second."""
    connection = _writer(database, "NORMAL")
    template = row_of(connection, "keysmith_usage")
    statement = insertion("keysmith_usage", template)
    numbers, waiting = itertools.count(_FIRST_NEW), list[tuple[Any, ...]]()

    def note() -> None:
        waiting.append((new_id("kusg", next(numbers)), *list(template.values())[1:]))

    def write() -> None:
        while True:
            time.sleep(1)
            count = len(waiting)
            connection.execute("BEGIN")
            connection.executemany(statement, waiting[:count])
            connection.execute("COMMIT")
            del waiting[:count]

    threading.Thread(target=write, daemon=True).start()
    return note


def new_id(prefix: str, number: int) -> str:
    """An ID in Keysmith's form, sorting after all that were given out in earnest."""
    return f"{prefix}_7{number:025d}"


def row_of(connection: sqlite3.Connection, table: str, condition: str = "TRUE") -> dict[str, Any]:
    """Some row of a table, by column."""
    cursor = connection.execute(f"SELECT * FROM {table} WHERE {condition} LIMIT 1")
    return dict(zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True))


def insertion(table: str, row: dict[str, Any]) -> str:
    """The statement that inserts such a row."""
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"


def _writer(database: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection
