"""Connections and transactions: one writer, many readers, and errors that say what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import sqlalchemy as sa

from keysmith.errors import KeysmithError, StoreError, StoreUnavailableError
from keysmith.forks import renew_after_fork
from keysmith.stores.schema import check_schema

Translate = Callable[[BaseException], KeysmithError]


class Database:
    """What the repositories stand on: a connection inside a transaction, whoever opened it.

    A transaction belongs to the thread that began it. Repositories called within it join it; called
    outside, each call is a transaction of its own. Writers of one process queue on a lock, which
    is fair and cheap, before they compete with other processes for the database's own.
    """

    def __init__(
        self, engine: sa.Engine, writer: sa.Engine, lax_writer: sa.Engine, translate: Translate
    ) -> None:
        """The writers share `engine`'s pool, and begin transactions that may write.

        What `writer` commits is on the disk; what `lax_writer` commits is with the system.
        `translate` makes a `KeysmithError` of what SQLAlchemy or the driver raised.
        """
        self.engine = engine
        self.translate = translate
        self._writer = writer
        self._lax_writer = lax_writer
        self._schema_checked = False
        self._closed = False
        self._abandoned: list[sa.Pool] = []
        self._begin_alone()
        renew_after_fork(self)

    def _begin_alone(self) -> None:
        self._write_lock = threading.RLock()
        self._current = threading.local()

    def renew(self) -> None:
        """Connections of one's own, in a forked child."""
        self._begin_alone()
        self._abandoned.append(self.engine.pool)  # to close them would disturb the parent
        self.engine.dispose(close=False)

    def joined(self) -> sa.Connection | None:
        """The connection of the transaction that this thread is in, if it is in one."""
        return getattr(self._current, "connection", None)

    def check(self) -> None:
        """Raises what a transaction would, of a store that is closed or has another schema."""
        if not self._schema_checked or self._closed:
            with self.read():
                pass

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database."""
        with self._transaction(self.engine, nullcontext()) as connection:
            yield connection

    @contextmanager
    def write(self, *, lax: bool = False) -> Iterator[sa.Connection]:
        """A connection that holds the write lock; commits at the end, rolls back on an error.

        What a lax one commits survives the death of the process, and not that of the machine.
        """
        writer = self._lax_writer if lax else self._writer
        with self._transaction(writer, self._write_lock) as connection:
            if not self._current.may_write:
                raise StoreError("Within a snapshot nothing can be written; use transaction().")
            yield connection

    def after_commit(self, deed: Callable[[], object]) -> None:
        """Does it once this thread's transaction has been committed; at once if there is none."""
        if self.joined() is None:
            deed()
        else:
            self._current.deeds.append(deed)

    @contextmanager
    def bare(self) -> Iterator[sa.Connection]:
        """A connection in no transaction, whatever the state of the schema."""
        self._refuse_closed()
        with self.errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns the database's errors into `StoreError`s. They show no values of any row."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise self.translate(error) from None

    def schema_changed(self) -> None:
        """The next transaction looks at the schema's revision again."""
        self._schema_checked = False

    def close(self) -> None:
        """Lets go of every connection; whatever comes later raises `StoreUnavailableError`."""
        self._closed = True
        self.engine.dispose()

    @contextmanager
    def _transaction(
        self, engine: sa.Engine, lock: AbstractContextManager[object]
    ) -> Iterator[sa.Connection]:
        joined = self.joined()
        if joined is not None:
            with self.errors():
                yield joined
            return
        self._refuse_closed()
        with self.errors(), lock, engine.begin() as connection:
            if not self._schema_checked:
                check_schema(connection)
                self._schema_checked = True
            self._current.connection = connection
            self._current.may_write = engine is not self.engine
            self._current.deeds = deeds = list[Callable[[], object]]()
            try:
                yield connection
            finally:
                self._current.connection = None
        for deed in deeds:
            deed()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError("This store has been closed. Open a new one.")
