"""Backups of a database in use are whole and of one moment; restoring one is all or nothing."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from keysmith import (
    ConflictError,
    Engine,
    KeyCreate,
    KeyRevokedError,
    SchemaOutdatedError,
    SqliteStore,
    StoreCorruptError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from keysmith.stores.schema import VERSION_TABLE, revisions
from tests.adversity import as_nobody, as_root, limited

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture
def engine(tmp_path: Path, patient: None) -> Iterator[Engine]:
    store = SqliteStore(tmp_path / "keys.db", busy_timeout=timedelta(milliseconds=50))
    store.migrate()
    with Engine(store) as engine:
        with store.transaction():  # more pages than one step copies, so that there is a middle
            for number in range(100):
                engine.create_key(KeyCreate(name=f"{number}", meta={"text": "x" * 15_000}))
        yield engine


@pytest.fixture
def store(engine: Engine) -> SqliteStore:
    assert isinstance(engine.store, SqliteStore)
    return engine.store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup.db"


def count(path: Path) -> int:
    with SqliteStore(path) as opened:
        return opened.keys.count()


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.startswith("keys.db")}


# ---------------------------------------------------------------------------- backing up


def test_a_backup_is_of_one_moment(engine: Engine, store: SqliteStore, target: Path) -> None:
    steps = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        engine.create_key(KeyCreate(name="meanwhile"))

    store.backup(target, progress=progress)
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert engine.count_keys() == 100 + len(steps)
    assert names(target.parent) == {"backup.db"}, "it is one file"
    with sqlite3.connect(target) as opened:
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert opened.execute("SELECT count(*) FROM keysmith_keys").fetchone() == (100,)
    opened.close()


def test_a_backup_is_as_private_as_the_database(store: SqliteStore, target: Path) -> None:
    (target.parent / "keys.db").chmod(0o640)
    store.backup(str(target))
    assert target.stat().st_mode & 0o777 == 0o640
    with SqliteStore(":memory:") as memory:
        memory.migrate()
        memory.backup(target, overwrite=True)
    assert target.stat().st_mode & 0o777 == 0o600
    assert count(target) == 0


def test_what_exists_is_not_overwritten_by_chance(store: SqliteStore, target: Path) -> None:
    target.write_text("Dear diary")
    with pytest.raises(ConflictError, match="exists already"):
        store.backup(target)
    assert target.read_text() == "Dear diary"

    def progress(done: int, total: int) -> None:
        assert target.read_text() == "Dear diary", "until the copy is whole"

    store.backup(target, overwrite=True, progress=progress)
    assert count(target) == 100


def test_a_file_that_appears_meanwhile_is_not_overwritten(store: SqliteStore, target: Path) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        store.backup(target, progress=lambda *_: target.touch())
    assert target.read_bytes() == b""
    assert names(target.parent) == {"backup.db"}


def test_targets_that_cannot_be(store: SqliteStore, tmp_path: Path) -> None:
    database, link = tmp_path / "keys.db", tmp_path / "link"
    link.symlink_to(database)
    (tmp_path / "other.db-wal").touch()
    for beside in ("wal", "shm", "journal", "counters"):
        with pytest.raises(ConflictError, match="belongs to the database itself"):
            store.backup(f"{database}-{beside}", overwrite=True)
    for target, error, message in (
        (database, ConflictError, "is the database itself"),
        (link, ConflictError, "is the database itself"),
        (tmp_path / "other.db", ConflictError, r"other\.db-wal belongs to another"),
        (tmp_path, StoreUnavailableError, "is a folder"),
        (tmp_path / "no" / "x.db", StoreUnavailableError, "folder .*no does not exist"),
        (database / "x.db", StoreUnavailableError, "does not exist"),
        (tmp_path / ("x" * 300), StoreUnavailableError, "cannot be written: File name too long"),
        (":memory:", StoreUnavailableError, "A backup is a file"),
    ):
        with pytest.raises(error, match=message):
            store.backup(target, overwrite=True)
    assert names(tmp_path) == {"link", "other.db-wal"}
    assert store.keys.count() == 100


def test_a_backup_that_fails_leaves_nothing(
    engine: Engine, store: SqliteStore, target: Path
) -> None:
    target.write_text("the backup of yesterday")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.backup(target, overwrite=True, progress=interrupt)
    with (
        limited(resource.RLIMIT_FSIZE, 100_000),
        pytest.raises(StoreUnavailableError, match="disk"),
    ):
        store.backup(target, overwrite=True)
    assert target.read_text() == "the backup of yesterday"
    assert names(target.parent) == {"backup.db"}
    engine.create_key(KeyCreate(name="n"))
    store.backup(target, overwrite=True)
    assert count(target) == 101


def damage(path: Path, first: int = 2) -> None:
    content = bytearray(path.read_bytes())
    for page in range(first * 4096, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)


def test_a_damaged_database_makes_no_backup(store: SqliteStore, target: Path) -> None:
    store.close()
    damage(target.parent / "keys.db")
    with SqliteStore(target.parent / "keys.db") as opened:
        with pytest.raises(StoreCorruptError, match=r"keys\.db is damaged"):
            opened.backup(target)
    assert names(target.parent) == set()


@as_root
def test_a_folder_that_may_not_be_written_to(memory: SqliteStore, open_folder: Path) -> None:
    open_folder.chmod(0o755)
    with as_nobody(), pytest.raises(StoreReadOnlyError, match="Name another folder"):
        memory.backup(open_folder / "backup.db")
    assert names(open_folder) == set()


# ---------------------------------------------------------------------------- restoring


def test_everybody_sees_what_was_restored(engine: Engine, store: SqliteStore, target: Path) -> None:
    created = engine.create_key(KeyCreate(name="n"))
    with Engine(SqliteStore(target.parent / "keys.db")) as running:
        running.validate_key(created.raw_key)
        store.backup(target)
        running.revoke_key(created.key.id)
        later = running.create_key(KeyCreate(name="later"))
        with pytest.raises(KeyRevokedError):
            running.validate_key(created.raw_key)
        steps: list[int] = []
        with running.store.snapshot():
            assert running.count_keys() == 102
            store.restore(target, progress=lambda done, _: steps.append(done))
            assert running.count_keys() == 102, "a snapshot is of one moment"
        assert len(steps) > 1
        assert running.validate_key(created.raw_key).key.id == created.key.id
        assert running.count_keys() == 101
        assert later.key.id not in [key.id for key in running.list_keys(limit=5)]
        running.create_key(KeyCreate(name="n"))
    assert count(target) == 101, "the backup is only read"


def test_restoring_creates_the_database(store: SqliteStore, target: Path, tmp_path: Path) -> None:
    store.backup(target)
    for where in (tmp_path / "new.db", ":memory:"):
        with SqliteStore(where) as new:
            new.restore(target)
            assert new.keys.count() == 100


def test_what_was_restored_is_as_private_as_the_backup(
    store: SqliteStore, target: Path, tmp_path: Path
) -> None:
    store.backup(target)
    for mode in (0o600, 0o400):
        target.chmod(mode)
        with SqliteStore(tmp_path / f"new-{mode}.db") as new:
            new.restore(target)
            found = list(tmp_path.glob(f"new-{mode}.db*"))
            assert {file.stat().st_mode & 0o777 for file in found} == {0o600}


def test_an_older_backup_is_migrated(store: SqliteStore, target: Path) -> None:
    store.backup(target)
    subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", revisions()[0]],
        cwd=ROOT,
        env={**os.environ, "KEYSMITH_DATABASE_URL": f"sqlite:///{target}"},
        check=True,
        capture_output=True,
    )
    with SqliteStore(target) as older, pytest.raises(SchemaOutdatedError):
        older.keys.count()
    store.restore(target)
    assert store.keys.count() == 100


def altered(target: Path, *statements: str) -> None:
    with sqlite3.connect(target) as opened:
        for statement in statements:
            opened.execute(statement)
    opened.close()


def test_what_is_no_backup_changes_nothing(store: SqliteStore, target: Path) -> None:
    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            store.restore(target)
        assert store.keys.count() == 100

    refused(StoreUnavailableError, "There is no backup")
    target.write_text("Dear diary, " * 1000)
    refused(StoreCorruptError, r"backup\.db is not a SQLite database")
    target.unlink()
    altered(target, "CREATE TABLE diary (day)")
    refused(StoreCorruptError, "no tables of Keysmith's")
    target.unlink()
    store.backup(target)
    altered(target, f"UPDATE {VERSION_TABLE} SET version_num = 'ffff'")
    refused(SchemaOutdatedError, "newer than this one. Upgrade")
    altered(target, f"DELETE FROM {VERSION_TABLE}")
    refused(SchemaOutdatedError, "Upgrade")
    store.backup(target, overwrite=True)
    damage(target)
    refused(StoreCorruptError, r"backup\.db is damaged .*Use an older backup")


def test_restoring_that_is_interrupted_changes_nothing(
    engine: Engine, store: SqliteStore, target: Path
) -> None:
    store.backup(target)
    engine.create_key(KeyCreate(name="n"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.restore(target, progress=interrupt)
    assert engine.count_keys() == 101
    engine.create_key(KeyCreate(name="n"))


def test_restoring_waits_for_others_but_not_for_ever(store: SqliteStore, target: Path) -> None:
    store.backup(target)
    other = sqlite3.connect(
        target.parent / "keys.db", isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match=r"locked: .*nothing was changed"):
        store.restore(target)
    with SqliteStore(target.parent / "keys.db") as patient:
        soon = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
        soon.start()
        patient.restore(target)
    soon.join()
    other.close()


def test_a_damaged_database_is_written_over(store: SqliteStore, target: Path) -> None:
    path = target.parent / "keys.db"
    store.backup(target)
    store.close()
    damage(path)
    with SqliteStore(path) as opened:
        with pytest.raises(StoreCorruptError):
            opened.keys.list()
        opened.restore(target)
        assert opened.keys.count() == len(opened.keys.list()) == 100


def test_what_is_no_database_is_not_written_over(store: SqliteStore, target: Path) -> None:
    path = target.parent / "keys.db"
    store.backup(target)
    store.close()
    path.write_text("Dear diary, " * 1000)
    with SqliteStore(path) as opened:
        with pytest.raises(StoreCorruptError, match="Stop everything that uses it, move it"):
            opened.restore(target)
        assert path.read_text().startswith("Dear diary")
        for file in path.parent.glob("keys.db*"):
            file.unlink()
        opened.restore(target)
        assert opened.keys.count() == 100


def test_a_store_that_was_closed_neither_backs_up_nor_restores(
    store: SqliteStore, target: Path
) -> None:
    store.backup(target)
    store.close()
    before = (target.parent / "keys.db").read_bytes()
    for call in (store.restore, partial(store.backup, overwrite=True)):
        with pytest.raises(StoreUnavailableError, match="closed"):
            call(target)
    assert (target.parent / "keys.db").read_bytes() == before
