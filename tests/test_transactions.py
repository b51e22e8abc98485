"""Transactions around calls of the engine: what is told, what is undone, and who waits."""

from __future__ import annotations

import sqlite3
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from keysmith import (
    Engine,
    Key,
    KeyCreate,
    KeyExpiredError,
    KeyNotFoundError,
    Plugin,
    PolicyCreate,
    PolicyUpdate,
    ScopeCreate,
    ScopeNotFoundError,
    ScopeUpdate,
    SqliteStore,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from tests.conftest import Recorder, TurnableClock

pytestmark = pytest.mark.usefixtures("unhurried")

BRIEF = timedelta(milliseconds=50)

CHANGES = [
    "on_key_created",
    "on_key_validated",
    "on_key_rotated",
    "on_key_suspended",
    "on_key_reactivated",
    "on_key_revoked",
    "on_policy_created",
    "on_policy_updated",
    "on_policy_deleted",
    "on_scope_created",
    "on_scope_updated",
    "on_scope_deleted",
]


def change_everything(engine: Engine) -> None:
    created = engine.create_key(KeyCreate(name="production"))
    engine.validate_key(created.raw_key)
    engine.rotate_key(created.key.id)
    engine.suspend_key(created.key.id)
    engine.reactivate_key(created.key.id)
    engine.revoke_key(created.key.id)
    policy = engine.create_policy(PolicyCreate(name="office"))
    engine.update_policy(policy.id, PolicyUpdate(description="new"))
    engine.delete_policy(policy.id)
    scope = engine.create_scope(ScopeCreate(name="read"))
    engine.update_scope(scope.id, ScopeUpdate(description="new"))
    engine.delete_scope(scope.id)


class Undone(Exception):
    pass


class TestWhatPluginsHear:
    def test_nothing_before_the_outer_commit_and_then_all_in_order(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        with engine.store.transaction():
            with engine.store.transaction():
                change_everything(engine)
            assert recorder.names() == []
        assert recorder.names() == CHANGES

    def test_changes_of_all_threads_in_the_order_of_their_commits(
        self, memory: SqliteStore
    ) -> None:
        heard: list[str] = []

        class Listening(Plugin):
            def on_key_suspended(self, key: Key) -> None:
                heard.append(key.state)

            def on_key_reactivated(self, key: Key) -> None:
                heard.append(key.state)

        engine = Engine(memory, plugins=[Listening()])
        key_id = engine.create_key(KeyCreate(name="production")).key.id

        def let_another_thread_go_on() -> None:
            other = threading.Thread(target=engine.reactivate_key, args=(key_id,))
            other.start()
            other.join()

        with memory.transaction():
            memory.after_commit(let_another_thread_go_on)
            engine.suspend_key(key_id)
        engine.flush()
        assert heard == ["suspended", "active"]

    def test_nothing_of_what_was_rolled_back(self, engine: Engine, recorder: Recorder) -> None:
        with pytest.raises(Undone), engine.store.transaction():
            change_everything(engine)
            raise Undone
        assert recorder.names() == []
        engine.create_key(KeyCreate(name="next"))
        assert recorder.names() == ["on_key_created"]

    def test_nothing_of_an_inner_one_that_was_rolled_back(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        with engine.store.transaction():
            engine.create_policy(PolicyCreate(name="kept"))
            with pytest.raises(Undone), engine.store.transaction():
                engine.create_policy(PolicyCreate(name="undone"))
                raise Undone
            engine.create_key(KeyCreate(name="kept"))
        assert recorder.names() == ["on_policy_created", "on_key_created"]
        assert [policy.name for policy in engine.list_policies()] == ["kept"]

    def test_nothing_when_the_commit_fails(self, recorder: Recorder) -> None:
        with SqliteStore(":memory:", busy_timeout=BRIEF) as store:
            store.migrate()
            engine = Engine(store, plugins=[recorder])
            reading, enough = threading.Event(), threading.Event()

            def read() -> None:
                with store.snapshot():
                    store.keys.count()
                    reading.set()
                    enough.wait()

            reader = threading.Thread(target=read)
            reader.start()
            reading.wait()
            # In memory, a commit has to wait for those who read.
            with pytest.raises(StoreUnavailableError, match="locked"):
                engine.create_key(KeyCreate(name="lost"))
            enough.set()
            reader.join()
            assert recorder.names() == ["on_key_create_failed"]
            engine.create_key(KeyCreate(name="next"))
            assert [key.name for key in engine.list_keys()] == ["next"]
            assert recorder.names() == ["on_key_create_failed", "on_key_created"]

    def test_entities_as_they_were_at_the_time(self, engine: Engine, recorder: Recorder) -> None:
        with engine.store.transaction():
            key = engine.create_key(KeyCreate(name="production")).key
            key.name = "changed by the caller"
        [(_, [told])] = recorder.events
        assert isinstance(told, Key)
        assert told.name == "production"

    def test_refusals_at_once_whatever_becomes_of_the_transaction(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        with pytest.raises(ScopeNotFoundError), engine.store.transaction():
            engine.create_key(KeyCreate(name="production", scopes=["unknown"]))
        assert recorder.names() == ["on_key_create_failed"]

    def test_an_expiry_that_is_rolled_back_is_told_when_it_is_kept(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        expires_at = clock.now + timedelta(hours=1)
        raw_key = engine.create_key(KeyCreate(name="brief", expires_at=expires_at)).raw_key
        clock.turn(hours=1)
        with pytest.raises(KeyExpiredError), engine.store.transaction():
            engine.validate_key(raw_key)
        assert "on_key_expired" not in recorder.names()
        with pytest.raises(KeyExpiredError):
            engine.validate_key(raw_key)
        assert recorder.names().count("on_key_expired") == 1

    def test_within_a_snapshot_there_is_nothing_to_wait_for(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        raw_key = engine.create_key(KeyCreate(name="production")).raw_key
        with engine.store.snapshot():
            engine.validate_key(raw_key)
            assert recorder.names() == ["on_key_created", "on_key_validated"]


class TestAfterCommit:
    def test_at_once_outside_of_a_transaction(self, memory: SqliteStore) -> None:
        called: list[str] = []
        memory.after_commit(lambda: called.append("now"))
        assert called == ["now"]

    def test_each_thread_for_itself(self, memory: SqliteStore) -> None:
        called: list[str] = []
        with memory.transaction():
            memory.after_commit(lambda: called.append("mine"))
            other = threading.Thread(
                target=memory.after_commit, args=(lambda: called.append("theirs"),)
            )
            other.start()
            other.join()
            assert called == ["theirs"]
        assert called == ["theirs", "mine"]

    def test_what_is_called_may_write(self, memory: SqliteStore) -> None:
        engine = Engine(memory)
        with memory.transaction():
            memory.after_commit(lambda: engine.create_policy(PolicyCreate(name="second")))
            engine.create_policy(PolicyCreate(name="first"))
            assert engine.store.policies.count() == 1
        assert engine.store.policies.count() == 2


class TestWhatIsUndone:
    def test_a_call_that_fails_leaves_nothing_behind_in_a_transaction_that_goes_on(
        self, engine: Engine
    ) -> None:
        with engine.store.transaction():
            kept = engine.create_key(KeyCreate(name="kept"))
            with pytest.raises(ScopeNotFoundError):
                engine.create_key(KeyCreate(name="half", scopes=["unknown"]))
            assert engine.validate_key(kept.raw_key).key.name == "kept"
        assert [key.name for key in engine.list_keys()] == ["kept"]

    def test_what_the_database_undid_as_a_whole_is_not_committed_in_part(
        self, tmp_path: Path
    ) -> None:
        with SqliteStore(tmp_path / "keys.db") as store:
            store.migrate()
            engine = Engine(store)
            with store.db.connect() as connection:
                pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

            def fill(connection: sqlite3.Connection, _record: object) -> None:
                connection.execute(f"PRAGMA max_page_count = {pages + 2}")

            store.db.dispose()
            sa.event.listen(store.db, "connect", fill)
            big = PolicyCreate(name="big", meta={"text": "x" * 15_000})
            with pytest.raises(StoreError, match="undo all"), store.transaction():
                engine.create_key(KeyCreate(name="first"))
                with pytest.raises(StoreFullError):
                    engine.create_policy(big)
                with pytest.raises(StoreError, match="undo all"):
                    engine.create_key(KeyCreate(name="second"))
            with pytest.raises(StoreError, match="undo all"), store.transaction():
                engine.create_key(KeyCreate(name="first"))
                with pytest.raises(StoreFullError):
                    engine.create_policy(big)
            assert engine.count_keys() == 0

    def test_what_the_code_inside_raises_is_passed_on_as_it_is(self, memory: SqliteStore) -> None:
        of_another_database = sa.exc.IntegrityError("INSERT", {}, Exception("theirs"))
        for nested in (False, True):
            with pytest.raises(sa.exc.IntegrityError) as raised, memory.transaction():
                if not nested:
                    raise of_another_database
                with memory.transaction():
                    raise of_another_database
            assert raised.value is of_another_database

    def test_the_stores_own_errors_stay_its_own(self, memory: SqliteStore) -> None:
        with pytest.raises(KeyNotFoundError), memory.transaction(), memory.transaction():
            memory.keys.get("akey_unknown")

    def test_a_transaction_within_a_snapshot_is_refused(self, memory: SqliteStore) -> None:
        with memory.snapshot(), pytest.raises(StoreError, match="snapshot"):
            with memory.transaction():
                raise AssertionError("not reached")


class TestWhoWaits:
    def test_threads_queue_for_as_long_as_the_busy_timeout(self, tmp_path: Path) -> None:
        with SqliteStore(tmp_path / "keys.db", busy_timeout=BRIEF) as store:
            store.migrate()
            engine = Engine(store)
            failures: list[str] = []

            def write() -> None:
                try:
                    engine.create_key(KeyCreate(name="production"))
                except StoreUnavailableError as error:
                    failures.append(str(error))

            with store.transaction():
                other = threading.Thread(target=write)
                other.start()
                other.join()
            assert len(failures) == 1
            assert "busy timeout" in failures[0]
            write()
            assert len(failures) == 1

    def test_nobody_closes_under_a_transaction_of_their_own(self, memory: SqliteStore) -> None:
        engine = Engine(memory)
        with memory.transaction():
            for close in (engine.close, memory.close):
                with pytest.raises(StoreError, match="after it"):
                    close()
            engine.create_key(KeyCreate(name="production"))
        assert engine.count_keys() == 1
        engine.close()
        with pytest.raises(StoreUnavailableError):
            engine.count_keys()
