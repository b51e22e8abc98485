"""What judging a raw key needs, in one statement: key, outgoing secret, policy, scopes.

And the answer to "is what I read still so?", for the price of looking at a number.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from enum import Enum
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlmodel import SQLModel

from keysmith.errors import KeyNotFoundError, StoreCorruptError
from keysmith.forks import PATIENCE, pause_for_fork
from keysmith.models import Key, KeyPublic, Policy, PolicyPublic, Rotation, RotationPublic
from keysmith.models.base import Milliseconds
from keysmith.models.frozen import FrozenDict, FrozenList, freeze
from keysmith.stores.base import Credential
from keysmith.stores.database import Database
from keysmith.stores.sqlite_connections import FileConnection
from keysmith.stores.sqlite_wal_index import Header, wal_index_header

T = TypeVar("T")

AtOnce = Callable[[Callable[[str], T], str], T | None]
Convert = Callable[[Any], Any]

SOON = 0.05
"""Seconds that those who write usage wait for those who validate."""

LOOK_EVERY = 1.0
"""Seconds after which a file that was removed or replaced is noticed at the latest."""


class Fields:
    """Some columns of a table, and how their stored values become a model's."""

    def __init__(self, table_model: type[SQLModel], alias: str, public: type[SQLModel]) -> None:
        columns: Any = sa.inspect(table_model)
        names = tuple(public.model_fields)
        self.names = names
        self.columns = [f"{alias}.{columns.columns[name].name}" for name in names]
        converters = [_converter(columns.columns[name].type) for name in names]
        self._conversions = [
            (place, convert) for place, convert in enumerate(converters) if convert is not None
        ]

    def row(self, values: Sequence[Any]) -> dict[str, Any]:
        """The values by field name."""
        converted = list(values)
        for place, convert in self._conversions:
            if converted[place] is not None:
                converted[place] = convert(converted[place])
        return dict(zip(self.names, converted, strict=True))


def _converter(type_: Any) -> Convert | None:
    """From what SQLite stores to what the model holds; SQLAlchemy's own way costs ten times."""
    if isinstance(type_, sa.Enum) and type_.enum_class is not None:
        members: dict[str, Enum] = {each.value: each for each in type_.enum_class}
        return members.__getitem__
    if isinstance(type_, Milliseconds):
        return lambda value: timedelta(milliseconds=value)
    if isinstance(type_, sa.JSON):
        return _from_json
    if isinstance(type_, sa.types.TypeDecorator) and isinstance(type_.impl_instance, sa.DateTime):
        return lambda value: datetime.fromisoformat(value + "+00:00")
    return None


def _from_json(text: str) -> Any:
    if text == "{}":
        return FrozenDict()
    return FrozenList() if text == "[]" else freeze(json.loads(text))


_KEY = Fields(Key, "k", KeyPublic)
_ROTATION = Fields(Rotation, "r", RotationPublic)
_POLICY = Fields(Policy, "p", PolicyPublic)
_AFTER_KEY = len(_KEY.names)
_AFTER_ROTATION = _AFTER_KEY + len(_ROTATION.names)


# By name, everything from "a:" up to "a;", the character after the colon, lies below "a". There are
# two index lookups, as one condition with OR would scan the tenant's scopes.
_CHILDREN = """
    SELECT child.id FROM keysmith_scopes child
    WHERE child.tenant_id = k.tenant_id AND child.parent = above.name
    UNION ALL
    SELECT named.id FROM keysmith_scopes named
    WHERE named.tenant_id = k.tenant_id
    AND named.name > above.name || ':' AND named.name < above.name || ';'
"""


def _with_below(names: str) -> str:
    """SQL: those scopes and all below them, by name and by parent, as a JSON array."""
    return f"""(
        WITH RECURSIVE above(name) AS (
            {names}
            UNION
            SELECT below.name FROM above JOIN keysmith_scopes below ON below.id IN ({_CHILDREN})
        )
        SELECT json_group_array(name) FROM above
    )"""  # noqa: S608  nothing here comes from outside  # nosec B608


_HELD = """
    FROM keysmith_key_scopes held JOIN keysmith_scopes above ON above.id = held.scope_id
    WHERE held.key_id = k.id
"""
# Most keys hold scopes that have none below them, and to walk down from there costs a quarter more.
_GRANTED = f"""
    CASE WHEN EXISTS (SELECT 1 {_HELD} AND EXISTS ({_CHILDREN}))
    THEN {_with_below(f"SELECT above.name {_HELD}")}
    ELSE (SELECT json_group_array(above.name) {_HELD}) END
"""  # nothing here comes from outside  # nosec B608
_ALLOWED = _with_below("SELECT value FROM json_each(p.allowed_scopes)")

FIND = f"""
    SELECT {", ".join(_KEY.columns + _ROTATION.columns + _POLICY.columns)},
        r.grace_closed, {_GRANTED}, CASE WHEN p.allowed_scopes <> '[]' THEN {_ALLOWED} END
    FROM keysmith_keys k
    LEFT JOIN keysmith_rotations r ON r.old_key_hash = :hash AND k.key_hash <> :hash
    LEFT JOIN keysmith_policies p ON p.id = k.policy_id
    WHERE k.rowid = (
        SELECT rowid FROM keysmith_keys WHERE key_hash = :hash
        UNION ALL
        SELECT rotated.rowid FROM keysmith_rotations old
        JOIN keysmith_keys rotated ON rotated.id = old.key_id WHERE old.old_key_hash = :hash
    )
"""  # noqa: S608  nothing here comes from outside  # nosec B608


class Known(NamedTuple):
    """What was so when somebody began to write usage."""

    version: int
    header: Header
    writer: FileConnection
    commits_of_others: int


class SqliteCredentials:
    """Credentials of a SQLite database, read on one connection that stays open.

    It tells whether anything has changed by the header of the WAL index. Where that cannot be read,
    by `PRAGMA data_version`, which moves when any other connection, of this process or another, has
    committed (https://sqlite.org/pragma.html#pragma_data_version); all writes go through others.

    Usage is written once a second, and changes no credential. That a commit is of usage alone is
    known to the process that made it, and to no other; and that no other has been made meanwhile,
    to the connection that made it.
    """

    def __init__(self, database: Database, connect: Callable[[], FileConnection]) -> None:
        self._database = database
        self._connect = connect
        self._version = self._newest = 0
        self._seen: object = None
        """What told the present version from those before; of each connection its own."""
        self._header: Header | None = None
        self._look_again = 0.0
        self._cursor: sqlite3.Cursor | None = None
        self._abandoned: list[sqlite3.Cursor] = []
        self._lock = threading.Lock()
        self._paused = False
        pause_for_fork(self)

    def pause(self) -> None:
        """Keeps everybody from the connection, and closes it: see `Database.pause`."""
        self._paused = self._lock.acquire(timeout=PATIENCE)
        if self._paused:
            self._drop()

    def resume(self) -> None:
        """Lets them use it."""
        if self._paused:
            self._lock.release()

    def renew(self) -> None:
        """A connection of one's own, in a forked child."""
        self._lock = threading.Lock()
        if self._cursor is not None:
            self._abandoned.append(self._cursor)  # to close it would disturb the parent
        self._cursor = self._header = self._seen = None

    def version(self) -> int | None:
        """See `CredentialRepository.version`."""
        if self._database.joined() is not None:
            return None
        with self._lock:
            if monotonic() > self._look_again:
                self._look()
            header = self._header
            seen = self._ask() if header is None else header.raw
            if seen != self._seen:
                self._changed(seen)
            return self._version

    def before_usage(self, writer: FileConnection) -> Known | None:
        """See `UsageWatch`."""
        if self._database.kept_by_connections:
            return None  # and no lock is taken, which readers hold while they wait for who writes
        with self._held_soon() as held:
            header, cursor = self._header, self._cursor
            if not held or header is None or cursor is None:
                return None
            if not writer.shares_file_with(cursor.connection):  # type: ignore[arg-type]
                return None
            seen = header.raw
            if seen != self._seen:
                self._changed(seen)
            with suppress(sqlite3.Error):
                return Known(self._version, header, writer, _commits_of_others(writer))
            return None

    def after_usage(self, known: Known) -> None:
        """See `UsageWatch`. The header is that of this commit, if nobody else has made one."""
        with self._held_soon() as held:
            header = self._header
            if not held or header is not known.header:
                return
            seen = header.raw
            if seen != self._seen:
                self._changed(seen)
            # Asked after the header was read: what came in between is then among them.
            with suppress(sqlite3.Error):
                if _commits_of_others(known.writer) == known.commits_of_others:
                    self._version = known.version

    def find(self, key_hash: str) -> Credential:
        """See `CredentialRepository.find`."""
        joined = self._database.joined()
        if joined is not None:
            with self._database.errors():
                result = joined.exec_driver_sql(FIND, {"hash": key_hash})
                row: Any = result.fetchone()
        else:
            with self._lock:
                row = self._execute(FIND, {"hash": key_hash})
        if row is None:
            raise KeyNotFoundError
        try:
            return _credential(row)
        except (ValueError, LookupError, TypeError) as error:
            raise StoreCorruptError(
                "A row of keysmith_keys, its policy or its rotation holds a value that Keysmith "
                f"cannot have written ({type(error).__name__}). Correct it, or restore a backup."
            ) from None

    @property
    def at_once(self) -> AtOnce[Any] | None:
        """See `CredentialRepository`. In a file, readers wait for no writer."""
        return self._unless_written if self._database.kept_by_connections else None

    def close(self) -> None:
        """Lets go of the connection."""
        with self._lock:
            self._drop()

    def _changed(self, seen: object) -> None:
        """Something has been committed: a version that there has never been."""
        self._seen = seen
        self._newest += 1
        self._version = self._newest

    @contextmanager
    def _held_soon(self) -> Iterator[bool]:
        """The lock, unless that takes long: who forks holds it, and waits for all who write."""
        held = self._lock.acquire(timeout=SOON)
        try:
            yield held
        finally:
            if held:
                self._lock.release()

    def _unless_written(self, look: Callable[[str], T], key_hash: str) -> T | None:
        lock = self._database.write_lock
        if not lock.acquire(blocking=False):
            return None
        try:
            # Whoever reads may still be waiting for one who wrote before.
            return None if self._lock.locked() else look(key_hash)
        finally:
            lock.release()

    def _execute(self, statement: str, parameters: dict[str, str] | None = None) -> Any:
        """The first row. The lock is held; a connection that fails is not used again."""
        cursor = self._cursor or self._open()
        try:
            return cursor.execute(statement, parameters or {}).fetchone()
        except sqlite3.Error as error:
            self._drop()
            raise self._database.translate(error) from None

    def _ask(self) -> object:
        """What moves with every commit, as a connection without a header tells it."""
        if self._cursor is None:
            self._open()
        return self._execute("PRAGMA data_version") if self._header is None else self._header.raw

    def _open(self) -> sqlite3.Cursor:
        self._database.check()
        connection = None
        try:
            connection = self._connect()
            self._header = wal_index_header(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise self._database.translate(error) from None
        self._cursor = connection.cursor()
        return self._cursor

    def _look(self) -> None:
        """Looks whether the file is still there; too dear a question for every validation."""
        self._look_again = monotonic() + LOOK_EVERY
        if self._cursor is not None and self._cursor.connection.moved:  # type: ignore[attr-defined]
            self._drop()
            self._database.schema_changed()

    def _drop(self) -> None:
        # Its header is gone with it, and what it saw means nothing to the next one.
        cursor, self._cursor, self._header, self._seen = self._cursor, None, None, None
        if cursor is not None:
            cursor.connection.close()


def _commits_of_others(connection: sqlite3.Connection) -> int:
    """A number that moves when any other connection commits, and not when this one does.

    https://sqlite.org/pragma.html#pragma_data_version
    """
    [number] = connection.execute("PRAGMA data_version").fetchone()
    return int(number)


def _credential(row: Sequence[Any]) -> Credential:
    grace_closed, granted, allowed = row[-3:]
    rotated = row[_AFTER_KEY] is not None
    with_policy = row[_AFTER_ROTATION] is not None
    return Credential(
        KeyPublic.from_row(_KEY.row(row[:_AFTER_KEY])),
        RotationPublic.from_row(_ROTATION.row(row[_AFTER_KEY:_AFTER_ROTATION]))
        if rotated
        else None,
        PolicyPublic.from_row(_POLICY.row(row[_AFTER_ROTATION:-3])) if with_policy else None,
        frozenset(json.loads(granted)),
        None if allowed is None else frozenset(json.loads(allowed)),
        bool(grace_closed),
    )
