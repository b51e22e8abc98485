"""What is special about SQLite: files, locks, processes, and errors that say what to do."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import Session, select

from keysmith import (
    ConflictError,
    Engine,
    Key,
    KeyCreate,
    SchemaOutdatedError,
    SqliteStore,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UsageCreate,
    UsageRecord,
    open_store,
)
from keysmith.ids import IdPrefix, new_id
from keysmith.stores.sqlite import OLDEST_SQLITE
from keysmith.testing.contract.samples import a_key
from tests.conftest import START

BRIEF = timedelta(milliseconds=50)
as_root = os.geteuid() == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.db"
    with SqliteStore(path) as store:
        store.migrate()
    return path


def test_pragmas(path: Path) -> None:
    with SqliteStore(path) as store, store.db.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "trusted_schema")
        }
    assert found == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 2,
        "trusted_schema": 0,
    }


def test_all_but_usage_is_on_the_disk_when_a_call_returns(path: Path) -> None:
    """A commit that waits for the disk runs with `synchronous=FULL`, which is 2."""
    with Engine(SqliteStore(path)) as engine:
        found: list[int] = []

        def look(connection: sa.Connection) -> None:
            found.append(connection.connection.execute("PRAGMA synchronous").fetchone()[0])

        sa.event.listen(engine.store.db, "commit", look)
        key = engine.create_key(KeyCreate(name="n")).key
        engine.ensure_scopes(["read"])
        engine.assign_scopes(key.id, ["read"])
        engine.rotate_key(key.id)
        engine.revoke_key(key.id)
        with engine.store.transaction():
            engine.create_key(KeyCreate(name="m"))
        engine.store.keys.update_last_used(key.id, engine.now())
        engine.purge_usage(engine.now())
        assert len(found) >= 7
        assert found[:7] == [2] * 7
        found.clear()
        usage = UsageCreate(key_id=key.id, endpoint="/", method="GET", status_code=200)
        engine.record_usage(usage)
        engine.flush()
        assert 1 in found


def test_no_log_shows_the_rows_that_are_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "sqlalchemy")  # it looks at that when an engine is made
    with SqliteStore(path) as store:
        key = a_key(store)
        assert store.keys.get(key.id).key_hash == key.key_hash
        assert "FROM keysmith_keys" in caplog.text
        assert key.key_hash not in caplog.text


def test_paths_may_hold_anything(tmp_path: Path) -> None:
    for name in ("a b", "a?b#c%20d", "ключ", "a'b;c"):
        with SqliteStore(str(tmp_path / name)) as store:
            store.migrate()
            a_key(store)
        assert (tmp_path / name).stat().st_size > 0


def test_relative_paths_stay_where_they_were_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SqliteStore("keys.db") as store:
        monkeypatch.chdir("/")
        store.migrate()
    assert (tmp_path / "keys.db").exists()


@pytest.mark.parametrize("target", ["", "a\0b", "sqlite:///keys.db", "postgresql://h/d"])
def test_what_is_no_path_is_refused(target: str) -> None:
    with pytest.raises(StoreUnavailableError):
        SqliteStore(target)


def test_urls(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    with open_store(url) as store:
        store.migrate()
        assert repr(store) == f"SqliteStore({str(tmp_path / 'keys.db')!r})"
    for memory in ("sqlite://", "sqlite:///:memory:"):
        with open_store(memory) as store:
            store.migrate()
            assert repr(store) == "SqliteStore(':memory:')"
    for wrong in ("keys.db", "postgresql://u:secret@h/d", "sqlite://host/x.db", "", "::"):
        with pytest.raises(StoreUnavailableError) as refused:
            open_store(wrong)
        assert "secret" not in str(refused.value)


def test_a_memory_store_is_its_own(memory: SqliteStore) -> None:
    a_key(memory)
    with SqliteStore(":memory:") as other:
        other.migrate()
        assert other.keys.count() == 0
        with Session(other.db) as session:
            assert session.exec(select(Key)).all() == []


def test_an_old_sqlite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 35, 0))
    with pytest.raises(StoreUnavailableError, match="SQLite"):
        SqliteStore(":memory:")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", OLDEST_SQLITE)
    SqliteStore(":memory:").close()


# ---------------------------------------------------------------------------- errors


def test_missing_folder(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "no" / "keys.db") as store:
        for call in (store.migrate, store.ping, store.keys.list):
            with pytest.raises(StoreUnavailableError, match=r"folder .*no does not exist"):
                call()
    assert not (tmp_path / "no").exists()


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with SqliteStore(tmp_path) as store, pytest.raises(StoreUnavailableError, match="is a folder"):
        store.ping()


def test_missing_file_is_not_created_by_looking(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "keys.db") as store:
        with pytest.raises(SchemaOutdatedError, match=r"store\.migrate"):
            store.keys.list()
        with pytest.raises(StoreUnavailableError, match=r"store\.migrate"):
            store.ping()
        assert list(tmp_path.iterdir()) == []
        store.migrate()
        store.ping()
        assert store.keys.list() == []


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" * 50])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys.db"
    file.write_bytes(content)
    with SqliteStore(file) as store:
        for call in (store.ping, store.migrate, store.keys.list):
            with pytest.raises(StoreCorruptError, match=f"^{re.escape(str(file))} is "):
                call()
    assert file.read_bytes() == content


def test_a_damaged_page(path: Path) -> None:
    with SqliteStore(path) as store:
        for _ in range(200):
            a_key(store)
    content = bytearray(path.read_bytes())
    for page in range(2 * 4096, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)
    with SqliteStore(path) as store, pytest.raises(StoreCorruptError, match="backup"):
        store.keys.list()


def test_a_value_that_was_never_written_by_us(path: Path) -> None:
    with SqliteStore(path) as store:
        a_key(store)
        with sqlite3.connect(path) as direct:
            direct.execute("UPDATE keysmith_keys SET created_at = 'yesterday'")
        direct.close()
        with pytest.raises(StoreCorruptError, match="keysmith_keys"):
            store.keys.list()


def test_full_disk(path: Path) -> None:
    with SqliteStore(path) as store:
        a_key(store)
        with store.db.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

        def shrink(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        store.db.dispose()
        sa.event.listen(store.db, "connect", shrink)
        with pytest.raises(StoreFullError, match="disk is full"):
            for _ in range(1000):
                a_key(store, description="x" * 2000)
        sa.event.remove(store.db, "connect", shrink)
        store.db.dispose()
        a_key(store)


READ_ONLY = """
import os, sys
from keysmith import SqliteStore, StoreError
from keysmith.testing.contract.samples import a_key
with SqliteStore(":memory:") as warm_up:  # what is imported late may be out of reach later
    warm_up.migrate()
    a_key(warm_up)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = SqliteStore(sys.argv[1])
for call in (store.ping, store.keys.list, lambda: a_key(store), store.migrate):
    try:
        call()
        print("ok")
    except StoreError as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(not as_root, reason="takes root to become somebody else")
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "expected"),
    [
        (0o666, 0o777, ["ok", "ok", "ok", "ok"]),
        (0o444, 0o777, ["ok", "ok", "StoreReadOnlyError", "ok"]),  # there is nothing to migrate
        (0o600, 0o777, ["StoreUnavailableError"] * 4),
        (0o666, 0o700, ["StoreUnavailableError"] * 4),
    ],
)
def test_permissions(
    path: Path, file_mode: int, folder_mode: int, expected: list[str], open_folder: Path
) -> None:
    shutil.copy(path, open_folder / "keys.db")
    (open_folder / "keys.db").chmod(file_mode)
    open_folder.chmod(folder_mode)
    result = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(open_folder / "keys.db")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == expected, result.stderr


def test_a_store_that_was_closed(path: Path) -> None:
    store = SqliteStore(path)
    store.ping()
    store.close()
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.keys.list()
    memory = SqliteStore(":memory:")
    memory.migrate()
    memory.close()
    memory.close()
    with pytest.raises(StoreUnavailableError):
        memory.keys.list()


def test_statements_of_ones_own_fail_in_sqlalchemys_words(path: Path) -> None:
    with SqliteStore(path) as store, pytest.raises(StoreError), store.transaction():
        with store._database.read() as connection:
            connection.exec_driver_sql("SELECT nonsense(1)")


def test_a_table_that_is_gone(path: Path) -> None:
    with SqliteStore(path) as store:
        store.keys.list()
        with sqlite3.connect(path) as direct:
            direct.execute("DROP TABLE keysmith_usage")
        direct.close()
        with pytest.raises(SchemaOutdatedError, match="keysmith_usage"):
            store.usages.count()


# ---------------------------------------------------------------------------- locks


@contextmanager
def somebody_else_writing(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_readers_do_not_wait_for_a_writer_and_writers_say_what_they_wait_for(path: Path) -> None:
    with SqliteStore(path, busy_timeout=BRIEF) as store:
        with somebody_else_writing(path):
            assert store.keys.list() == []
            with pytest.raises(StoreUnavailableError, match="locked"):
                a_key(store)
        a_key(store)


def test_a_writer_has_its_turn_as_soon_as_the_other_is_done(path: Path) -> None:
    holding = threading.Event()

    def hold() -> None:
        with somebody_else_writing(path):
            holding.set()
            threading.Event().wait(BRIEF.total_seconds())

    with SqliteStore(path) as store:
        other = threading.Thread(target=hold)
        other.start()
        assert holding.wait(60)
        a_key(store)
        other.join()


def test_a_row_that_there_is_already_is_told_without_its_values(path: Path) -> None:
    with SqliteStore(path) as store:
        usage = UsageRecord(
            id=new_id(IdPrefix.USAGE, START),
            key_id=a_key(store).id,
            endpoint="/secret",
            method="GET",
            status_code=200,
            created_at=START,
        )
        store.usages.record(usage)
        with pytest.raises(ConflictError, match=r"already: keysmith_usage\.id\.$"):
            store.usages.record(UsageRecord(**usage.model_dump()))


def test_a_snapshot_sees_one_moment(path: Path) -> None:
    with SqliteStore(path) as store:
        a_key(store)
        with store.snapshot():
            assert store.keys.count() == 1
            other = threading.Thread(target=a_key, args=(store,))
            other.start()
            other.join()
            assert store.keys.count() == 1
        assert store.keys.count() == 2


def test_a_snapshot_is_for_reading(memory: SqliteStore) -> None:
    with memory.snapshot(), pytest.raises(StoreError, match="snapshot"):
        a_key(memory)
