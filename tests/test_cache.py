"""The cache of validations: what is in memory is never the past, never too much, never changed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sqlmodel import Session, select

from keysmith import (
    Engine,
    InsufficientScopeError,
    InvalidKeyError,
    Key,
    KeyCreate,
    KeyRevokedError,
    KeysmithError,
    KeyState,
    KeySuspendedError,
    KeyUpdate,
    MethodNotAllowedError,
    Policy,
    PolicyCreate,
    SqliteStore,
    StoreError,
    StoreUnavailableError,
    UsageCreate,
)
from keysmith.models.frozen import FrozenDict, FrozenList, freeze
from tests.conftest import TurnableClock, mistyped
from tests.elsewhere import Elsewhere

pytestmark = pytest.mark.usefixtures("patient")
linux = pytest.mark.skipif(sys.platform != "linux", reason="others cannot tell whose a commit is")

KEY_SQL = "UPDATE keysmith_keys SET state = ? WHERE id = ?"
ANY_CHANGE = "UPDATE keysmith_keys SET description = description || '.'"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has such a folder: thousands of commits need no disk."""
    shared_memory = Path("/dev/shm")
    where = shared_memory if os.access(shared_memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where, prefix="keysmith-") as folder:
        yield Path(folder) / "keys.db"


@pytest.fixture
def on_file(path: Path) -> Iterator[Engine]:
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        yield engine


def create(engine: Engine, **fields: Any) -> tuple[str, str]:
    created = engine.create_key(KeyCreate(name="production", **fields))
    return created.key.id, created.raw_key


def outcome(engine: Engine, raw_key: str, **request: Any) -> str:
    try:
        engine.validate_key(raw_key, **request)
    except KeysmithError as error:
        return error.code
    return "valid"


def warm(engine: Engine, raw_key: str, **request: Any) -> str:
    """The outcome of a validation that is answered from memory."""
    outcome(engine, raw_key, **request)
    before = engine.cache_statistics().hits
    found = outcome(engine, raw_key, **request)
    assert engine.cache_statistics().hits == before + 1, "nothing is answered from memory"
    return found


# ---------------------------------------------------------------------------- never the past


def test_what_another_process_changes_is_seen_by_the_very_next_validation(
    path: Path, on_file: Engine
) -> None:
    on_file.ensure_scopes(["read"])
    policy = on_file.create_policy(PolicyCreate(name="methods", allowed_methods=["GET"]))
    key_id, raw_key = create(on_file, policy_id=policy.id, scopes=["read"])
    request: dict[str, Any] = {"method": "GET", "scopes": ["read"]}
    with Elsewhere(path) as elsewhere:
        for _ in range(111):
            for deed, arguments, then in (
                ("suspend", (key_id,), KeySuspendedError.code),
                ("reactivate", (key_id,), "valid"),
                ("remove", (key_id, "read"), InsufficientScopeError.code),
                ("assign", (key_id, "read"), "valid"),
                ("allow", (policy.id, "PUT"), MethodNotAllowedError.code),
                ("allow", (policy.id, "GET"), "valid"),
            ):
                warm(on_file, raw_key, **request)
                elsewhere(deed, *arguments)
                assert outcome(on_file, raw_key, **request) == then, deed
            assert warm(on_file, raw_key, **request) == "valid"
            new_raw_key = elsewhere("rotate", key_id)
            assert outcome(on_file, raw_key, **request) == KeyRevokedError.code
            assert outcome(on_file, new_raw_key, **request) == "valid"
            other_id, other = create(on_file)
            assert warm(on_file, other) == "valid"
            elsewhere("revoke", other_id)
            assert outcome(on_file, other) == KeyRevokedError.code
            raw_key = new_raw_key


def by_another_engine(engine: Engine, key_id: str) -> None:
    Engine(engine.store).suspend_key(key_id)


def by_another_thread(engine: Engine, key_id: str) -> None:
    thread = threading.Thread(target=engine.suspend_key, args=(key_id,))
    thread.start()
    thread.join()


def by_a_session(engine: Engine, key_id: str) -> None:
    with Session(engine.store.db) as session:
        key = session.exec(select(Key).where(Key.id == key_id)).one()
        key.state = KeyState.SUSPENDED
        session.add(key)
        session.commit()


def by_the_driver(engine: Engine, key_id: str) -> None:
    connection = engine.store.db.raw_connection()
    connection.driver_connection.execute(KEY_SQL, ("suspended", key_id))  # type: ignore[union-attr]
    connection.close()


def in_a_transaction(engine: Engine, key_id: str) -> None:
    with engine.store.transaction():
        engine.update_key(key_id, KeyUpdate(description="first"))
        with engine.store.transaction():
            engine.suspend_key(key_id)


@pytest.mark.parametrize(
    "change",
    [by_another_engine, by_another_thread, by_a_session, by_the_driver, in_a_transaction],
)
def test_what_this_process_changes_is_seen(
    store: SqliteStore, change: Callable[[Engine, str], None]
) -> None:
    with Engine(store) as engine:
        key_id, raw_key = create(engine)
        assert warm(engine, raw_key) == "valid"
        change(engine, key_id)
        assert outcome(engine, raw_key) == KeySuspendedError.code


def with_sqlite(path: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values)


def test_what_plain_sqlite_changes_is_seen(path: Path, on_file: Engine) -> None:
    key_id, raw_key = create(on_file)
    for state, then in (("revoked", KeyRevokedError.code), ("active", "valid")) * 10:
        warm(on_file, raw_key)
        with_sqlite(path, KEY_SQL, state, key_id)
        assert outcome(on_file, raw_key) == then


@pytest.mark.parametrize(
    "statement", ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)", "REINDEX", "ANALYZE"]
)
def test_changes_around_maintenance_are_seen(path: Path, on_file: Engine, statement: str) -> None:
    key_id, raw_key = create(on_file)
    for state, then in (("revoked", KeyRevokedError.code), ("active", "valid")) * 3:
        warm(on_file, raw_key)
        with_sqlite(path, KEY_SQL, state, key_id)
        with_sqlite(path, statement)
        assert outcome(on_file, raw_key) == then
        with_sqlite(path, statement)
        assert warm(on_file, raw_key) == then


def test_changes_around_migrations_of_another_process_are_seen(path: Path, on_file: Engine) -> None:
    key_id, raw_key = create(on_file)
    with Elsewhere(path) as elsewhere:
        warm(on_file, raw_key)
        elsewhere("migrate")
        assert warm(on_file, raw_key) == "valid"
        elsewhere("suspend", key_id)
        elsewhere("migrate")
        assert outcome(on_file, raw_key) == KeySuspendedError.code


def test_a_backup_that_is_restored_while_in_use_is_seen(path: Path, on_file: Engine) -> None:
    key_id, raw_key = create(on_file)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as backup:
        source.backup(backup)
        on_file.suspend_key(key_id)
        assert warm(on_file, raw_key) == KeySuspendedError.code
        backup.backup(source)
    assert outcome(on_file, raw_key) == "valid"


def test_a_backup_that_is_copied_over_a_closed_database_is_seen(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        key_id, raw_key = create(engine)
    shutil.copy(path, path.with_suffix(".backup"))
    with Engine(SqliteStore(path)) as engine:
        engine.suspend_key(key_id)
        assert warm(engine, raw_key) == KeySuspendedError.code
    shutil.copy(path.with_suffix(".backup"), path)
    with Engine(SqliteStore(path)) as engine:
        assert outcome(engine, raw_key) == "valid"


def test_a_transaction_sees_its_own_changes_and_a_rollback_the_old_state(
    store: SqliteStore,
) -> None:
    class Undone(Exception):
        pass

    with Engine(store) as engine:
        key_id, raw_key = create(engine)
        assert warm(engine, raw_key) == "valid"
        with pytest.raises(Undone), store.transaction():
            assert outcome(engine, raw_key) == "valid"
            engine.suspend_key(key_id)
            assert outcome(engine, raw_key) == KeySuspendedError.code
            _, uncommitted = create(engine)
            assert outcome(engine, uncommitted) == "valid"
            with pytest.raises(Undone), store.transaction():
                engine.reactivate_key(key_id)
                assert outcome(engine, raw_key) == "valid"
                raise Undone
            assert outcome(engine, raw_key) == KeySuspendedError.code
            raise Undone
        assert outcome(engine, raw_key) == "valid"
        assert outcome(engine, uncommitted) == InvalidKeyError.code


def test_a_snapshot_sees_its_moment_and_leaves_nothing_of_it_behind(
    path: Path, on_file: Engine
) -> None:
    key_id, raw_key = create(on_file)
    with on_file.store.snapshot():
        assert outcome(on_file, raw_key) == "valid"
        with_sqlite(path, KEY_SQL, "suspended", key_id)
        assert outcome(on_file, raw_key) == "valid"
    assert outcome(on_file, raw_key) == KeySuspendedError.code


@pytest.mark.parametrize("nth", range(2))
def test_wherever_within_a_validation_a_change_lands_the_next_one_sees_it(
    path: Path, on_file: Engine, nth: int
) -> None:
    key_id, raw_key = create(on_file)
    outcome(on_file, raw_key)
    connection = on_file.store.credentials._cursor.connection
    for state, then in (("revoked", KeyRevokedError.code), ("active", "valid")) * 5:
        with_sqlite(path, ANY_CHANGE)
        seen: list[str] = []

        def change(statement: str, state: str = state, seen: list[str] = seen) -> None:
            seen.append(statement)
            if len(seen) == nth + 1:
                with_sqlite(path, KEY_SQL, state, key_id)

        connection.set_trace_callback(change)
        outcome(on_file, raw_key)
        connection.set_trace_callback(None)
        if len(seen) <= nth:
            assert nth == 1, "a validation looks at the header and then at the row"
            with_sqlite(path, KEY_SQL, state, key_id)
        assert outcome(on_file, raw_key) == then


class TestAConnectionThatFails:
    def test_versions_of_two_connections_are_never_taken_for_each_other(
        self, path: Path, on_file: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("keysmith.stores.credentials.wal_index_header", lambda _: None)
        credentials = on_file.store.credentials
        key_id, raw_key = create(on_file)
        assert warm(on_file, raw_key) == "valid"
        [number] = credentials._cursor.execute("PRAGMA data_version").fetchone()
        credentials._cursor.connection.close()
        with_sqlite(path, KEY_SQL, "suspended", key_id)
        with pytest.raises(StoreError):
            on_file.validate_key(raw_key)
        credentials.version()
        for _ in range(100):
            [again] = credentials._cursor.execute("PRAGMA data_version").fetchone()
            if again >= number:
                break
            with_sqlite(path, ANY_CHANGE)
        assert again == number, "else this shows nothing"
        assert outcome(on_file, raw_key) == KeySuspendedError.code

    def test_a_damaged_row_is_named_and_not_remembered(self, path: Path, on_file: Engine) -> None:
        _, raw_key = create(on_file)
        with_sqlite(path, "UPDATE keysmith_keys SET created_at = 'yesterday'")
        with pytest.raises(StoreError, match="keysmith_keys"):
            on_file.validate_key(raw_key)
        with_sqlite(path, "UPDATE keysmith_keys SET created_at = '2026-01-01 00:00:00.000000'")
        assert outcome(on_file, raw_key) == "valid"

    def test_the_file_is_missing(self, path: Path) -> None:
        with Engine(SqliteStore(path)) as engine, pytest.raises(StoreError, match="migrate"):
            engine.validate_key("anything")
        assert not path.exists()

    def test_the_file_vanishes_before_it_is_opened_again(self, path: Path, on_file: Engine) -> None:
        _, raw_key = create(on_file)
        warm(on_file, raw_key)
        on_file.store.credentials.close()
        hidden = path.rename(path.with_suffix(".hidden"))
        with pytest.raises(StoreError, match="migrate"):
            on_file.validate_key(raw_key)
        hidden.rename(path)
        assert outcome(on_file, raw_key) == "valid"


# ---------------------------------------------------------------------------- never too much


def test_statistics(engine: Engine) -> None:
    raw_keys = [create(engine)[1] for _ in range(3)]
    for raw_key in raw_keys * 4:
        outcome(engine, raw_key)
    found = engine.for_tenant("default").cache_statistics()
    assert (found.hits, found.misses, found.entries) == (9, 3, 3)
    engine.create_policy(PolicyCreate(name="any change"))
    for raw_key in raw_keys * 2:
        outcome(engine, raw_key)
    found = engine.cache_statistics()
    assert (found.hits, found.misses, found.entries) == (12, 6, 3)
    assert outcome(engine, raw_keys[0], scopes=["missing"]) == InsufficientScopeError.code
    assert outcome(engine.for_tenant("acme"), raw_keys[0]) == InvalidKeyError.code
    found = engine.cache_statistics()
    assert (found.hits, found.misses, found.entries) == (14, 6, 3)


@pytest.mark.parametrize(("size", "entries"), [(5, 5), (1, 1), (0, 0), (-1, 0)])
def test_no_more_than_the_cache_size_is_remembered(
    memory: SqliteStore, clock: TurnableClock, size: int, entries: int
) -> None:
    engine = Engine(memory, clock=clock, cache_size=size)
    raw_keys = [create(engine)[1] for _ in range(30)]
    for raw_key in raw_keys * 2:
        assert outcome(engine, raw_key) == "valid"
        assert engine.cache_statistics().entries <= entries
    assert engine.cache_statistics().entries == entries
    if entries:
        assert warm(engine, raw_keys[-1]) == "valid"
    else:
        assert engine.cache_statistics().hits == 0


def test_the_newest_stay(memory: SqliteStore) -> None:
    engine = Engine(memory, cache_size=16)
    raw_keys = [create(engine)[1] for _ in range(17)]
    for raw_key in raw_keys:
        outcome(engine, raw_key)
    before = engine.cache_statistics()
    for raw_key in raw_keys[3:]:
        outcome(engine, raw_key)
    after = engine.cache_statistics()
    assert after.hits - before.hits == 14
    assert after.misses == before.misses


def test_what_is_unknown_is_asked_for_each_time_and_never_remembered(engine: Engine) -> None:
    unknown = [engine._context.generator.generate("sk", "live") for _ in range(50)]
    for raw_key in [*unknown, *unknown, "of another form"]:
        assert outcome(engine, raw_key) == InvalidKeyError.code
    found = engine.cache_statistics()
    assert (found.hits, found.misses, found.entries) == (0, 101, 0)


def test_what_was_deleted_is_forgotten(engine: Engine) -> None:
    key_id, raw_key = create(engine)
    warm(engine, raw_key)
    engine.delete_key(key_id)
    assert outcome(engine, raw_key) == InvalidKeyError.code
    assert engine.cache_statistics().entries == 0


# ---------------------------------------------------------------------------- usage


def use(engine: Engine, key_id: str) -> None:
    """One request more, written."""
    usage = UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)
    engine.record_usage(usage)
    engine.flush()


class Watch:
    """Lets something happen at the next commit of usage alone, whichever thread makes it."""

    def __init__(self, engine: Engine) -> None:
        self.database = engine.store._database  # type: ignore[attr-defined]
        self.credentials = engine.store.credentials
        self.deeds: dict[str, Callable[[], object]] = {}
        self.database.usage_watch = self

    def before_usage(self, writer: Any) -> Any:
        self._reach("before")
        return self.credentials.before_usage(writer)  # type: ignore[attr-defined]

    def after_usage(self, known: Any) -> None:
        self._reach("between")
        self.credentials.after_usage(known)  # type: ignore[attr-defined]
        self._reach("after")

    def _reach(self, moment: str) -> None:
        self.deeds.pop(moment, lambda: None)()


def misses(engine: Engine) -> int:
    return engine.cache_statistics().misses


@linux
def test_usage_of_ones_own_makes_nothing_old(on_file: Engine) -> None:
    issued = [create(on_file) for _ in range(3)]
    for _, raw_key in issued:
        outcome(on_file, raw_key)
    before = misses(on_file)
    for _ in range(5):
        for key_id, raw_key in issued:
            use(on_file, key_id)
            assert outcome(on_file, raw_key) == "valid"
    on_file.purge_usage(on_file.now())
    assert outcome(on_file, raw_key) == "valid"
    assert misses(on_file) == before
    assert on_file.get_key(key_id).last_used_at is not None


def test_usage_of_another_process_makes_all_old(path: Path, on_file: Engine) -> None:
    key_id, raw_key = create(on_file)
    with Elsewhere(path) as elsewhere:
        warm(on_file, raw_key)
        before = misses(on_file)
        elsewhere("use", key_id)
        assert outcome(on_file, raw_key) == "valid"
        assert misses(on_file) == before + 1


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_change_beside_usage_is_seen_by_the_very_next_validation(
    path: Path, on_file: Engine, when: str
) -> None:
    """By another process: before usage is written, after its commit, after all is noted."""
    watch = Watch(on_file)
    used, _ = create(on_file)
    with Elsewhere(path) as elsewhere:
        for _ in range(5):
            key_id, raw_key = create(on_file)
            warm(on_file, raw_key)
            change = partial(elsewhere, "revoke", key_id)
            if when == "before":
                change()
            else:
                watch.deeds[when] = change
            use(on_file, used)
            assert outcome(on_file, raw_key) == KeyRevokedError.code


@linux
def test_a_commit_that_is_noticed_before_it_is_known_to_be_of_usage(on_file: Engine) -> None:
    watch = Watch(on_file)
    (used, raw_key), (_, other) = create(on_file), create(on_file)
    for each in (raw_key, other):
        outcome(on_file, each)
    before = misses(on_file)

    def notice() -> None:
        thread = threading.Thread(target=outcome, args=(on_file, raw_key))
        thread.start()
        thread.join()

    watch.deeds["between"] = notice
    use(on_file, used)
    assert misses(on_file) == before + 1
    assert outcome(on_file, other) == "valid"
    assert misses(on_file) == before + 1


def test_usage_that_is_not_written_changes_nothing(
    path: Path, on_file: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process then commits is as many commits later as that would have been."""
    key_id, raw_key = create(on_file)
    database = on_file.store._database  # type: ignore[attr-defined]
    with Elsewhere(path) as elsewhere:
        warm(on_file, raw_key)
        with pytest.raises(LookupError), database.write(lax=True):
            raise LookupError
        elsewhere("revoke", key_id)
        assert outcome(on_file, raw_key) == KeyRevokedError.code


@pytest.mark.parametrize("write", [lambda e, _: e.purge_usage(e.now()), use])
def test_what_others_commit_while_usage_changes_nothing(
    path: Path, on_file: Engine, write: Callable[[Engine, str], None]
) -> None:
    """A transaction that changes nothing is no commit, and that of another process the only one."""
    watch = Watch(on_file)
    used, raw_of_used = create(on_file)
    with Elsewhere(path) as elsewhere:
        for _ in range(3):
            key_id, raw_key = create(on_file)
            outcome(on_file, raw_of_used)
            on_file.flush()
            warm(on_file, raw_key)
            watch.deeds["between"] = partial(elsewhere, "revoke", key_id)
            write(on_file, used)
            for _ in range(2):
                assert outcome(on_file, raw_key) == KeyRevokedError.code
                on_file.purge_usage(on_file.now())


@linux
def test_a_connection_that_is_lost_while_usage_is_written(path: Path, on_file: Engine) -> None:
    """What the next one is to, and has seen, has nothing to do with it."""
    (_, raw_key), (used, other) = create(on_file), create(on_file)
    watch = Watch(on_file)
    warm(on_file, raw_key)

    def lose() -> None:
        watch.credentials.close()  # type: ignore[attr-defined]
        thread = threading.Thread(target=outcome, args=(on_file, other))
        thread.start()
        thread.join()

    watch.deeds["between"] = lose
    before = misses(on_file)
    use(on_file, used)
    assert outcome(on_file, raw_key) == "valid"
    assert misses(on_file) == before + 2


@linux
def test_usage_that_is_written_to_a_file_that_was_replaced(path: Path, on_file: Engine) -> None:
    """By a thread that waited for its turn there, while others have opened the new one."""
    used, raw_key = create(on_file)
    new = path.with_name("new.db")
    on_file.store.backup(new)  # type: ignore[attr-defined]
    warm(on_file, raw_key)
    watch = Watch(on_file)
    noted: list[Any] = []

    def replace() -> None:
        noted.append("replaced")
        for name in ("keys.db-wal", "keys.db-shm"):
            (path.parent / name).rename(path.parent / f"old-{name}")
        new.replace(path)
        watch.credentials._look_again = 0.0  # type: ignore[attr-defined]
        thread = threading.Thread(target=outcome, args=(on_file, raw_key))
        thread.start()
        thread.join()

    before_usage = watch.credentials.before_usage  # type: ignore[attr-defined]

    def note(writer: Any) -> Any:
        noted.append(before_usage(writer))
        return noted[-1]

    watch.deeds["before"] = replace
    watch.credentials.before_usage = note  # type: ignore[attr-defined]
    with suppress(StoreError):
        use(on_file, used)
    assert noted == ["replaced", None]


def test_threads_that_write_usage_while_others_stop_keys(path: Path, on_file: Engine) -> None:
    used, _ = create(on_file)
    done = threading.Event()

    def record() -> None:
        while not done.is_set():
            use(on_file, used)

    def stop(number: int) -> None:
        with Engine(SqliteStore(path)) as other:
            for _ in range(40):
                key_id, raw_key = create(on_file)
                outcome(on_file, raw_key)
                (other if number else on_file).suspend_key(key_id)
                assert outcome(on_file, raw_key) == KeySuspendedError.code
                (on_file if number else other).reactivate_key(key_id)
                assert outcome(on_file, raw_key) == "valid"

    with ThreadPoolExecutor(4) as threads:
        recording = [threads.submit(record) for _ in range(2)]
        for stopping in [threads.submit(stop, number) for number in range(2)]:
            stopping.result()
        done.set()
        for each in recording:
            each.result()


# ---------------------------------------------------------------------------- what it costs


def test_a_wrong_checksum_touches_no_database(path: Path, on_file: Engine) -> None:
    _, raw_key = create(on_file)
    wrong = mistyped(raw_key)
    before = on_file.cache_statistics()
    on_file.store.close()
    for file in path.parent.iterdir():
        file.unlink()
    assert outcome(on_file, wrong) == InvalidKeyError.code
    assert on_file.cache_statistics() == before
    assert list(path.parent.iterdir()) == []
    with pytest.raises(StoreUnavailableError, match="closed"):
        on_file.validate_key(raw_key)


def test_a_cold_validation_is_one_statement_and_a_warm_one_none(on_file: Engine) -> None:
    on_file.ensure_scopes(["a", "a:b"])
    policy = on_file.create_policy(PolicyCreate(name="office", allowed_scopes=["a"]))
    raw_keys = [create(on_file, policy_id=policy.id, scopes=["a"])[1] for _ in range(5)]
    outcome(on_file, raw_keys[0])
    statements: list[str] = []
    on_file.store.credentials._cursor.connection.set_trace_callback(statements.append)
    other: list[str] = []
    on_file.store.db.pool.dispose()  # who opens a connection now is seen to

    def trace(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_trace_callback(other.append)

    sa.event.listen(on_file.store.db, "connect", trace)
    for raw_key in raw_keys[1:]:
        statements.clear()
        assert outcome(on_file, raw_key, scopes=["a:b"]) == "valid"
        looked = [statement for statement in statements if "data_version" not in statement]
        assert [statement.split()[0] for statement in looked] == ["SELECT"]
        statements.clear()
        assert outcome(on_file, raw_key, scopes=["a:b"]) == "valid"
        if sys.platform == "linux":
            assert statements == []
    assert [statement for statement in other if "keysmith_policies" in statement] == []


# ---------------------------------------------------------------------------- never changed

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain_json)
def test_frozen_ones_are_what_they_were_made_from(value: Any) -> None:
    frozen = freeze(value)
    assert frozen == value
    assert json.dumps(frozen) == json.dumps(value)
    assert repr(frozen) == repr(value)
    for made in (
        pickle.loads(pickle.dumps(frozen)),
        copy.deepcopy(frozen),
        copy.copy(frozen),
        freeze(frozen),
        TypeAdapter(Any).validate_python(frozen),
    ):
        assert made == value
        assert type(made) is type(frozen)
    assert TypeAdapter(Any).dump_json(frozen) == TypeAdapter(Any).dump_json(value)
    assert_frozen(frozen)


CHANGES: list[Callable[[Any], object]] = [
    lambda d: d.__setitem__("a", 1),
    lambda d: d.__delitem__("a"),
    lambda d: d.__ior__({"b": 2}),
    lambda d: d.clear(),
    lambda d: d.pop("a"),
    lambda d: d.popitem(),
    lambda d: d.setdefault("b", 2),
    lambda d: d.update({"b": 2}),
    lambda d: setattr(d, "b", 2),
]
LIST_CHANGES: list[Callable[[Any], object]] = [
    lambda c: c.__setitem__(0, 1),
    lambda c: c.__setitem__(slice(0, 1), []),
    lambda c: c.__delitem__(0),
    lambda c: c.__iadd__([1]),
    lambda c: c.__imul__(2),
    lambda c: c.append(1),
    lambda c: c.clear(),
    lambda c: c.extend([1]),
    lambda c: c.insert(0, 1),
    lambda c: c.pop(),
    lambda c: c.remove(1),
    lambda c: c.reverse(),
    lambda c: c.sort(),
    lambda c: setattr(c, "b", 2),
]


def assert_frozen(value: Any) -> None:
    """That nothing in it can be changed, at any depth."""
    if isinstance(value, dict):
        assert type(value) is FrozenDict
        before = dict(value)
        for change in CHANGES:
            with pytest.raises((TypeError, AttributeError)):
                change(value)
        assert value == before
        for each in value.values():
            assert_frozen(each)
    elif isinstance(value, list):
        assert type(value) is FrozenList
        copied = list(value)
        for change in LIST_CHANGES:
            with pytest.raises((TypeError, AttributeError)):
                change(value)
        assert value == copied
        for each in value:
            assert_frozen(each)
    else:
        assert not isinstance(value, (set, bytearray))


def test_every_method_that_changes_is_refused() -> None:
    """Also one that a newer Python brings: what a plain one has and a frozen one inherits."""
    harmless = {
        *("__init__", "__new__", "__getitem__", "__contains__", "__len__", "__iter__", "__repr__"),
        *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__sizeof__"),
        *("__getattribute__", "__reversed__", "__or__", "__ror__", "__add__", "__mul__"),
        *("__rmul__", "__class_getitem__", "__doc__"),
        *("copy", "count", "index", "get", "items", "keys", "values", "fromkeys"),
    }
    for frozen, plain in ((FrozenDict, dict), (FrozenList, list)):
        assert {name for name in vars(plain) if name not in vars(frozen)} <= harmless


def test_who_gets_a_result_cannot_change_it_for_others(store: SqliteStore) -> None:
    with Engine(store) as engine:
        engine.ensure_scopes(["read"])
        meta = {"plan": {"tags": ["a", {"b": [1]}]}, "none": {}, "list": []}
        policy = engine.create_policy(
            PolicyCreate(
                name="office",
                allowed_ips=["10.0.0.0/8"],
                allowed_methods=["GET"],
                allowed_paths=["/a"],
                allowed_origins=["https://a.example"],
                allowed_scopes=["read"],
                meta=meta,
            )
        )
        _, raw_key = create(engine, policy_id=policy.id, scopes=["read"], meta=meta)
        request: dict[str, Any] = {
            "ip": "10.0.0.1",
            "method": "GET",
            "path": "/a",
            "origin": "https://a.example",
        }
        for _ in range(2):  # cold, and from memory
            result = engine.validate_key(raw_key, **request)
            for thing in (result, result.key, result.policy):
                names = getattr(type(thing), "model_fields", None) or type(thing).__slots__
                for name in names:
                    with pytest.raises((AttributeError, ValueError)):
                        setattr(thing, name, None)
                    assert_frozen(getattr(thing, name))
            assert isinstance(result.scopes, tuple)
            assert result.key.meta == meta
            assert result.policy is not None
            assert result.policy.meta == meta
            assert result.policy.allowed_ips == ["10.0.0.0/8"]
            assert pickle.loads(pickle.dumps(result)) == result
            assert copy.deepcopy(result) == result
            assert json.loads(result.key.model_dump_json(by_alias=True))["metadata"] == meta
        # What it is made into may be changed, and changes nothing.
        changed = Policy(**{**result.policy.model_dump(), "name": "copy"})
        changed.meta["plan"] = "mine"
        assert engine.validate_key(raw_key, **request).policy == result.policy
