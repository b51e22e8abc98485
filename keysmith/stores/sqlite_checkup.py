"""A look at a database as a whole: what is as it should be, what is not, and what to do."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from keysmith.errors import KeysmithError
from keysmith.models import metadata
from keysmith.stores.schema import check_schema
from keysmith.stores.sqlite import SqliteStore
from keysmith.stores.sqlite_errors import translate

SMALLEST_DISK = 64 * 2**20
"""Bytes: with less than that left, writing may soon fail."""

LARGEST_WAL = 256 * 2**20
"""Bytes: a log that has grown larger is not being written back."""

CLOCK_TOLERANCE = timedelta(minutes=1)


class Verdict(StrEnum):
    """How it stands."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has shown."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    """What to do about it; empty where all is well."""


def check_up(store: SqliteStore, now: datetime) -> list[Finding]:
    """Looks at everything about a database, and changes nothing. `now` is what the clock says.

    What cannot be looked at is a finding, too; nothing is raised.
    """
    findings: list[Finding] = []
    for checks in (_OUTSIDE, _INSIDE, _ROWS):
        for check in checks:
            findings += _attempt(check, store, now)
        if any(each.verdict is Verdict.PROBLEM and each.check in _GATES for each in findings):
            break
    return findings


Check = Callable[[SqliteStore, datetime], Iterator[Finding]]


def _attempt(check: Check, store: SqliteStore, now: datetime) -> list[Finding]:
    try:
        return list(check(store, now))
    except KeysmithError as error:
        failure = error
    except sa.exc.SQLAlchemyError as error:
        failure = translate(error, store.path)
    except (OSError, ValueError) as error:
        failure = KeysmithError(
            f"This cannot be looked at ({type(error).__name__}). Look at the files and their "
            "permissions; if a value is not as Keysmith writes it, restore a backup."
        )
    # Our messages say what is wrong, and then what to do.
    found, stop, advice = str(failure).partition(". ")
    return [_problem(check.__name__.removeprefix("_"), found + stop.rstrip(), advice)]


def _ok(check: str, found: str) -> Finding:
    return Finding(check, Verdict.OK, found)


def _problem(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Verdict.PROBLEM, found, advice)


def _size(count: float) -> str:
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "bytes"
    while count >= 1024 and (larger := next(units, None)):
        count, unit = count / 1024, larger
    return f"{round(count, 1):g} {unit}"


def _pragma(store: SqliteStore, pragma: str) -> list[Any]:
    with store.db.connect() as connection:
        return list(connection.exec_driver_sql(f"PRAGMA {pragma}"))


# ---------------------------------------------------------------------------- files


def _files(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    path = store.path
    if path is None or not path.exists():
        return
    others = [Path(f"{path}{suffix}") for suffix in ("-wal", "-shm", "-counters")]
    files = [path, *(file for file in others if file.exists())]
    closed = [file.name for file in files if not os.access(file, os.R_OK | os.W_OK)]
    closed += [str(folder) for folder in [path.parent] if not os.access(folder, os.W_OK | os.X_OK)]
    owners = {file.stat().st_uid for file in files}
    writable, readable = (
        [file for file in files if file.stat().st_mode & bit]
        for bit in (stat.S_IWOTH, stat.S_IROTH)
    )
    folder = path.parent.stat().st_mode
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        writable.append(path.parent)
    if closed:
        yield _problem(
            "files",
            f"This user cannot read and write: {', '.join(closed)}.",
            "Give them, and the folder, to the user that runs the service.",
        )
    elif len(owners) > 1:
        yield _problem(
            "files",
            f"The files {_names(files)} have different owners.",
            "Give them all to the user that runs the service, and run commands as that user.",
        )
    elif writable:
        yield _problem(
            "files",
            f"Everybody may write to {_names(writable)}.",
            f"chmod o-w {shlex.join(map(str, writable))}",
        )
    elif readable:
        yield Finding(
            "files",
            Verdict.NOTE,
            f"Everybody on this machine may read {_names(readable)}.",
            f"If others have accounts on it: chmod o-r {shlex.join(map(str, readable))}",
        )
    else:
        yield _ok("files", f"{path}, {_size(path.stat().st_size)}.")


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)


def _disk(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    if store.path is None or not store.path.parent.is_dir():
        return
    free = shutil.disk_usage(store.path.parent).free
    if free < SMALLEST_DISK:
        yield _problem("disk", f"Only {_size(free)} are left on the disk.", "Free some space.")
    else:
        yield _ok("disk", f"{_size(free)} are free.")


# ---------------------------------------------------------------------------- the database


def _opening(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    store.ping()
    yield _ok("opening", f"It answers; SQLite {sqlite3.sqlite_version}.")


def _counters(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    store.counters.ping()
    yield _ok("counters", "Limits and quotas can be counted.")


def _settings(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    wanted = {"foreign_keys": 1, "synchronous": 2, "trusted_schema": 0}
    found = {name: _pragma(store, name)[0][0] for name in wanted}
    wrong = [f"{name} = {found[name]}" for name in wanted if found[name] != wanted[name]]
    mode = _pragma(store, "journal_mode")[0][0]
    if wrong:
        yield _problem(
            "settings",
            f"SQLite does not take our settings: {', '.join(wrong)}.",
            "Use a Python whose SQLite is built with foreign keys.",
        )
    elif store.path is not None and mode != "wal":
        yield _problem(
            "settings",
            f"The journal mode is {mode}, not wal: readers and writers wait for each other.",
            "Put the database on a local disk, and open it once while nobody else uses it.",
        )
    else:
        yield _ok("settings", f"Journal mode {mode}, synchronous, foreign keys enforced.")


def _log(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    log = Path(f"{store.path}-wal")
    size = log.stat().st_size if store.path is not None and log.exists() else 0
    if size > LARGEST_WAL:
        yield Finding(
            "log",
            Verdict.NOTE,
            f"{log.name} has grown to {_size(size)}.",
            "Look for a transaction that stays open; the log shrinks once it has ended.",
        )
    else:
        yield _ok("log", f"{_size(size)} are not written back yet.")


def _lock(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    with store.db.connect().execution_options(keysmith_synchronous="FULL") as connection:
        connection.begin().rollback()
    yield _ok("lock", "Writing is possible.")


def _schema(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    with store.db.connect() as connection:
        check_schema(connection)
    yield _ok("schema", "At the newest revision.")


def _integrity(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    found = [str(row[0]) for row in _pragma(store, "integrity_check(5)")]
    if found == ["ok"]:
        yield _ok("integrity", "Every page is as it should be.")
    else:
        yield _problem("integrity", "; ".join(found), "Restore a backup: keysmith restore.")


def _references(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    broken = sorted({str(row[0]) for row in _pragma(store, "foreign_key_check")})
    if broken:
        yield _problem(
            "references",
            f"Rows refer to what does not exist, in: {', '.join(broken)}.",
            "Somebody has changed the database with foreign keys off. Delete those rows, which "
            "PRAGMA foreign_key_check lists, or restore a backup.",
        )
    else:
        yield _ok("references", "Every row refers to what exists.")


# ---------------------------------------------------------------------------- the rows


def _tables(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    wanted = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    wanted |= {*metadata.tables}
    with store.db.connect() as connection:
        found = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
    missing = sorted(wanted - found)
    if missing:
        yield _problem(
            "tables",
            f"Tables or indexes are missing: {', '.join(missing)}.",
            "Restore a backup: keysmith restore.",
        )
    else:
        yield _ok("tables", f"All {len(metadata.tables)} tables, with their indexes.")


def _strays(store: SqliteStore, _now: datetime) -> Iterator[Finding]:
    keys, policies, scopes, held = (
        metadata.tables[f"keysmith_{name}"] for name in ("keys", "policies", "scopes", "key_scopes")
    )
    parents = scopes.alias()
    orphaned = sa.select(scopes.c.id).outerjoin(
        parents,
        (parents.c.name == scopes.c.parent) & (parents.c.tenant_id == scopes.c.tenant_id),
    )
    queries = {
        "keys that bear another tenant's policy": sa.select(keys.c.id)
        .join(policies, policies.c.id == keys.c.policy_id)
        .where(policies.c.tenant_id != keys.c.tenant_id),
        "keys that hold another tenant's scope": sa.select(keys.c.id)
        .join(held, held.c.key_id == keys.c.id)
        .join(scopes, scopes.c.id == held.c.scope_id)
        .where(scopes.c.tenant_id != keys.c.tenant_id),
        "scopes below one that does not exist": orphaned.where(
            scopes.c.parent.is_not(None), parents.c.id.is_(None)
        ),
    }
    with store.db.connect() as connection:
        strays = {what: list(connection.scalars(query.limit(4))) for what, query in queries.items()}
    for what, ids in strays.items():
        if ids:
            shown = ", ".join(ids[:3]) + (" and more" if len(ids) > 3 else "")
            yield _problem(
                "strays",
                f"There are {what}: {shown}.",
                "Somebody has changed the database past Keysmith. Give them what is their own.",
            )
    if not any(strays.values()):
        yield _ok("strays", "Keys, policies and scopes keep to their tenants.")


def _clock(store: SqliteStore, now: datetime) -> Iterator[Finding]:
    written = [metadata.tables[f"keysmith_{name}"].c.created_at for name in ("keys", "rotations")]
    with store.db.connect() as connection:
        times = [connection.scalar(sa.select(sa.func.max(column))) for column in written]
    newest = max(filter(None, times), default=now)
    if newest > now + CLOCK_TOLERANCE:
        yield _problem(
            "clock",
            f"It is {now:%Y-%m-%d %H:%M:%S} UTC by the clock, but rows were written at "
            f"{newest:%Y-%m-%d %H:%M:%S}.",
            "Set the clock, and keep it by NTP: expiry, grace and limits go by it.",
        )
    else:
        yield _ok("clock", f"{now:%Y-%m-%d %H:%M:%S} UTC.")


_OUTSIDE = (_files, _disk, _opening)
_INSIDE = (_settings, _log, _lock, _counters, _schema, _integrity, _references)
_ROWS = (_tables, _strays, _clock)
_GATES = {"opening", "schema"}
"""Where these fail, there is no sense in looking further."""
