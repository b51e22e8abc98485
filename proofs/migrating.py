"""Processes that are killed while they migrate one database together."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from proofs.kills import Killable

ROOT = Path(__file__).parent.parent
TOGETHER = 3
LONGEST = 0.08
"""Seconds until a kill, at most; about what a migration takes."""

Picture = tuple[list[tuple[str]], list[int]]
"""The schema, and how many rows there are of each thing."""

TABLES = ("keys", "key_scopes", "rotations", "usage")


def migrate(path: Path, tell: Connection) -> None:
    """Migrates, and says when."""
    store = SqliteStore(path)
    tell.send("begun")
    store.migrate()
    tell.send("done")


def kill_while_migrating(
    folder: Path, times: int, chance: random.Random, *, filled: bool = True
) -> int:
    """Kills so many that were at it, on databases without rows and with; tells how many."""
    full, empty = folder / "full.db", folder / "empty.db"
    whole = {empty: _whole(empty)}
    if filled:
        _fill(full)
        _go_back(full)
        whole[full] = _whole(full)
    killed = 0
    for number in range(10 * times):
        if killed >= times:
            break
        path, like = folder / f"migrated-{number}.db", chance.choice(list(whole))
        _copy(like, path)
        killed += _kill(path, _picture(path), whole[like], chance)
        _migrate(path)
        assert _picture(path) == whole[like], "who came after them could not finish"
    assert killed >= times, "they were always faster"
    return killed


def _whole(like: Path) -> Picture:
    """What becomes of such a database when nobody is killed."""
    path = like.with_name(f"whole-{like.name}")
    _copy(like, path)
    _migrate(path)
    return _picture(path)


def _copy(like: Path, path: Path) -> None:
    if like.exists():
        shutil.copy(like, path)


def _migrate(path: Path) -> None:
    with SqliteStore(path) as store:
        store.migrate()


def _kill(path: Path, before: Picture, after: Picture, chance: random.Random) -> int:
    migrating = [Killable(migrate, path) for _ in range(TOGETHER)]
    migrating[0].wait()
    killed, finished = 0, False
    for each in migrating:
        told = each.kill(chance.uniform(0, LONGEST / TOGETHER))
        killed += told == ["begun"]
        finished |= "done" in told
        found = _picture(path)
        assert found == after or (found == before and not finished), "half of a migration"
    return killed


def _picture(path: Path) -> Picture:
    if not path.exists():
        return [], []
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        schema = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        if not schema:
            return [], []
        counts = [
            connection.execute(f"SELECT count(*) FROM keysmith_{table}").fetchone()[0]  # noqa: S608
            for table in TABLES
        ]
        return schema, counts


def _fill(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        engine.ensure_scopes(["a"])
        for number in range(200):
            created = engine.create_key(KeyCreate(name=str(number), scopes=["a"]))
            engine.rotate_key(created.key.id)
            engine.record_usage(
                UsageCreate(key_id=created.key.id, endpoint="/", method="GET", status_code=200)
            )


def _go_back(path: Path) -> None:
    """To the revision before the newest, with all rows."""
    subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", "-1"],
        cwd=ROOT,
        env={**os.environ, "KEYSMITH_DATABASE_URL": f"sqlite:///{path}"},
        check=True,
        capture_output=True,
    )
