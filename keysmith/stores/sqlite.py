"""Keysmith on SQLite: an embedded file, WAL, no server."""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakMethod

import sqlalchemy as sa

from keysmith.errors import (
    SchemaOutdatedError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from keysmith.stores.counters import FileCounters, MemoryCounters
from keysmith.stores.credentials import SqliteCredentials
from keysmith.stores.database import Database
from keysmith.stores.keys import SqlKeyRepository
from keysmith.stores.policies import SqlPolicyRepository
from keysmith.stores.rotations import SqlRotationRepository
from keysmith.stores.scopes import SqlScopeRepository
from keysmith.stores.sqlite_backup import Progress, back_up, bring_back, sound_backup
from keysmith.stores.sqlite_connections import FileConnection, connect, let_go_of_broken
from keysmith.stores.sqlite_errors import is_busy, translate
from keysmith.stores.usages import SqlUsageRepository

MEMORY = ":memory:"
DEFAULT_BUSY_TIMEOUT = timedelta(seconds=10)
LONGEST_BUSY_TIMEOUT = 2_000_000.0
"""Seconds; SQLite counts milliseconds in 32 bits."""

OLDEST_SQLITE = (3, 36)
"""The first with a memory database that several connections of a process can share."""

LOGGING_NAME = "keysmith"
_memory_numbers = itertools.count(1)


class SqliteStore:
    """Keys in a SQLite file, or in memory for tests.

    The file is opened when it is first needed, and only `migrate()` creates it. Readers of a file
    never wait, those of memory for the thread that writes; writers of all threads and processes
    queue, each for at most `busy_timeout`. A write is on the disk when the call returns (WAL with
    `synchronous=FULL`); usage alone may be lost by a machine that loses power. Limits are counted
    in a file beside the database, `…-counters`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy_timeout: timedelta = DEFAULT_BUSY_TIMEOUT
    ) -> None:
        """`path` is a file, or `":memory:"` for a database that lives as long as the store.

        Raises `StoreUnavailableError` where the path cannot be one, or SQLite is too old.
        """
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreUnavailableError(
                f"Python is linked with SQLite {sqlite3.sqlite_version}; Keysmith needs "
                f"{'.'.join(map(str, OLDEST_SQLITE))} or newer."
            )
        self._path = _checked(path)
        self._uri = (
            f"{self._path.as_uri()}?mode=rw"
            if self._path
            else f"file:/keysmith-{os.getpid()}-{next(_memory_numbers)}?vfs=memdb"
        )
        self._busy_timeout = min(busy_timeout.total_seconds(), LONGEST_BUSY_TIMEOUT)
        # A memory database lives as long as somebody is connected to it.
        self._anchor = None if self._path else self._connect()
        engine = self._create_engine()
        self._finishers: list[WeakMethod[Callable[[], None]]] = []
        self._database = Database(
            engine,
            writer=engine.execution_options(keysmith_synchronous="FULL"),
            lax_writer=engine.execution_options(keysmith_synchronous="NORMAL"),
            translate=lambda error: translate(error, self._path),
            patience=self._busy_timeout,
            kept_by_connections=self._path is None,
        )
        self.keys = SqlKeyRepository(self._database)
        self.policies = SqlPolicyRepository(self._database)
        self.scopes = SqlScopeRepository(self._database)
        self.usages = SqlUsageRepository(self._database)
        self.rotations = SqlRotationRepository(self._database)
        self.credentials = self._database.usage_watch = SqliteCredentials(
            self._database, self._connect
        )
        self.counters: FileCounters | MemoryCounters = (
            FileCounters(self._path, patience=busy_timeout) if self._path else MemoryCounters()
        )

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path or MEMORY)!r})"

    @property
    def db(self) -> sa.Engine:
        """The SQLAlchemy engine underneath: for statements and sessions of one's own."""
        return self._database.engine

    @property
    def path(self) -> Path | None:
        """The file; `None` for a database in memory."""
        return self._path

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside `transaction()` or `snapshot()`."""
        return self._database.joined() is not None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes of this thread inside are committed together at the end, or not at all.

        One within another is part of it; if it fails, it alone is undone.
        """
        with self._database.transaction():
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads of this thread inside see the same moment."""
        with self._database.read():
            yield

    def after_commit(self, callback: Callable[[], object], *, in_order: bool = False) -> None:
        """See `Store.after_commit`."""
        self._database.after_commit(callback, in_order=in_order)

    def migrate(self) -> None:
        """Brings the schema to the newest revision, creating the file if there is none.

        One transaction: it succeeds whole, or leaves the database as it was. Idempotent, and any
        number of processes may call it at once. Raises `SchemaOutdatedError` where the database is
        of a newer release, and the other `StoreError`s where the file cannot be used.
        """
        from keysmith.stores import migrations  # noqa: PLC0415  Alembic, for this call alone

        with self.migration() as connection:
            migrations.upgrade_sqlite(connection)

    @contextmanager
    def migration(self) -> Iterator[sa.Connection]:
        """A connection inside a transaction in which the schema may change."""
        self._create_file()
        with self._database.bare() as connection:
            # Rebuilding a table drops it, which must not cascade; SQLite takes this only outside
            # of a transaction.
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.execution_options(keysmith_synchronous="FULL").begin():
                    yield connection
                    _check_foreign_keys(connection)
            finally:
                with suppress(sqlite3.ProgrammingError):  # one that is broken has been closed
                    driver.execute("PRAGMA foreign_keys = ON")
        self._database.schema_changed()

    def ping(self) -> None:
        """Raises `StoreUnavailableError` when the database cannot answer."""
        try:
            with self._database.bare() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").all()
        except SchemaOutdatedError as error:
            raise StoreUnavailableError(str(error)) from None

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Writes a copy of this moment into the file `target`, while others read and write.

        It takes its name when it is whole, checked and on the disk; nobody sees less. Counts of
        limits lie beside the database, and are not in it. `progress` is called with the pages that
        are copied and with their total. Raises `ConflictError` for a file that exists, unless
        `overwrite` is set, and the `StoreError`s where one of the two files cannot be used.
        """
        with self._database.bare() as connection:
            driver: Any = connection.connection.driver_connection
            back_up(driver, self._path, _file(target), overwrite=overwrite, progress=progress)

    def restore(self, backup: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Puts the content of a backup in place of all that is in the database, and migrates it.

        One transaction, also while others read and write: each sees the old or the new. What was
        written since the backup is gone. Raises the `StoreError`s where one of the two files
        cannot be used, or the backup is no database of Keysmith's; the database is then as it was.
        """
        self._database._refuse_closed()  # noqa: SLF001
        with sound_backup(_file(backup)) as source:
            # As private as the backup, which itself may well be read-only.
            self._create_file(stat.S_IMODE(os.stat(backup).st_mode) & 0o666 | 0o600)
            # A bare connection: our settings would have a schema read that may be damaged.
            bring_back(
                source,
                lambda: connect(self._uri, self._path, timeout=0),
                self._path,
                patience=self._busy_timeout,
                progress=progress,
            )
        self.migrate()

    def before_close(self, finish: Callable[[], None]) -> None:
        """See `Store.before_close`."""
        self._finishers = [each for each in self._finishers if each() is not None]
        self._finishers.append(WeakMethod(finish))

    def close(self) -> None:
        """Lets go of every connection; a memory database is gone. May be called twice.

        Raises `StoreError` inside a transaction, which comes first.
        """
        if self.in_transaction:
            raise StoreError("Within a transaction the store cannot be closed; do so after it.")
        with ExitStack() as stack:
            if self._anchor is not None:
                stack.callback(self._anchor.close)
            stack.callback(self.counters.close)
            stack.callback(self.credentials.close)
            stack.callback(self._database.close)
            self._let_finish()

    def _let_finish(self) -> None:
        first: BaseException | None = None
        finishers, self._finishers = self._finishers, []
        for finisher in finishers:
            try:
                if (finish := finisher()) is not None:
                    finish()
            except BaseException as error:  # noqa: BLE001  it is raised when all have finished
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ connections

    def _create_engine(self) -> sa.Engine:
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self._path or MEMORY)),
            creator=self._connect,
            poolclass=sa.QueuePool,
            max_overflow=-1,  # a thread of the host's never waits for a connection
            hide_parameters=True,  # values may be hashes
            logging_name=LOGGING_NAME,
        )
        logging.getLogger(f"sqlalchemy.engine.Engine.{LOGGING_NAME}").addFilter(_without_rows)
        sa.event.listen(engine, "begin", self._begin)
        sa.event.listen(engine, "checkout", self._refuse_outdated)
        sa.event.listen(engine, "handle_error", let_go_of_broken)
        return engine

    def _begin(self, connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if "keysmith_synchronous" in options:
            driver: Any = connection.connection.driver_connection
            try:
                driver.execute(f"PRAGMA synchronous = {options['keysmith_synchronous']}")
                driver.execute("PRAGMA busy_timeout = 0")
            except sqlite3.Error as error:
                raise sa.exc.DBAPIError(None, None, error) from None
            try:
                self._begin_writing(connection)
            finally:
                with suppress(sqlite3.ProgrammingError):  # one that is broken has been closed
                    driver.execute(f"PRAGMA busy_timeout = {self._busy_timeout * 1000:.0f}")
        else:
            connection.exec_driver_sql("BEGIN DEFERRED")

    def _begin_writing(self, connection: sa.Connection) -> None:
        # SQLite would look for the lock ever more seldom, and hardly ever find it free while
        # another process writes one transaction after the other.
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except sa.exc.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(0.001)
            else:
                return

    def _connect(self) -> FileConnection:
        connection = connect(self._uri, self._path, timeout=self._busy_timeout)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            self._use_wal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_outdated(self, connection: FileConnection, _record: Any, _proxy: Any) -> None:
        """Lets the pool open another connection in place of one to what is no longer so."""
        if connection.moved:
            self._database.schema_changed()
            raise sa.exc.DisconnectionError
        if connection.may_write_by_now:
            raise sa.exc.DisconnectionError

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switches the file to WAL, once; what cannot be written to stays as it is."""
        if self._path is None:
            return
        # Another connection that opens the file at this moment makes the switch fail at once,
        # whatever the busy timeout; it is made by one of them.
        deadline = time.monotonic() + self._busy_timeout
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")
                return
            if not os.access(self._path, os.W_OK) or time.monotonic() > deadline:
                return
            time.sleep(0.005)

    def _create_file(self, mode: int = 0o666) -> None:
        if self._path is None:
            return
        try:
            self._path.touch(mode, exist_ok=True)
        except FileNotFoundError:
            pass  # opening it says that the folder is missing
        except PermissionError:
            if os.access(self._path.parent, os.X_OK) and not os.path.exists(self._path):
                raise StoreUnavailableError(
                    f"No permission to create {self._path}. Make its folder writable for this user."
                ) from None


def _checked(path: str | os.PathLike[str]) -> Path | None:
    text = os.fspath(path)
    if text == MEMORY:
        return None
    if not text or "\0" in text or "://" in text:
        raise StoreUnavailableError(
            "SqliteStore takes a path such as 'keysmith.db', or ':memory:'; "
            "open_store() takes a database URL."
        )
    return Path(text).absolute()


def _file(path: str | os.PathLike[str]) -> Path:
    checked = _checked(path)
    if checked is None:
        raise StoreUnavailableError("A backup is a file: name one.")
    return checked


def _without_rows(record: logging.LogRecord) -> bool:
    # At DEBUG, SQLAlchemy logs the rows that it reads, and those hold hashes.
    return record.levelno > logging.DEBUG


def _check_foreign_keys(connection: sa.Connection) -> None:
    broken = {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
    ours = sorted(table for table in broken if table.startswith("keysmith_"))
    if ours:
        raise StoreCorruptError(
            f"Migrating would leave rows that refer to nothing in: {', '.join(ours)}. "
            "The database was left as it was."
        )
