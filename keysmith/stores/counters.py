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
from contextlib import suppress
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from time import monotonic, sleep
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

    def _try_lock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _unlock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        with suppress(OSError):  # it was not locked
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

    def _read(file: int, length: int, offset: int) -> bytes:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)

    def _write(file: int, data: bytes, offset: int) -> int:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)

    def _resemble(file: int, database: str) -> None:
        """Files of one folder have the permissions of the folder."""

    _FLAGS = os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

    _LOCK_AT_ONCE = LOCK_EX | LOCK_NB

    def _try_lock(file: int) -> None:
        flock(file, _LOCK_AT_ONCE)

    def _unlock(file: int) -> None:
        flock(file, LOCK_UN)

    def _resemble(file: int, database: str) -> None:
        """Lets all who may write the database count, also where root came first.

        Nobody else may even read: it takes no more to hold the lock, and so to stop all counting.
        """
        with suppress(OSError):
            like = os.stat(database)
            writers = like.st_mode & 0o222
            os.fchmod(file, 0o600 | writers | writers << 1)
            if os.geteuid() == 0:
                os.fchown(file, like.st_uid, like.st_gid)

    _read = os.pread
    _write = os.pwrite
    _FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC

T = TypeVar("T")

CELLS = 80
"""Numbers in a record."""

PATIENCE = timedelta(seconds=10)
"""How long an update waits for others before it gives up."""

AT_ONCE = 0.001
"""Seconds that an event loop can wait: most who count are done by then."""

LOOK_INTERVAL = 1.0
"""Seconds after which an update looks whether the file is still the one that others use."""

_CELL_BYTES = 8 * CELLS
_NAME_BYTES = 16
_RECORD_BYTES = _NAME_BYTES + _CELL_BYTES
_PAGE = 4096
_PAGES_IN_RUN = 3
_PAGES_IN_FIRST_SEGMENT = 256
_POSITIONS = [
    page + record
    for page in range(0, _PAGES_IN_RUN * _PAGE, _PAGE)
    for record in range(0, _PAGE - _RECORD_BYTES + 1, _RECORD_BYTES)
]
"""Where the records of a run begin. None crosses a page: a process can be killed between two."""

_MAGIC = b"keysmith counters 1\n".ljust(64, b"\0")
_REMEMBERED = 100_000
_FREE = bytes(_NAME_BYTES)
_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 2e-3


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

    def ping(self) -> None:
        """See `Counters.ping`."""

    def close(self) -> None:
        """Nothing to let go of."""


class FileCounters:
    """Records in a file, for all processes of this machine.

    The file is a hash table that only grows: segments, each twice as long as the one before, in
    which a key's record lies within a short run of pages that begins at its hash. What a machine
    that loses power forgets is what its kernel had not written yet: half a minute of counting, as a
    rule.

    Whoever removes or replaces the file resets what was counted. Processes that had it open notice
    within `LOOK_INTERVAL`, and go on in the file that is there now.
    """

    def __init__(self, database: Path, *, patience: timedelta = PATIENCE) -> None:
        """Counts in `…-counters` beside the database file, whatever links lead to that."""
        self._database = database
        self._path = database
        self._patience = patience.total_seconds()
        self._file = -1
        self._look_due = 0.0
        self._places: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
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
        return self._in_turn(key_id, change, self._patience)

    def update_at_once(self, key_id: str, change: Callable[[array[int]], T]) -> T:
        """See `Counters`."""
        return self._in_turn(key_id, change, AT_ONCE)

    def ping(self) -> None:
        """See `Counters.ping`. It waits for nobody, and a file is made when it is needed."""
        path = _beside(self._database)
        try:
            file = os.open(path, _FLAGS & ~os.O_CREAT)
            try:
                self._is_ours(_read(file, len(_MAGIC), 0))
            finally:
                os.close(file)
        except FileNotFoundError:
            return
        except OSError as error:
            failure = _translate(error, path)
            # Where the database cannot be written either, nothing at all is to be.
            if not isinstance(failure, StoreReadOnlyError) or os.access(self._database, os.W_OK):
                raise failure from None

    def close(self) -> None:
        """Lets go of the file. It may be used again, and is then opened anew."""
        with self._thread_lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._look_due = 0.0
        self._places.clear()

    def _in_turn(self, key_id: str, change: Callable[[array[int]], T], patience: float) -> T:
        """Waits so long in all: for other threads, and then for other processes."""
        lock = self._thread_lock
        if not lock.acquire(False):  # a timeout takes a tenth of all this
            deadline = monotonic() + patience
            if not lock.acquire(True, patience):
                raise StoreUnavailableError(
                    f"{self._path} is locked: another thread waits for it already. Find the "
                    "process that counts in it and is stopped."
                )
            patience = deadline - monotonic()
        try:
            return self._update(key_id, change, patience)
        finally:
            lock.release()

    def _update(self, key_id: str, change: Callable[[array[int]], T], patience: float) -> T:
        try:
            if monotonic() >= self._look_due:
                self._look(patience)
            file = self._file
            try:
                self._lock(file, patience)
                offset, name = self._places.get(key_id) or self._place(file, key_id)
                record = _read(file, _RECORD_BYTES, offset)
                if not record.startswith(name):  # somebody has cut the file, or written to it
                    offset, name = self._place(file, key_id)
                    record = _read(file, _RECORD_BYTES, offset)
                before = record[_NAME_BYTES:].ljust(_CELL_BYTES, b"\0")
                cells = array("q", before)
                result = change(cells)
                after = cells.tobytes()
                if after != before:
                    _write_all(file, after, offset + _NAME_BYTES)
                return result
            finally:
                _unlock(file)
        except OSError as error:
            raise _translate(error, self._path) from None

    # ------------------------------------------------------------------ the file

    def _look(self, patience: float) -> None:
        """Opens the file, unless the one that is open is the one that others would open."""
        if self._file >= 0 and not self._is_current():
            self._let_go()
        if self._file < 0:
            self._open(patience)
        self._look_due = monotonic() + LOOK_INTERVAL

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _open(self, patience: float) -> None:
        self._path = _beside(self._database)
        file = os.open(self._path, _FLAGS, 0o600)
        try:
            self._lock(file, patience)
            self._claim(file)
        except BaseException:
            os.close(file)
            raise
        _unlock(file)
        self._file = file

    def _claim(self, file: int) -> None:
        """Makes a new file ours, and makes sure that an old one is."""
        if not self._is_ours(_read(file, len(_MAGIC), 0)):
            _resemble(file, os.path.realpath(self._database))
            _write_all(file, _MAGIC, 0)

    def _is_ours(self, begins: bytes) -> bool:
        """Whether a file that begins so is one already; raises if it is somebody else's."""
        # It may have been begun by somebody who did not come far, or by a machine that lost power.
        if begins.strip(b"\0") and not _MAGIC.startswith(begins):
            raise StoreCorruptError(
                f"{_beside(self._database)} is not a file of Keysmith's counters. Remove it; "
                "limits and quotas then count from zero."
            )
        return begins == _MAGIC

    def _lock(self, file: int, patience: float) -> None:
        try:
            _try_lock(file)
        except (BlockingIOError, PermissionError):
            self._wait_for_lock(file, patience)

    def _wait_for_lock(self, file: int, patience: float) -> None:
        """Waits for all others, but not for ever: one of them may have been stopped."""
        pause, deadline = _FIRST_PAUSE, monotonic() + patience
        while True:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                return _try_lock(file)
            except (BlockingIOError, PermissionError):
                if monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"{self._path} is locked: another process that counts in it does not go "
                        "on. Find the one that is stopped."
                    ) from None

    # ------------------------------------------------------------------ records

    def _place(self, file: int, key_id: str) -> tuple[int, bytes]:
        """Where the key's record lies, and what it begins with; it is made if there is none."""
        name = blake2b(key_id.encode(), digest_size=_NAME_BYTES).digest()
        start, pages = _PAGE, _PAGES_IN_FIRST_SEGMENT
        while True:
            page = int.from_bytes(name[:8], "little") % (pages - _PAGES_IN_RUN + 1)
            run_offset, size = start + page * _PAGE, _PAGES_IN_RUN * _PAGE
            run = _read(file, size, run_offset).ljust(size, b"\0")
            for position in _POSITIONS:
                found = run[position : position + _NAME_BYTES]
                if found == _FREE:
                    _write_all(file, name + bytes(_CELL_BYTES), run_offset + position)
                if found in (_FREE, name):
                    return self._remember(key_id, run_offset + position, name)
            start, pages = start + pages * _PAGE, pages * 2

    def _remember(self, key_id: str, offset: int, name: bytes) -> tuple[int, bytes]:
        self._places[key_id] = offset, name
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)
        return offset, name


def _beside(database: Path) -> Path:
    return Path(f"{os.path.realpath(database)}-counters")


def _write_all(file: int, data: bytes, offset: int) -> None:
    if _write(file, data, offset) != len(data):
        raise StoreFullError


def _translate(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError()
    if error.errno == errno.EACCES and not os.access(path.parent, os.X_OK):
        return StoreUnavailableError(f"No permission to enter the folder {path.parent}.")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StoreReadOnlyError(
            f"{path} cannot be written, and limits and quotas are counted there. "
            "Make it and its folder writable for this user."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreUnavailableError(f"The folder {path.parent} is gone.")
    return StoreUnavailableError(f"{path} cannot be used: {error.strerror}.")
