"""Copies of a database that is in use, and the way back, by SQLite's own backup.

https://sqlite.org/backup.html
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from keysmith.errors import (
    ConflictError,
    SchemaOutdatedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from keysmith.stores.schema import VERSION_TABLE, revisions
from keysmith.stores.sqlite_errors import translate

Progress = Callable[[int, int], None]
"""Called with the pages that are copied, and with how many there are."""

_PAGES_A_STEP = 256
_PRIVATE = 0o600


def back_up(
    source: sqlite3.Connection,
    path: Path | None,
    target: Path,
    *,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    """See `SqliteStore.backup`; `path` is that of the source, `None` for one in memory."""
    _refuse_target(path, target, overwrite=overwrite)
    mode = _PRIVATE if path is None else os.stat(path).st_mode & 0o777
    with _written_aside(target, mode) as aside:
        with (
            _translated(path),
            _one_moment(source),
            _translated(target),
            closing(_open(aside, "rw")) as copy,
        ):
            source.backup(copy, pages=_PAGES_A_STEP, progress=_reporting(progress))
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, and none beside it
            _refuse_damaged(copy, str(path or "The memory database"))
        _refuse_target(path, target, overwrite=overwrite)


@contextmanager
def sound_backup(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a backup that can be restored; it is only read."""
    if not path.is_file():
        raise StoreUnavailableError(f"There is no backup {path}. Check the path.")
    with _translated(path), closing(_open(path, "ro")) as backup:
        _refuse_damaged(backup, str(path))
        _refuse_foreign(backup, path)
        yield backup


def bring_back(
    backup: sqlite3.Connection,
    connect: Callable[[], sqlite3.Connection],
    path: Path | None,
    *,
    patience: float,
    progress: Progress | None,
) -> None:
    """Copies a backup over the whole database at `path`, in one transaction.

    `patience` is how many seconds it waits for others who write.
    """
    report = _reporting(progress, patience)
    try:
        with _translated(path), closing(connect()) as target:
            backup.backup(target, pages=_PAGES_A_STEP, progress=report, sleep=0.01)
    except StoreCorruptError:
        raise StoreCorruptError(
            f"{path} is too damaged to be written over. Stop everything that uses it, move it and "
            "the files that begin with its name away, and try again."
        ) from None


# ---------------------------------------------------------------------------- connections


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None)


@contextmanager
def _one_moment(source: sqlite3.Connection) -> Iterator[None]:
    """What is read within one transaction is of one moment, whoever writes meanwhile."""
    source.execute("BEGIN")
    try:
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
    finally:
        source.execute("ROLLBACK")


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from None


def _reporting(
    progress: Progress | None, patience: float | None = None
) -> Callable[[int, int, int], None]:
    """What SQLite's backup is to call after each step; by itself it would wait for ever."""
    moved = time.monotonic()

    def report(status: int, remaining: int, total: int) -> None:
        nonlocal moved
        if status not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            moved = time.monotonic()
            if progress is not None:
                progress(total - remaining, total)
        elif patience is not None and time.monotonic() - moved > patience:
            raise StoreUnavailableError(
                "The database is locked: somebody else has been writing for longer than the busy "
                "timeout. Try again; nothing was changed."
            )

    return report


# ---------------------------------------------------------------------------- checks


def _refuse_damaged(connection: sqlite3.Connection, what: str) -> None:
    try:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        found = [str(error)]
    if found != ["ok"]:
        raise StoreCorruptError(f"{what} is damaged ({'; '.join(found)}). Use an older backup.")


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    statement = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608  a constant  # nosec B608
    try:
        found = connection.execute(statement).fetchone()
    except sqlite3.OperationalError:
        raise StoreCorruptError(f"{path} has no tables of Keysmith's. Check the path.") from None
    if found is None or found[0] not in revisions():
        raise SchemaOutdatedError(
            f"{path} is of a release of Keysmith that is newer than this one. Upgrade the "
            "keysmith package first."
        )


def _files_of(database: Path) -> set[str]:
    """The names of the files beside a database, whether they are there or not."""
    path = os.path.realpath(database)
    return {f"{path}-{what}" for what in ("wal", "shm", "journal", "counters")}


def _refuse_target(source: Path | None, target: Path, *, overwrite: bool) -> None:
    """Raises `ConflictError` or `StoreUnavailableError` where no backup may be written."""
    # `os.path`, as what cannot be looked at does not exist for it; a `Path` would raise.
    if os.path.isdir(target):
        raise StoreUnavailableError(f"{target} is a folder. Name a file in it.")
    if source is not None and os.path.exists(target) and os.path.samefile(source, target):
        raise ConflictError(f"{target} is the database itself. Name another file.")
    if source is not None and os.path.realpath(target) in _files_of(source):
        raise ConflictError(f"{target} belongs to the database itself. Name another file.")
    for beside in (Path(f"{target}-wal"), Path(f"{target}-journal")):
        if os.path.exists(beside):
            raise ConflictError(f"{beside} belongs to another database. Name another file.")
    if os.path.exists(target) and not overwrite:
        raise ConflictError(f"{target} exists already. Name another file, or have it overwritten.")


# ---------------------------------------------------------------------------- files


@contextmanager
def _written_aside(target: Path, mode: int) -> Iterator[Path]:
    """A new file beside the target, which takes its place when it is whole and on the disk."""
    aside = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield aside
        _sync(aside, os.O_RDWR)
        os.replace(aside, target)
        with suppress(OSError):  # not every system opens folders
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        raise _about(error, target) from None
    finally:
        for left in (aside, Path(f"{aside}-journal")):
            with suppress(OSError):
                left.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _about(error: OSError, target: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError()
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreReadOnlyError(f"{target.parent} cannot be written to. Name another folder.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreUnavailableError(f"The folder {target.parent} does not exist. Create it first.")
    return StoreUnavailableError(f"{target} cannot be written: {error.strerror}.")
