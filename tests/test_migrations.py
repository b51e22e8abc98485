"""Migrations: from the command and from the store, together, alone, and half way."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from keysmith import (
    Engine,
    KeyCreate,
    SchemaOutdatedError,
    SqliteStore,
    StoreCorruptError,
    metadata,
    without_keysmith,
)
from keysmith.stores import migrations
from keysmith.stores.schema import VERSION_TABLE, revisions, scripts_folder
from keysmith.testing.contract.samples import a_key, a_rotation, scopes, usage

ROOT = Path(__file__).parent.parent
TABLES = {*metadata.tables, VERSION_TABLE}


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def alembic(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "KEYSMITH_DATABASE_URL": f"sqlite:///{path}"},
        capture_output=True,
        text=True,
        check=False,
    )


def fill(path: Path) -> None:
    with SqliteStore(path) as store:
        for _ in range(3):
            key = a_key(store)
            a_rotation(store, key)
            store.usages.record(usage(key))
        scopes(store, "read")
        store.scopes.assign_to_key(key.id, ["read"])


@pytest.mark.parametrize("filled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_up_check_down_and_up_again(tmp_path: Path, filled: bool) -> None:
    path = tmp_path / "keys.db"
    assert alembic(path, "upgrade", "head").returncode == 0
    assert tables(path) == TABLES
    if filled:
        fill(path)
    for arguments, expected in (
        (("check",), TABLES),
        (("downgrade", "base"), {VERSION_TABLE}),
        (("upgrade", "head"), TABLES),
    ):
        result = alembic(path, *arguments)
        assert result.returncode == 0, result.stderr
        assert tables(path) == expected
    with SqliteStore(path) as store:
        assert store.keys.list() == []


def test_the_command_and_the_store_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_new", {})
    by_command, by_store, by_store_again = (tmp_path / f"{number}.db" for number in range(3))
    alembic(by_command, "upgrade", "head")
    for path in (by_store, by_store_again):
        with SqliteStore(path) as store:
            store.migrate()
    dumps = []
    for path in (by_command, by_store, by_store_again):
        with sqlite3.connect(path) as connection:
            entries = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY rowid")
            dumps.append([*entries, *connection.iterdump()])
        connection.close()
    assert dumps[0] == dumps[1] == dumps[2]
    assert alembic(by_store_again, "check").returncode == 0


def test_revision_autogenerate_finds_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    alembic(path, "upgrade", "head")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE host_table (id INTEGER PRIMARY KEY)")
        connection.execute("DROP INDEX ix_keysmith_keys_policy_id")
    connection.close()
    result = alembic(path, "check")
    assert result.returncode != 0
    assert "ix_keysmith_keys_policy_id" in result.stdout + result.stderr
    assert "host_table" not in result.stdout + result.stderr


HOST = sa.MetaData()
sa.Table("host_table", HOST, sa.Column("id", sa.Integer, primary_key=True))


def test_what_a_host_autogenerates_leaves_our_tables_alone_where_it_is_told_to(
    store: SqliteStore,
) -> None:
    def written(**options: object) -> str:
        with store.db.begin() as connection:
            options = {"target_metadata": HOST, **options}
            context = MigrationContext.configure(connection, opts=options)
            steps = produce_migrations(context, HOST).upgrade_ops
            return "" if steps is None else render_python_code(steps)

    dropped = set(re.findall(r"drop_table\('(\w+)'\)", written()))
    assert dropped == TABLES, "what happens without it"
    revision = written(include_name=without_keysmith)
    assert "create_table('host_table'" in revision
    assert "keysmith_" not in revision


def test_sql_can_be_written_for_a_database_out_of_reach(tmp_path: Path) -> None:
    result = alembic(tmp_path / "keys.db", "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("CREATE TABLE") == len(TABLES)
    assert not (tmp_path / "keys.db").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    result = alembic(tmp_path / "no" / "keys.db", "upgrade", "head")
    assert result.returncode != 0
    assert "folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_revision_needs_nothing_of_ours() -> None:
    """What a new revision would say: in SQLAlchemy's own types, so that it outlives ours."""
    with SqliteStore(":memory:") as empty, empty.db.connect() as connection:
        context = MigrationContext.configure(connection, opts=migrations.options())
        made = produce_migrations(context, metadata)
    code = render_python_code(made.upgrade_ops, render_item=migrations.options()["render_item"])
    assert code.count("op.create_table") == len(metadata.tables)
    assert 'sa.Column("rate_limit_window", sa.BigInteger()' in code.replace("'", '"')
    assert 'sa.Column("expires_at", sa.DateTime(timezone=True)' in code.replace("'", '"')
    assert "keysmith." not in code
    assert "sqlmodel" not in code


def test_file_names_are_in_the_order_of_the_revisions() -> None:
    walked = ScriptDirectory(str(scripts_folder())).walk_revisions()
    assert list(revisions()) == [script.revision for script in walked][::-1]


MIGRATE = """
import sys
from datetime import timedelta
from keysmith import SqliteStore
SqliteStore(sys.argv[1], busy_timeout=timedelta(minutes=2)).migrate()
"""


def test_ten_processes_at_once_on_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, str(path)], stderr=subprocess.PIPE)
        for _ in range(10)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert tables(path) == TABLES
    with SqliteStore(path) as store, store.db.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.scalar(sa.text(f"SELECT count(*) FROM {VERSION_TABLE}")) == 1


def test_one_that_dies_half_way_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.db"
    copy = tmp_path / "scripts"
    (copy / "versions").mkdir(parents=True)
    for file in (scripts_folder() / "versions").glob("*.py"):
        (copy / "versions" / file.name).write_text(file.read_text())
    (copy / "versions" / "999901010000_dead_dies.py").write_text(
        f"""
from alembic import op
revision, down_revision = "dead", {revisions()[-1]!r}
def upgrade():
    op.execute("CREATE TABLE keysmith_half (id INTEGER)")
    op.execute("INSERT INTO keysmith_policies SELECT * FROM keysmith_nothing")
"""
    )
    with SqliteStore(path) as store:
        store.migrate()
        fill(path)
        before = dump(path)
        monkeypatch.setattr(migrations, "scripts_folder", lambda: copy)
        with pytest.raises(SchemaOutdatedError, match="keysmith_nothing"):
            store.migrate()
        assert dump(path) == before
        monkeypatch.undo()
        store.migrate()
        a_key(store)
    with SqliteStore(tmp_path / "new.db") as store:
        monkeypatch.setattr(migrations, "scripts_folder", lambda: copy)
        with pytest.raises(SchemaOutdatedError):
            store.migrate()
    assert tables(tmp_path / "new.db") == set()


def test_rebuilding_a_table_does_not_cascade_and_must_not_orphan(
    store: SqliteStore,
) -> None:
    key = a_key(store)
    a_rotation(store, key)
    with store.migration() as connection:
        connection.exec_driver_sql("CREATE TABLE keysmith_copy AS SELECT * FROM keysmith_keys")
        connection.exec_driver_sql("DROP TABLE keysmith_keys")
        connection.exec_driver_sql("ALTER TABLE keysmith_copy RENAME TO keysmith_keys")
        connection.exec_driver_sql("CREATE UNIQUE INDEX x ON keysmith_keys (id)")
        connection.exec_driver_sql("CREATE UNIQUE INDEX y ON keysmith_keys (key_hash)")
    assert len(store.rotations.list()) == 1
    with pytest.raises(StoreCorruptError, match="keysmith_rotations"):
        with store.migration() as connection:
            connection.exec_driver_sql("DELETE FROM keysmith_keys")
    assert store.keys.count() == 1
    with store.db.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_older_and_newer_schemas_are_named(store: SqliteStore) -> None:
    store.migrate()
    for version, advice in (("0000", "Upgrade the keysmith package"), (None, "migrate")):
        with store.db.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM {VERSION_TABLE}")
            if version:
                connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('{version}')")
        store._database.schema_changed()
        with pytest.raises(SchemaOutdatedError, match=advice):
            store.keys.list()
    with store.db.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('0000')")
    with pytest.raises(SchemaOutdatedError, match="Upgrade the keysmith package"):
        store.migrate()


def test_the_hosts_logging_is_left_alone(tmp_path: Path) -> None:
    root, alembics = logging.getLogger(), logging.getLogger("alembic")
    before = (
        root.level,
        root.handlers[:],
        alembics.level,
        alembics.handlers[:],
        logging.root.disabled,
    )
    host = logging.getLogger("host")
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    assert before == (
        root.level,
        root.handlers[:],
        alembics.level,
        alembics.handlers[:],
        logging.root.disabled,
    )
    assert not host.disabled


def test_a_migrated_store_may_be_used_at_once_and_migrated_again(store: SqliteStore) -> None:
    created = Engine(store).create_key(KeyCreate(name="n"))
    store.migrate()
    assert Engine(store).validate_key(created.raw_key).key.id == created.key.id
