"""Connections and transactions: one writer, many readers, and errors that say what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import sqlalchemy as sa

from keysmith.errors import KeysmithError, StoreError, StoreUnavailableError
from keysmith.forks import Gate, pause_for_fork
from keysmith.models.base import Table, invalid
from keysmith.stores.schema import check_schema

Translate = Callable[[BaseException], KeysmithError]
Callback = Callable[[], object]


class UsageWatch(Protocol):
    """Is told which commits are of usage alone."""

    def before_usage(self, writer: Any) -> Any:
        """What is so, now that this connection alone can write; `None` if that cannot be told."""

    def after_usage(self, known: Any) -> None:
        """The connection has committed usage, and nothing else, since that was so."""


class _Current(threading.local):
    """The transaction that a thread is in."""

    def __init__(self) -> None:
        self.connection: sa.Connection | None = None
        self.may_write = False
        self.callbacks: list[tuple[Callback, bool]] = []
        """What waits for the commit, and whether it is to be in the order of commits."""


class Database:
    """What the repositories stand on: a connection inside a transaction, whoever opened it.

    A transaction belongs to the thread that began it. Repositories called within it join it; called
    outside, each call is a transaction of its own. Writers of one process queue on a lock, which
    is fair and cheap, before they compete with other processes for the database's own.
    """

    def __init__(
        self,
        engine: sa.Engine,
        writer: sa.Engine,
        lax_writer: sa.Engine,
        *,
        translate: Translate,
        patience: float,
        kept_by_connections: bool = False,
    ) -> None:
        """The writers share `engine`'s pool, and begin transactions that may write.

        What `writer` commits is on the disk; what `lax_writer` commits is with the system.
        `translate` makes a `KeysmithError` of what SQLAlchemy or the driver raised. A writer queues
        for `patience` seconds at most. A database that is `kept_by_connections` is gone when the
        last of them is closed.
        """
        self.engine = engine
        self.translate = translate
        self._writer = writer
        self._lax_writer = lax_writer
        self._patience = min(patience, threading.TIMEOUT_MAX)
        self.kept_by_connections = kept_by_connections
        self._schema_checked = False
        self._closed = False
        self._locked_out = False
        self._abandoned: list[object] = []
        self.usage_watch: UsageWatch | None = None
        self._gate = Gate()
        self._begin_alone()
        pause_for_fork(self)

    def _begin_alone(self) -> None:
        self.write_lock = threading.RLock()
        """While one thread holds it, no other can write."""
        self._current = _Current()
        self._writing = False

    def pause(self) -> None:
        """Keeps threads from beginning transactions, when those that are open have ended.

        A file is not open while the process forks: SQLite would take the locks that the parent
        holds on it for the child's own, and the child would hold none once the parent has ended.
        """
        self._gate.close(inside=0 if self.joined() is None else 1)
        if not self.kept_by_connections:
            self.engine.dispose()

    def resume(self) -> None:
        """Lets them begin."""
        self._gate.open()

    def renew(self) -> None:
        """Connections of one's own, in a forked child. An open transaction stays the parent's."""
        # SQLite counts the locks of a process in its memory, and that has been copied: what was
        # locked by a connection of the parent's stays locked in the child.
        self._locked_out |= self._writing
        self._begin_alone()
        self._gate.renew()
        self._abandoned.append(self.engine.pool)  # to close them would disturb the parent
        self.engine.dispose(close=False)

    def joined(self) -> sa.Connection | None:
        """The connection of the transaction that this thread is in, if it is in one."""
        return self._current.connection

    def check(self) -> None:
        """Raises what a transaction would, of a store that is closed or has another schema."""
        if not self._schema_checked or self._closed:
            with self.read():
                pass

    def after_commit(self, callback: Callback, *, in_order: bool) -> None:
        """Calls it when what this thread has written so far is committed; now, if it is already.

        If `in_order`, before another thread of this process can commit.
        """
        if self._current.connection is not None and self._current.may_write:
            self._current.callbacks.append((callback, in_order))
        else:
            callback()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database."""
        with self._joined_or_begun(self.engine, nullcontext()) as connection, self.errors():
            yield connection

    @contextmanager
    def write(self, *, lax: bool = False) -> Iterator[sa.Connection]:
        """A connection that holds the write lock; commits at the end, rolls back on an error.

        What a lax one commits survives the death of the process, and not that of the machine. It is
        for usage, and for nothing that validations go by.
        """
        writer = self._lax_writer if lax else self._writer
        with self._joined_or_begun(writer, self._queue()) as connection, self.errors():
            self._refuse_snapshot()
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `write`, for the code of others: what that raises is passed on as it is.

        Within another one, it undoes its own part when it fails, and only that.
        """
        with self._joined_or_begun(self._writer, self._queue(), savepoint=True):
            yield

    @contextmanager
    def bare(self) -> Iterator[sa.Connection]:
        """A connection in no transaction, whatever the state of the schema."""
        self._refuse_closed()
        gate = self._gate if self.joined() is None else nullcontext()
        with gate, self.errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns the database's errors into `StoreError`s. They show no values of any row."""
        try:
            yield
        except UnicodeEncodeError:  # which holds the text
            raise invalid(Table, "text", "must not contain a lone surrogate") from None
        except sa.exc.SQLAlchemyError as error:
            raise self.translate(error) from None

    def schema_changed(self) -> None:
        """The next transaction looks at the schema's revision again."""
        self._schema_checked = False

    def close(self) -> None:
        """Lets go of every connection; whatever comes later raises `StoreUnavailableError`."""
        self._closed = True
        self.engine.dispose()

    # ------------------------------------------------------------------ transactions

    @contextmanager
    def _joined_or_begun(
        self, engine: sa.Engine, lock: AbstractContextManager[object], *, savepoint: bool = False
    ) -> Iterator[sa.Connection]:
        current = self._current
        joined = current.connection
        if joined is not None:
            _refuse_undone(joined)
            with self._savepoint(joined) if savepoint else nullcontext():
                yield joined
            return
        self._refuse_closed()
        with lock:
            with self._gate, self._begun(engine) as connection:
                yield connection
            callbacks, current.callbacks = current.callbacks, []
            for callback, in_order in callbacks:
                if in_order:
                    callback()
        for callback, in_order in callbacks:
            if not in_order:
                callback()

    @contextmanager
    def _begun(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        current = self._current
        connection = current.connection = self._begin(engine)
        current.may_write = engine is not self.engine
        committed = False
        try:
            self._writing |= current.may_write
            watch = self.usage_watch if engine is self._lax_writer else None
            writer = connection.connection.driver_connection
            known = None if watch is None else watch.before_usage(writer)
            yield connection
            if current is self._current:
                with self.errors():
                    _refuse_undone(connection)
                    connection.commit()
                committed = True
                if watch is not None and known is not None:
                    watch.after_usage(known)
        finally:
            current.connection = None
            if not committed:
                current.callbacks.clear()
            if current is not self._current:
                self._abandoned.append(connection)  # forked within: it is the parent's to end
            else:
                with suppress(sa.exc.SQLAlchemyError):
                    if not committed:
                        connection.rollback()
                    connection.close()
                if current.may_write:
                    self._writing = False

    def _begin(self, engine: sa.Engine) -> sa.Connection:
        with self.errors():
            connection = engine.connect()
            try:
                connection.begin()
                if not self._schema_checked:
                    check_schema(connection)
                    self._schema_checked = True
            except BaseException:
                connection.close()
                raise
        return connection

    @contextmanager
    def _savepoint(self, connection: sa.Connection) -> Iterator[None]:
        self._refuse_snapshot()
        current = self._current
        waiting = len(current.callbacks)
        with self.errors():
            savepoint = connection.begin_nested()
        try:
            yield
            if current is self._current:
                with self.errors():
                    _refuse_undone(connection)
                    savepoint.commit()
        except BaseException:
            if current is self._current:
                del current.callbacks[waiting:]
                with suppress(sa.exc.SQLAlchemyError):
                    savepoint.rollback()
            raise

    @contextmanager
    def _queue(self) -> Iterator[None]:
        if self._locked_out:
            raise StoreUnavailableError(
                "This process was forked within a transaction and can never write to the same "
                "database. Fork outside of transactions, or start processes afresh."
            )
        lock = self.write_lock
        if not lock.acquire(timeout=self._patience):
            raise StoreUnavailableError(
                "Another thread has been writing for longer than the busy timeout. "
                "Try again, or find the transaction that stays open."
            )
        try:
            yield
        finally:
            lock.release()

    def _refuse_snapshot(self) -> None:
        if not self._current.may_write:
            raise StoreError("Within a snapshot nothing can be written; use transaction().")

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError("This store has been closed. Open a new one.")


def _refuse_undone(connection: sa.Connection) -> None:
    """Some errors, such as a full disk, make SQLite roll back the transaction as a whole."""
    if not getattr(connection.connection.driver_connection, "in_transaction", True):
        raise StoreError(
            "An error within this transaction has made the database undo all of it. "
            "Begin a new one, and do not catch errors of the store inside."
        )
