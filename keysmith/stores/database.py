"""Connections and transactions: one writer, many readers, and errors that say what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import sqlalchemy as sa

from keysmith.errors import KeysmithError, StoreError, StoreUnavailableError
from keysmith.stores.schema import check_schema

Translate = Callable[[sa.exc.SQLAlchemyError], KeysmithError]


class Database:
    """What the repositories stand on: a connection inside a transaction, whoever opened it.

    A transaction belongs to the thread that began it. Repositories called within it join it; called
    outside, each call is a transaction of its own. Writers of one process queue on a lock, which
    is fair and cheap, before they compete with other processes for the database's own.
    """

    def __init__(self, engine: sa.Engine, writer: sa.Engine, translate: Translate) -> None:
        """`writer` shares `engine`'s pool, and begins transactions that may write."""
        self.engine = engine
        self._writer = writer
        self._translate = translate
        self._write_lock = threading.RLock()
        self._current = threading.local()
        self._schema_checked = False
        self._closed = False

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database."""
        with self._transaction(self.engine, nullcontext()) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection that holds the write lock; commits at the end, rolls back on an error."""
        with self._transaction(self._writer, self._write_lock) as connection:
            if not self._current.may_write:
                raise StoreError("Within a snapshot nothing can be written; use transaction().")
            yield connection

    def after_commit(self, deed: Callable[[], object]) -> None:
        """Does it once this thread's transaction has been committed; at once if there is none."""
        if getattr(self._current, "connection", None) is None:
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
            raise self._translate(error) from None

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
        joined: sa.Connection | None = getattr(self._current, "connection", None)
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
            self._current.may_write = engine is self._writer
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
