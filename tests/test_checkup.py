"""`check_up` finds what is wrong with a database, says what to do, and changes nothing."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from keysmith import Engine, KeyCreate, PolicyCreate, ScopeCreate, SqliteStore, StoreCorruptError
from keysmith.clock import utc_now
from keysmith.stores import sqlite_checkup
from keysmith.stores.schema import VERSION_TABLE
from keysmith.stores.sqlite_checkup import Finding, Verdict, check_up
from tests.adversity import as_nobody, as_root

ALL = (
    "files disk opening settings log lock counters schema integrity references tables strays clock"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a little of everything, that nobody has open."""
    path = tmp_path / "keys.db"
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        engine.create_scope(ScopeCreate(name="read"))
        engine.create_scope(ScopeCreate(name="books", parent="read"))
        policy = engine.create_policy(PolicyCreate(name="p"))
        key = engine.create_key(KeyCreate(name="n", policy_id=policy.id, scopes=["read"])).key
        engine.rotate_key(key.id)
    path.chmod(0o600)
    return path


def examine(path: Path | str) -> dict[str, Finding]:
    with SqliteStore(path, busy_timeout=timedelta(milliseconds=50)) as store:
        findings = check_up(store, utc_now())
    assert all(bool(each.advice) == (each.verdict is not Verdict.OK) for each in findings)
    return {each.check: each for each in findings}


def problems(path: Path | str) -> dict[str, str]:
    return {
        name: f"{each.found} | {each.advice}"
        for name, each in examine(path).items()
        if each.verdict is Verdict.PROBLEM
    }


def alter(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_all_is_well(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    findings = examine(path)
    assert " ".join(findings) == ALL
    assert {each.verdict for each in findings.values()} == {Verdict.OK}
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_memory_is_well() -> None:
    with SqliteStore(":memory:") as store:
        store.migrate()
        findings = check_up(store, utc_now())
    assert {each.verdict for each in findings} == {Verdict.OK}


@pytest.mark.usefixtures("patient")
def test_while_services_are_at_work(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        key = engine.create_key(KeyCreate(name="n"))
        engine.validate_key(key.raw_key)
        assert problems(path) == {}


def test_no_database(tmp_path: Path) -> None:
    assert problems(tmp_path / "keys.db") == {
        "opening": f"There is no database at {tmp_path / 'keys.db'}. | "
        "To create one, call store.migrate(), or run `keysmith migrate`."
    }
    assert "does not exist" in problems(tmp_path / "no" / "keys.db")["opening"]
    assert list(tmp_path.iterdir()) == []


def test_no_database_but_a_file(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    assert list(problems(path)) == ["opening"]


def test_another_schema(path: Path) -> None:
    alter(path, f"UPDATE {VERSION_TABLE} SET version_num = 'ffff'")
    found = problems(path)
    assert list(found) == ["schema"]
    assert "Upgrade the keysmith package" in found["schema"].partition(" | ")[2]
    assert "strays" not in examine(path), "there is no sense in it"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda page: page[:8] + b"\xff" * 92 + page[100:], "damaged|out of range"),
        (lambda page: page.replace(b"akey_", b"akez_"), "missing from index"),
    ],
)
def test_a_damaged_page(path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    with sqlite3.connect(path) as connection:
        [root] = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_keysmith_keys_tenant_id_id'"
        ).fetchone()
    connection.close()
    content, start, end = path.read_bytes(), (root - 1) * 4096, root * 4096
    path.write_bytes(content[:start] + damage(content[start:end]) + content[end:])
    found = problems(path)["integrity"]
    assert re.search(said, found)
    assert "Restore" in found


ORPHANS = """
    UPDATE keysmith_rotations SET key_id = substr(key_id, 1, 30)
        || CASE substr(key_id, 31) WHEN 'x' THEN 'y' ELSE 'x' END
"""

HELD_BY_OTHERS = """
    UPDATE keysmith_scopes SET parent = NULL, tenant_id = CASE
        WHEN id IN (SELECT scope_id FROM keysmith_key_scopes) THEN 'b' ELSE tenant_id END
"""

ALTERED: dict[str, tuple[str, str, str]] = {
    "orphans": ("references", ORPHANS, "in: keysmith_rotations"),
    "missing index": ("tables", "DROP INDEX ix_keysmith_keys_policy_id", "keys_policy_id"),
    "missing table": ("tables", "DROP TABLE keysmith_usage", ", keysmith_usage."),
    "policy": ("strays", "UPDATE keysmith_policies SET tenant_id = 'b'", "tenant's policy: akey_"),
    "scope": (
        "strays",
        HELD_BY_OTHERS,
        "hold another tenant's scope: akey_",
    ),
    "parent": (
        "strays",
        "UPDATE keysmith_scopes SET parent = 'gone' WHERE parent IS NOT NULL",
        "scopes below one that does not exist: kscp_",
    ),
    "clock": ("clock", "UPDATE keysmith_keys SET created_at = '2999-01-01 00:00:00'", "NTP"),
    "values": ("clock", "UPDATE keysmith_keys SET created_at = 'yesterday'", "ValueError"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_what_was_altered(path: Path, case: str) -> None:
    check, statement, said = ALTERED[case]
    alter(path, statement)
    found = problems(path)
    assert list(found) == [check]
    assert said in found[check]


def test_many_strays_are_not_all_listed(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        [policy] = engine.list_policies()
        bearers = len(engine.list_keys(policy_id=policy.id))
    for more, listed, told in ((3 - bearers, 3, False), (1, 3, True)):
        with Engine(SqliteStore(path)) as engine:
            alter(path, "UPDATE keysmith_policies SET tenant_id = 'default'")
            for _ in range(more):
                engine.create_key(KeyCreate(name="n", policy_id=policy.id))
        alter(path, "UPDATE keysmith_policies SET tenant_id = 'b'")
        found = problems(path)["strays"]
        assert found.count("akey_") == listed
        assert ("and more" in found) is told


def test_somebody_who_does_not_stop_writing(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "find the transaction" in problems(path)["lock"]
    other.execute("ROLLBACK")
    other.close()


def test_a_journal_that_is_not_wal(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM keysmith_keys").fetchone()
    assert "The journal mode is delete, not wal" in problems(path)["settings"]
    other.execute("ROLLBACK")
    other.close()
    assert problems(path) == {}


def test_settings_that_sqlite_does_not_take(path: Path) -> None:
    with SqliteStore(path) as store:
        sa.event.listen(
            store.db, "connect", lambda opened, _: opened.execute("PRAGMA foreign_keys = OFF")
        )
        findings = check_up(store, utc_now())
    [wrong] = [each for each in findings if each.verdict is Verdict.PROBLEM]
    assert (wrong.check, "foreign_keys = 0" in wrong.found) == ("settings", True)


def test_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_checkup, "SMALLEST_DISK", 2**80)
    monkeypatch.setattr(sqlite_checkup, "LARGEST_WAL", 0)
    with Engine(SqliteStore(path)) as engine:
        engine.create_key(KeyCreate(name="n"))
        findings = examine(path)
    assert findings["disk"].verdict is Verdict.PROBLEM
    assert findings["disk"].advice == "Free some space."
    assert findings["log"].verdict is Verdict.NOTE
    assert "keys.db-wal has grown to" in findings["log"].found


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2**30, "1 GiB"),
        (2**51, "2048 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert sqlite_checkup._size(size) == shown


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("mode", "verdict", "said"),
    [
        (0o640, Verdict.OK, ""),
        (0o644, Verdict.NOTE, "chmod o-r"),
        (0o646, Verdict.PROBLEM, "chmod o-w"),
    ],
)
def test_what_others_may(path: Path, mode: int, verdict: Verdict, said: str) -> None:
    path.chmod(mode)
    found = examine(path)["files"]
    assert found.verdict is verdict
    assert said in found.advice


def test_what_others_may_with_the_files_beside_it(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        engine.ensure_scopes(["a"])
        log, counters = (Path(f"{path}{suffix}") for suffix in ("-wal", "-counters"))
        log.chmod(0o644)
        found = examine(path)["files"]
        assert (found.verdict, str(log) in found.advice) == (Verdict.NOTE, True)
        counters.touch()
        counters.chmod(0o606)
        assert str(counters) in examine(path)["files"].advice
    path.parent.chmod(0o777)
    assert problems(path)["files"].startswith("Everybody may write to")
    path.parent.chmod(0o1777)
    counters.chmod(0o600)
    assert "files" not in problems(path)


def test_limits_that_cannot_be_counted(path: Path) -> None:
    Path(f"{path}-counters").write_text("something else")
    assert "Remove it" in problems(path)["counters"]
    with Engine(SqliteStore(path)) as engine, pytest.raises(StoreCorruptError):
        engine.health()


@as_root
def test_files_of_different_owners(path: Path) -> None:
    """As they are after a command that was run as root."""
    with Engine(SqliteStore(path)) as engine:
        engine.list_keys()
        os.chown(path, 65534, 65534)
        found = problems(path)
    assert "different owners" in found["files"]
    assert "run commands as that user" in found["files"]


@as_root
def test_files_that_this_user_cannot_use(open_folder: Path, path: Path) -> None:
    copy = open_folder / "keys.db"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o644)
    with as_nobody():
        found = problems(copy)
    assert "This user cannot read and write: keys.db." in found["files"]
    assert "user that runs the service" in found["files"]
