"""Databases full of keys: the real schema, filled through the bare driver, kept for next time."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.bare import insertion, new_id, row_of
from keysmith import Engine, KeyCreate, PolicyCreate, SqliteStore, UsageCreate
from keysmith.raw_keys import Hasher, checksum

SCOPES = ("users:read", "users:write")
"""What every key holds."""

ADDRESS = "10.1.2.3"
"""From where `POLICY` lets keys be used, among others."""

POLICY = PolicyCreate(
    name="measured", rate_limit=10**9, allowed_ips=["10.0.0.0/8"], allowed_methods=["GET"]
)

_VERSION = 1
_CHUNK = 20_000
_BULK = ("keysmith_keys", "keysmith_key_scopes")

Progress = Callable[[Sequence[int], str], Iterable[int]]
"""Gives the steps one by one, and shows how far they are."""


def raw_key(number: int) -> str:
    """The raw key with that number, in Keysmith's format."""
    body = f"sk_live_{hashlib.sha256(b'%d' % number).hexdigest()[:43]}"
    return body + checksum(body)


def key_id(number: int) -> str:
    """The ID of the key with that number."""
    return new_id("akey", number)


def plain(count: int) -> range:
    """Numbers of the keys that bear no policy, in a database of `count`."""
    return range(0, count, 2)


def ruled(count: int) -> range:
    """Numbers of the keys that bear `POLICY`."""
    return range(1, count, 2)


def scattered(numbers: range, most: int) -> list[str]:
    """Raw keys from all over the database, in an order that has nothing to do with where."""
    step = max(1, len(numbers) // most)
    return sorted(raw_key(number) for number in numbers[::step][:most])


def hashes(raw_keys: Iterable[str]) -> list[str]:
    """What the keys are looked up by."""
    return list(map(Hasher().hash, raw_keys))


def usage(of: str, number: int) -> UsageCreate:
    """A request with the key of that ID, as a service would record it."""
    return UsageCreate(
        key_id=of,
        endpoint="/users/{id}",
        method="GET",
        status_code=404 if number % 50 == 0 else 200,
        ip_address=ADDRESS,
        user_agent="curl/8.7.1",
        latency_ms=1.0 + number % 97 / 10,
    )


def database(folder: Path, count: int, progress: Progress) -> Path:
    """A database of `count` keys. It is made if there is none for the schema as it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{os.getpid()}.db"
    try:
        _seed(unfinished)
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            path = folder / f"keys-{count}-{_stamp(connection)}.db"
            if path.exists():
                return path
            for outdated in folder.glob(f"keys-{count}-*"):
                outdated.unlink()
            _fill(connection, count, progress)
        unfinished.replace(path)
    finally:
        for leftover in folder.glob(f"{unfinished.name}*"):
            leftover.unlink()
    return path


def _seed(path: Path) -> None:
    """The schema, and of each kind a row that can be copied."""
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        engine.ensure_scopes(SCOPES)
        policy = engine.create_policy(POLICY)
        for policy_id in (None, policy.id):
            request = KeyCreate(name="Production", scopes=list(SCOPES), policy_id=policy_id)
            engine.record_usage(usage(engine.create_key(request).key.id, 1))


def _stamp(connection: sqlite3.Connection) -> str:
    schema = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    return hashlib.sha256(repr((_VERSION, SCOPES, POLICY, schema)).encode()).hexdigest()[:12]


def _fill(connection: sqlite3.Connection, count: int, progress: Progress) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -1000000")
    connection.execute("BEGIN")
    indexes = _drop_indexes(connection)
    keys = [
        row_of(connection, "keysmith_keys", "policy_id IS NULL"),
        row_of(connection, "keysmith_keys", "policy_id IS NOT NULL"),
    ]
    scope_ids = [id_ for (id_,) in connection.execute("SELECT id FROM keysmith_scopes")]
    hold = "INSERT INTO keysmith_key_scopes (key_id, scope_id) VALUES (?, ?)"
    for start in progress(range(0, count, _CHUNK), f"{count:,} keys"):
        numbers = range(start, min(count, start + _CHUNK))
        connection.executemany(insertion("keysmith_keys", keys[0]), _rows(keys, numbers))
        held = ((key_id(number), scope) for number in numbers for scope in scope_ids)
        connection.executemany(hold, held)
    for statement in indexes:
        connection.execute(statement)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rows(templates: Sequence[dict[str, Any]], numbers: range) -> Iterator[tuple[Any, ...]]:
    """Keys with and without a policy, in turn."""
    hash_ = Hasher().hash
    for number in numbers:
        changed = {"id": key_id(number), "key_hash": hash_(raw_key(number))}
        yield tuple({**templates[number % 2], **changed}.values())


def _drop_indexes(connection: sqlite3.Connection) -> list[str]:
    """Drops the indexes of what is filled; gives the statements that bring them back."""
    found = connection.execute(
        "SELECT name, sql FROM sqlite_master "
        "WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN (?, ?)",
        _BULK,
    ).fetchall()
    for name, _ in found:
        connection.execute(f"DROP INDEX {name}")
    return [statement for _, statement in found]
