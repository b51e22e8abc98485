"""What can befall a database file: the named error, what its message says to do, and afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from keysmith import (
    ConflictError,
    Engine,
    InvalidKeyError,
    KeyCreate,
    PolicyCreate,
    SchemaOutdatedError,
    SqliteStore,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from keysmith.stores import credentials
from keysmith.stores.schema import VERSION_TABLE
from keysmith.stores.sqlite_connections import let_go_of_broken
from tests.adversity import as_nobody, as_root, limited

pytestmark = pytest.mark.usefixtures("patient")

Call = Callable[[], object]


class Service:
    """An engine on a file, as a service has it: with a key that it has validated before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()
        self.store.migrate()
        limited = self.engine.create_policy(PolicyCreate(name="p", rate_limit=10**6))
        created = self.engine.create_key(KeyCreate(name="n", policy_id=limited.id))
        self.key, self.raw_key = created.key, created.raw_key
        self.works()

    def validate(self) -> None:
        self.engine.validate_key(self.raw_key)

    def read(self) -> None:
        self.engine.get_key(self.key.id)

    def write(self) -> None:
        self.engine.delete_key(self.engine.create_key(KeyCreate(name="another")).key.id)

    def works(self) -> None:
        for call in (self.validate, self.read, self.write, self.engine.health, self.store.migrate):
            call()

    def fails(self, error: type[StoreError], advice: str, *calls: Call) -> None:
        for call in calls or (self.validate, self.read, self.write):
            with pytest.raises(error, match=advice) as failed:
                call()
            assert type(failed.value) is error
            assert self.raw_key not in str(failed.value)

    def open(self) -> None:
        self.store = SqliteStore(self.path, busy_timeout=timedelta(milliseconds=50))
        self.engine = Engine(self.store)

    def close(self) -> None:
        with suppress(StoreError):  # usage that it could not write down
            self.engine.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Service]]:
    with ExitStack() as stack:

        def start(path: Path) -> Service:
            service = Service(path)
            stack.callback(service.close)
            return service

        yield start


@pytest.fixture
def service(tmp_path: Path, serve: Callable[[Path], Service]) -> Service:
    return serve(tmp_path / "keys.db")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone is noticed by the very next validation, and not within a second."""
    monkeypatch.setattr(credentials, "LOOK_EVERY", 0.0)


def files(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if file.name.startswith(path.name)]


# ---------------------------------------------------------------------------- gone


def test_a_file_that_vanishes_and_comes_back(
    at_once: None, service: Service, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in files(service.path):
        file.rename(elsewhere / file.name)
    service.fails(SchemaOutdatedError, r"no database at .*keys\.db\. .*store\.migrate\(\)")
    service.fails(StoreUnavailableError, r"store\.migrate\(\)", service.engine.health)
    assert not service.path.exists(), "looking creates nothing"
    for file in elsewhere.iterdir():
        file.rename(tmp_path / file.name)
    service.works()


def test_a_folder_that_vanishes(
    at_once: None, serve: Callable[[Path], Service], tmp_path: Path
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    service = serve(folder / "keys.db")
    folder.rename(tmp_path / "renamed")
    service.fails(StoreUnavailableError, r"folder .*inner does not exist\. Create it")
    service.fails(StoreUnavailableError, "does not exist", service.store.migrate)
    (tmp_path / "renamed").rename(folder)
    service.works()


def test_a_file_that_is_replaced_is_the_one_that_counts(
    at_once: None, service: Service, tmp_path: Path
) -> None:
    other = Service(tmp_path / "other.db")
    other.close()
    for file in files(service.path):
        file.unlink()
    os.replace(other.path, service.path)
    service.store.ping()
    with pytest.raises(InvalidKeyError):
        service.validate()
    assert service.engine.validate_key(other.raw_key).key.id == other.key.id
    assert [key.id for key in service.engine.list_keys()] == [other.key.id]
    service.write()


def test_it_is_noticed_within_a_second(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = credentials.monotonic()
    monkeypatch.setattr(credentials, "monotonic", lambda: now + ahead)
    ahead = 10.0
    service.validate()
    for file in files(service.path):
        file.unlink()
    ahead += 0.9
    service.validate()
    ahead += 0.2
    service.fails(SchemaOutdatedError, "no database", service.validate)


# ---------------------------------------------------------------------------- permissions


OK, READ_ONLY, UNAVAILABLE = None, StoreReadOnlyError, StoreUnavailableError


@as_root
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "expected", "advice"),
    [
        (0o666, 0o777, [OK, OK, OK], ""),
        (0o444, 0o777, [OK, OK, READ_ONLY], "is read-only. Make the file and its folder writable"),
        (0o000, 0o777, [UNAVAILABLE] * 3, "No permission to read"),
        (0o666, 0o700, [UNAVAILABLE] * 3, "No permission to enter the folder"),
        (0o666, 0o555, [READ_ONLY] * 3, "is read-only. Make the file and its folder writable"),
    ],
)
def test_permissions(
    open_folder: Path,
    serve: Callable[[Path], Service],
    file_mode: int,
    folder_mode: int,
    expected: list[type[StoreError] | None],
    advice: str,
) -> None:
    service = serve(open_folder / "keys.db")
    service.close()
    service.open()
    for file in files(service.path):
        file.chmod(file_mode)
    open_folder.chmod(folder_mode)
    with as_nobody():
        for call, error in zip(
            [service.engine.health, service.read, service.write], expected, strict=True
        ):
            if error is None:
                call()
            else:
                service.fails(error, advice, call)
    open_folder.chmod(0o777)
    for file in files(service.path):
        file.chmod(0o666)
    with as_nobody():
        service.works()


@as_root
def test_what_was_opened_while_the_file_was_read_only_is_opened_anew(
    open_folder: Path, serve: Callable[[Path], Service]
) -> None:
    service = serve(open_folder / "keys.db")
    service.close()
    service.open()
    for file in files(service.path):
        file.chmod(0o444)
    with as_nobody():
        service.read()
    for file in files(service.path):
        file.chmod(0o666)
    with as_nobody():
        service.write()


@as_root
def test_no_permission_to_create(open_folder: Path) -> None:
    with SqliteStore(":memory:") as warm_up:  # what is imported late may be out of reach later
        warm_up.migrate()
    open_folder.chmod(0o755)
    with SqliteStore(open_folder / "keys.db") as store:
        with as_nobody(), pytest.raises(StoreUnavailableError, match="Make its folder writable"):
            store.migrate()
        assert list(open_folder.iterdir()) == []
        open_folder.chmod(0o777)
        with as_nobody():
            store.migrate()
            store.ping()


# ---------------------------------------------------------------------------- damage


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "overwritten":
        for page in range(4096, len(content), 4096):
            content[page : page + 128] = b"\xff" * 128
    elif how == "no database":
        content = bytearray(b"Dear diary, " * 1000)
    copy = path.with_name("damaged")
    copy.write_bytes(content)
    os.replace(copy, path)


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        ("truncated", "is damaged. Restore it from a backup"),
        ("overwritten", "is damaged. Restore it from a backup"),
        ("no database", "is not a SQLite database. Check the path"),
    ],
)
def test_damage(at_once: None, service: Service, tmp_path: Path, how: str, advice: str) -> None:
    with service.store.db.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = Path(shutil.copy(service.path, tmp_path / "backup"))
    for file in files(service.path):
        if file != service.path and not file.name.endswith("-counters"):
            file.unlink()
    damaged(service.path, how)
    service.fails(StoreCorruptError, advice)
    service.fails(StoreCorruptError, advice, service.store.migrate)
    os.replace(backup, service.path)
    service.works()


def test_an_empty_file_has_no_tables_yet(tmp_path: Path) -> None:
    (tmp_path / "keys.db").touch()
    with SqliteStore(tmp_path / "keys.db") as store:
        store.ping()
        with pytest.raises(SchemaOutdatedError, match=r"no Keysmith tables yet.*store\.migrate"):
            store.keys.list()
        store.migrate()
        assert store.keys.list() == []


# ---------------------------------------------------------------------------- limits


def test_a_disk_that_fails(service: Service) -> None:
    with limited(resource.RLIMIT_FSIZE, 100):
        service.fails(
            StoreUnavailableError, r"SQLITE_IOERR_WRITE\)\. Check the disk", service.write
        )
        service.read()
    service.works()


def test_a_disk_that_is_full(service: Service) -> None:
    with service.store.db.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def shrink(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(100):
            service.engine.create_key(KeyCreate(name=f"{number}", meta={"text": "x" * 4000}))

    service.store.db.dispose()
    sa.event.listen(service.store.db, "connect", shrink)
    service.fails(StoreFullError, "disk is full. Free some space.*nothing was changed", fill)
    count = service.engine.count_keys()
    service.fails(StoreFullError, "Free some space", fill)
    assert service.engine.count_keys() - count < 100
    service.validate()
    sa.event.remove(service.store.db, "connect", shrink)
    service.store.db.dispose()
    service.works()


def test_too_many_open_files(service: Service) -> None:
    service.store.db.dispose()
    with ExitStack() as stack, limited(resource.RLIMIT_NOFILE, 200):
        with suppress(OSError):
            while True:
                stack.enter_context(open(os.devnull))
        service.fails(StoreUnavailableError, "file descriptors left", service.read, service.write)
        service.validate()  # from memory: its connection is open already
    service.works()


# ---------------------------------------------------------------------------- others at work


def test_somebody_who_does_not_stop_writing(service: Service) -> None:
    other = sqlite3.connect(service.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    advice = "is locked: .* Try again, or find the transaction that stays open"
    service.fails(StoreUnavailableError, advice, service.write, service.store.migrate)
    service.validate()
    service.read()
    other.execute("ROLLBACK")
    other.close()
    service.works()


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (None, r"at revision none, older than .*Call store\.migrate\(\)"),
        ("ffff", "newer than this release of Keysmith knows. Upgrade the keysmith package"),
    ],
)
def test_another_schema(
    service: Service, serve: Callable[[Path], Service], version: str | None, advice: str
) -> None:
    def at(version: str | None) -> None:
        with sqlite3.connect(service.path) as other:
            other.execute(f"DELETE FROM {VERSION_TABLE}")
            if version is not None:
                other.execute(f"INSERT INTO {VERSION_TABLE} VALUES (?)", (version,))
        other.close()

    with sqlite3.connect(service.path) as other:
        [(newest,)] = other.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()
    other.close()
    service.read()
    at(version)
    with Engine(SqliteStore(service.path)) as late:
        for call in (late.list_keys, lambda: late.validate_key(service.raw_key)):
            service.fails(SchemaOutdatedError, advice, call)
        late.health()
        service.read()  # who was there before the change goes on with what it knows
        at(newest)
        assert late.validate_key(service.raw_key)


def test_a_version_that_is_two(service: Service) -> None:
    with sqlite3.connect(service.path) as other:
        other.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('ffff')")
    other.close()
    service.fails(SchemaOutdatedError, r"Call store\.migrate\(\)", service.store.migrate)


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_IOERR_READ, True),
        (sqlite3.SQLITE_READONLY_DBMOVED, True),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, False),
        (None, False),
    ],
)
def test_what_a_connection_is_not_used_after(code: int | None, broken: bool) -> None:
    error = sqlite3.OperationalError()
    if code is not None:
        error.sqlite_errorcode = code
    context: Any = SimpleNamespace(original_exception=error, is_disconnect=False)
    let_go_of_broken(context)
    assert context.is_disconnect is broken


def test_a_column_that_somebody_has_removed(service: Service) -> None:
    with sqlite3.connect(service.path) as other:
        other.execute("ALTER TABLE keysmith_keys DROP COLUMN description")
    other.close()
    service.fails(SchemaOutdatedError, "no such column", service.read)


def test_a_host_that_denies(service: Service) -> None:
    def deny(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)

    service.store.db.dispose()
    sa.event.listen(service.store.db, "connect", deny)
    service.fails(StoreUnavailableError, "No permission to use", service.read, service.write)
    sa.event.remove(service.store.db, "connect", deny)
    service.store.db.dispose()
    service.works()


@pytest.mark.parametrize("action", ["RESTRICT", "NO ACTION"])
def test_a_table_of_the_hosts_that_refers_to_a_key(service: Service, action: str) -> None:
    with service.store.db.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE host (key_id REFERENCES keysmith_keys (id) ON DELETE {action})"
        )
        connection.exec_driver_sql("INSERT INTO host VALUES (?)", (service.key.id,))
    with pytest.raises(ConflictError, match=r"refers to this\. Remove that one first"):
        service.engine.delete_key(service.key.id)
    service.validate()
    with service.store.db.begin() as connection:
        connection.exec_driver_sql("DELETE FROM host")
    service.engine.delete_key(service.key.id)


def test_what_sqlalchemy_refuses_shows_no_values(service: Service) -> None:
    with pytest.raises(StoreError, match="StatementError") as failed, service.store.snapshot():
        with service.store._database.read() as connection:
            connection.execute(
                sa.text("SELECT :secret").bindparams(
                    sa.bindparam("secret", "sk_live_1", type_=sa.DateTime())
                )
            )
    assert "sk_live_1" not in str(failed.value)
