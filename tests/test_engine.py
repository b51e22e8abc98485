"""The engine as a whole: what it tells plugins, how it is opened and closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    Engine,
    InvalidStateTransitionError,
    KeyInactiveError,
    KeyState,
    Plugin,
    SqliteStore,
    StoreUnavailableError,
)
from tests.conftest import Recorder, create

pytestmark = pytest.mark.usefixtures("unhurried")

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class TestHooks:
    def test_each_fires_once_after_the_commit(self, memory: SqliteStore) -> None:
        seen: list[tuple[str, int]] = []

        class Watcher(Plugin):
            def on_key_created(self, key: Any) -> None:
                seen.append(("created", Engine(memory).count_keys()))

            def on_key_revoked(self, key: Any, reason: str) -> None:
                seen.append((reason, Engine(memory).count_keys(state=KeyState.REVOKED)))

        engine = Engine(memory, plugins=[Watcher()])
        key = create(engine).key
        engine.revoke_key(key.id, reason="leaked")
        with pytest.raises(InvalidStateTransitionError):
            engine.revoke_key(key.id, reason="again")
        engine.flush()
        assert seen == [("created", 1), ("leaked", 1)]

    def test_one_that_raises_harms_nobody(
        self, memory: SqliteStore, recorder: Recorder, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Plugin):
            def on_key_validated(self, result: Any) -> None:
                raise RuntimeError("broken")

        engine = Engine(memory, plugins=[Broken(), recorder])
        engine.validate_key(create(engine).raw_key)
        engine.flush()
        assert recorder.names() == ["on_key_created", "on_key_validated"]
        assert "on_key_validated" in caplog.text

    def test_the_whole_life(self, engine: Engine, recorder: Recorder) -> None:
        created = create(engine)
        engine.validate_key(created.raw_key)
        engine.rotate_key(created.key.id)
        engine.suspend_key(created.key.id)
        with pytest.raises(KeyInactiveError):
            engine.validate_key(created.raw_key)
        engine.reactivate_key(created.key.id)
        engine.revoke_key(created.key.id)
        engine.close()
        engine.close()
        assert recorder.names() == [
            "on_key_created",
            "on_key_validated",
            "on_key_rotated",
            "on_key_suspended",
            "on_key_validation_failed",
            "on_key_reactivated",
            "on_key_revoked",
            "on_shutdown",
        ]
        masked = recorder.events[4][1][0]
        assert masked == f"sk_live_…{created.key.hint}"


class TestTheEngineItself:
    def test_health_and_close(self, tmp_path: Any) -> None:
        with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
            with pytest.raises(StoreUnavailableError):
                engine.health()
            engine.store.migrate()
            engine.health()
            bound = engine.for_tenant("acme")
            bound.close()
            engine.health()
        with pytest.raises(StoreUnavailableError):
            engine.health()

    def test_a_naive_clock_is_refused(self, memory: SqliteStore) -> None:
        engine = Engine(memory, clock=lambda: datetime(2026, 1, 1))
        with pytest.raises(ValidationError, match="timezone"):
            create(engine)

    def test_a_clock_in_another_zone_is_turned_into_utc(self, memory: SqliteStore) -> None:
        zone = datetime.fromisoformat("2026-01-01T00:00:00+02:00")
        key = create(Engine(memory, clock=lambda: zone)).key
        assert key.created_at == zone
        assert key.created_at.tzinfo is UTC
