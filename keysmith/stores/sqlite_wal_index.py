"""The header of the WAL index: what SQLite itself looks at to know whether anything has changed.

SQLite keeps it in memory that all processes share, the `…-shm` file, and every commit changes it: a
counter, checksums, salts. A connection whose copy of it is equal byte for byte has missed nothing
(https://sqlite.org/walformat.html#the_wal_index_header). `PRAGMA data_version` ends in the same
comparison, after four file locks and a statement: fifty times as dear.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any, Protocol

ctypes: Any
try:
    import ctypes
except ImportError:  # pragma: no cover  a Python that was built without it
    ctypes = None

HEADER_BYTES = 48
"""What a commit changes: the first of the two copies."""

_FORMAT = 3_007_000
"""The only one there has been, since SQLite 3.7.0. Of another nothing is known."""

_MAPPINGS = "/proc/self/maps"

_PATH = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'"


class Header(Protocol):
    """Memory that others write to."""

    @property
    def raw(self) -> bytes:
        """A copy of what is there now."""


def wal_index_header(connection: sqlite3.Connection) -> Header | None:
    """The header that this connection goes by; it must not be looked at once that is closed.

    It is found where SQLite has mapped it: to open the file once more, and ever to close it, would
    drop the locks that SQLite holds on it (https://sqlite.org/howtocorrupt.html, section 2.2).
    `None` where it cannot be told for sure which it is: without WAL, in a memory database, outside
    of Linux, without `ctypes`, or if a second SQLite in this process has the file open.

    Raises `sqlite3.Error`.
    """
    # The first statement that reads has SQLite map it.
    connection.execute("PRAGMA data_version").fetchone()
    # A connection without WAL has mapped nothing, but others may have, under the same name: those
    # that still have open what lay there before the database was replaced.
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        return None
    # As bytes: a path need not be UTF-8, which a text would have to be.
    [(path,)] = connection.execute(_PATH)
    addresses = _mapped(path.decode("utf-8", "surrogateescape") + "-shm") if path else []
    if len(addresses) != 1 or ctypes is None:
        return None
    header: Header = (ctypes.c_char * HEADER_BYTES).from_address(addresses[0])
    return header if int.from_bytes(header.raw[:4], sys.byteorder) == _FORMAT else None


def _mapped(path: str) -> list[int]:
    """Where in memory the beginning of this file lies."""
    try:
        with open(_MAPPINGS, encoding="utf-8", errors="surrogateescape") as lines:
            mappings = [line.rstrip("\n").split(maxsplit=5) for line in lines]
    except OSError:
        return []
    return [
        int(fields[0].partition("-")[0], 16)
        for fields in mappings
        if len(fields) == 6 and fields[5] == path and int(fields[2], 16) == 0
    ]
