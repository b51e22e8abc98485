"""Counting together: one record of numbers a key, shared by every process that uses the store.

A limit holds only if all processes add to the same number, exactly, at once. The database could
keep that number, but a commit a request would be slow, and would cost every other process what it
has cached. So the numbers live in a file beside the database: a record is read, judged and written
within a file lock, in a few microseconds. A process that is killed holds nothing back, since it
never took more than it used, and whoever starts again finds what was counted.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from keysmith.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from keysmith.forks import renew_after_fork

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_LOCK, 1)

    def _unlock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

    def _read(file: int, length: int, offset: int) -> bytes:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)

    def _write(file: int, data: bytes, offset: int) -> int:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)

    _FLAGS = os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)

    _read = os.pread
    _write = os.pwrite
    _FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC

T = TypeVar("T")

CELLS = 80
"""Numbers in a record."""

_CELL_BYTES = 8 * CELLS
_NAME_BYTES = 16
_RECORD_BYTES = _NAME_BYTES + _CELL_BYTES
_MAGIC = b"keysmith counters 1\n".ljust(64, b"\0")
_FIRST_SEGMENT = 1024
_RUN = 16
_REMEMBERED = 100_000
_FREE = bytes(_NAME_BYTES)


class MemoryCounters:
    """Records in this process alone: for a database in memory."""

    def __init__(self) -> None:
        self._records: dict[str, array[int]] = {}
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """A lock of one's own, in a forked child."""
        self._lock = threading.Lock()

    def update(self, key_id: str, change: Callable[[array[int]], T]) -> T:
        """See `Counters.update`."""
        with self._lock:
            cells = array("q", self._records.get(key_id) or bytes(_CELL_BYTES))
            result = change(cells)
            self._records[key_id] = cells
            return result

    def close(self) -> None:
        """Nothing to let go of."""


class FileCounters:
    """Records in a file, for all processes of this machine.

    The file is a hash table that only grows: segments, each twice as long as the one before, in
    which a key's record lies within a short run that begins at its hash. What a machine that loses
    power forgets is what its kernel had not written yet, a few seconds at most.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._offsets: OrderedDict[str, int] = OrderedDict()
        self._thread_lock = threading.Lock()
        renew_after_fork(self)

    def renew(self) -> None:
        """A file and a lock of one's own, in a forked child: parent and child would share both."""
        self._thread_lock = threading.Lock()
        self.close()

    def update(self, key_id: str, change: Callable[[array[int]], T]) -> T:
        """Lets `change` see and alter the key's numbers; what it raises leaves them as they were.

        Nobody else, in this process or another, sees them meanwhile. Raises `StoreError` subclasses
        where the file cannot be used.
        """
        try:
            with self._thread_lock:
                file = self._file if self._file >= 0 else self._open()
                _lock(file)
                try:
                    offset = self._offsets.get(key_id) or self._place(file, key_id)
                    before = _read(file, _CELL_BYTES, offset)
                    cells = array("q", before)
                    result = change(cells)
                    after = cells.tobytes()
                    if after != before and _write(file, after, offset) != _CELL_BYTES:
                        raise StoreFullError
                    return result
                finally:
                    _unlock(file)
        except OSError as error:
            raise _translate(error, self._path) from None

    def close(self) -> None:
        """Lets go of the file. It may be used again, and is then opened anew."""
        with self._thread_lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
            self._offsets.clear()

    def _open(self) -> int:
        file = os.open(self._path, _FLAGS, 0o666)
        try:
            self._claim(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return file

    def _claim(self, file: int) -> None:
        """Makes a new file ours, and makes sure that an old one is."""
        _lock(file)
        try:
            found = _read(file, len(_MAGIC), 0)
            if not found:
                _write(file, _MAGIC, 0)
        finally:
            _unlock(file)
        if found not in (b"", _MAGIC):
            raise StoreCorruptError(
                f"{self._path} is not a file of Keysmith's counters. Remove it; limits and quotas "
                "then count from zero."
            )

    def _place(self, file: int, key_id: str) -> int:
        """Where the key's numbers lie, in a record that is claimed for it if it has none."""
        name = blake2b(key_id.encode(), digest_size=_NAME_BYTES).digest()
        start, length = len(_MAGIC), _FIRST_SEGMENT
        while True:
            place = int.from_bytes(name[:8], "little") % (length - _RUN + 1)
            run_offset = start + place * _RECORD_BYTES
            size = _RUN * _RECORD_BYTES
            run = _read(file, size, run_offset).ljust(size, b"\0")
            for position in range(0, size, _RECORD_BYTES):
                found = run[position : position + _NAME_BYTES]
                if found == _FREE:
                    record = name + bytes(_CELL_BYTES)
                    if _write(file, record, run_offset + position) != _RECORD_BYTES:
                        raise StoreFullError
                if found in (_FREE, name):
                    return self._remember(key_id, run_offset + position + _NAME_BYTES)
            start, length = start + length * _RECORD_BYTES, length * 2

    def _remember(self, key_id: str, offset: int) -> int:
        self._offsets[key_id] = offset
        if len(self._offsets) > _REMEMBERED:
            self._offsets.popitem(last=False)
        return offset


def _translate(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError()
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StoreReadOnlyError(
            f"{path} cannot be written, and limits and quotas are counted there. "
            "Make it and its folder writable for this user."
        )
    return StoreUnavailableError(f"{path} cannot be used: {error.strerror}.")
