"""What SQLite's errors mean, and what to do about them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from keysmith.errors import (
    ConflictError,
    KeysmithError,
    NotFoundError,
    SchemaOutdatedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)


def translate(error: BaseException, path: Path | None) -> KeysmithError:
    """The `KeysmithError` for what SQLAlchemy or the driver raised.

    Result codes: https://sqlite.org/rescode.html
    """
    cause = getattr(error, "orig", error)
    if not isinstance(cause, sqlite3.Error):
        return StoreError(f"The database failed: {type(error).__name__}.")
    code = getattr(cause, "sqlite_errorcode", None)
    where = str(path or "the memory database")
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        return ConflictError(f"There is such a row already: {_unique_columns(cause)}.")
    if str(cause) == "FOREIGN KEY constraint failed":
        return _dangling(error)
    match (code or 0) & 0xFF:
        case sqlite3.SQLITE_CANTOPEN:
            return _cannot_open(path)
        case sqlite3.SQLITE_READONLY:
            return StoreReadOnlyError(
                f"{where} is read-only. Make the file and its folder writable for this user."
            )
        case sqlite3.SQLITE_FULL:
            return StoreFullError()
        case sqlite3.SQLITE_NOTADB:
            return StoreCorruptError(f"{where} is not a SQLite database. Check the path.")
        case sqlite3.SQLITE_CORRUPT:
            return StoreCorruptError(f"{where} is damaged. Restore it from a backup.")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreUnavailableError(
                f"{where} is locked: somebody else has been writing for longer than the busy "
                "timeout. Try again, or find the transaction that stays open."
            )
        case sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreUnavailableError(f"No permission to use {where}.")
        case sqlite3.SQLITE_IOERR:
            return StoreUnavailableError(
                f"Reading or writing {where} failed ({cause.sqlite_errorname}). "
                "Check the disk and the folder; nothing was changed."
            )
        case sqlite3.SQLITE_ERROR if str(cause).startswith(("no such table", "no such column")):
            return SchemaOutdatedError(f"{cause}. Call store.migrate().")
    return StoreError(f"{where}: {getattr(cause, 'sqlite_errorname', None) or cause}.")


def _dangling(error: BaseException) -> KeysmithError:
    if (getattr(error, "statement", None) or "").startswith("DELETE"):
        return ConflictError("A row of another table refers to this. Remove that one first.")
    return NotFoundError("This refers to an object that does not exist.")


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds the lock, so that it is worth while to try again."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


def _cannot_open(path: Path | None) -> StoreError:
    if path is None:
        return StoreUnavailableError("The memory database is gone. Open a new store.")
    folder = path.parent
    if not os.path.isdir(folder):
        return StoreUnavailableError(f"The folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.X_OK):
        return StoreUnavailableError(f"No permission to enter the folder {folder}.")
    if os.path.isdir(path):
        return StoreUnavailableError(f"{path} is a folder. Name a file in it.")
    if not os.path.exists(path):
        return SchemaOutdatedError(
            f"There is no database at {path}. To create one, call store.migrate(), or run "
            "`keysmith migrate`."
        )
    if not os.access(path, os.R_OK):
        return StoreUnavailableError(f"No permission to read {path}.")
    return StoreUnavailableError(
        f"{path} cannot be opened. Check that this user may write to its folder, and that the "
        "process has file descriptors left."
    )


def _unique_columns(cause: sqlite3.Error) -> str:
    # "UNIQUE constraint failed: keysmith_policies.tenant_id, keysmith_policies.name": no values
    return str(cause).partition(": ")[2] or "a unique value"
