"""Connections that know whether the file they have open is still the one at its path.

A file that is removed or replaced lives on for those who have it open: they would go on answering
from it, and write what nobody will ever read.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.engine import ExceptionContext

_BREAKING = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}


class FileConnection(sqlite3.Connection):
    """A connection to a file, or to a database in memory, which is never moved."""

    path: Path | None = None
    _opened: tuple[int, int] | None = None
    _read_only = False

    @property
    def moved(self) -> bool:
        """Whether there is another file by now, or none, where this one was opened."""
        return self.path is not None and _identity(self.path) != self._opened

    def shares_file_with(self, other: FileConnection) -> bool:
        """Whether both have the file open that is there now."""
        return self._opened is not None and self._opened == other._opened and not self.moved

    @property
    def may_write_by_now(self) -> bool:
        """Whether it was opened while the file could only be read, and that is over."""
        return self._read_only and self.path is not None and os.access(self.path, os.W_OK)


def connect(uri: str, path: Path | None, *, timeout: float) -> FileConnection:
    """Opens a connection that begins no transaction by itself. Raises `sqlite3.Error`."""
    # Looked at first: what is replaced meanwhile is then noticed, and not missed.
    opened = None if path is None else _identity(path)
    read_only = path is not None and not os.access(path, os.W_OK)
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=FileConnection,
    )
    connection.path, connection._opened = path, opened  # noqa: SLF001
    # Looked at before and after: that may change, too.
    read_only |= path is not None and not os.access(path, os.W_OK)
    connection._read_only = read_only  # noqa: SLF001
    return connection


def let_go_of_broken(context: ExceptionContext) -> None:
    """For an engine's errors: has the pool open new connections where old ones may stay broken.

    What was opened while the file could only be read, for instance, never learns to write.
    """
    code = getattr(context.original_exception, "sqlite_errorcode", None) or 0
    if code & 0xFF in _BREAKING:
        context.is_disconnect = True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
