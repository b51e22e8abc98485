"""Which keys are good, for which requests, and what is told of those that are not."""

from __future__ import annotations

import traceback
from datetime import timedelta
from typing import Any

import pytest

from keysmith import (
    Engine,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    IPNotAllowedError,
    KeyExpiredError,
    KeyGenerator,
    KeyRevokedError,
    KeyState,
    KeySuspendedError,
    KeyUpdate,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
    PolicyCreate,
    SqliteStore,
    StoreUnavailableError,
)
from tests.conftest import START, Recorder, TurnableClock, create, mistyped

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class TestValidate:
    def test_the_answer(self, engine: Engine) -> None:
        engine.ensure_scopes(["read", "read:users", "write"])
        policy = engine.create_policy(PolicyCreate(name="p"))
        created = create(engine, scopes=["read"], policy_id=policy.id)
        result = engine.validate_key(created.raw_key, scopes=["read:users"])
        assert result.key.id == created.key.id
        assert result.scopes == ("read", "read:users")
        assert result.policy is not None
        assert result.policy.id == policy.id
        assert (result.rotated, result.grace_ends, result.rate_limit) == (False, None, None)
        with pytest.raises(AttributeError):
            result.rotated = True  # type: ignore[misc]

    def test_one_message_for_malformed_unknown_and_foreign(self, engine: Engine) -> None:
        foreign = create(engine, tenant_id="acme").raw_key
        malformed = mistyped(foreign)
        messages = set()
        for raw_key in (malformed, KeyGenerator().generate("sk", "live"), foreign, "", "x" * 9999):
            with pytest.raises(InvalidKeyError) as refused:
                engine.for_tenant("globex").validate_key(raw_key)
            messages.add(str(refused.value))
        assert len(messages) == 1

    def test_a_wrong_checksum_costs_no_lookup(self, memory: SqliteStore) -> None:
        raw_key = create(Engine(memory)).raw_key
        memory.close()
        with pytest.raises(InvalidKeyError):
            Engine(memory).validate_key(mistyped(raw_key))
        with pytest.raises(StoreUnavailableError):
            Engine(memory).validate_key(raw_key)

    def test_expiry_is_to_the_microsecond_and_noted_once(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        created = create(engine, expires_at=START + HOUR)
        clock.now = START + HOUR - timedelta(microseconds=1)
        engine.validate_key(created.raw_key)
        clock.turn(microseconds=1)
        assert engine.get_key(created.key.id).state is KeyState.ACTIVE
        for _ in range(3):
            with pytest.raises(KeyExpiredError):
                engine.validate_key(created.raw_key)
        assert engine.get_key(created.key.id).state is KeyState.EXPIRED
        assert recorder.names().count("on_key_expired") == 1
        assert engine.cleanup_expired_keys() == 0
        clock.now = START
        with pytest.raises(KeyExpiredError):
            engine.validate_key(created.raw_key)

    @pytest.mark.parametrize(
        "change",
        [
            lambda engine, key_id: engine.revoke_key(key_id),
            lambda engine, key_id: engine.suspend_key(key_id),
            lambda engine, key_id: engine.rotate_key(key_id, reason="compromise"),
            lambda engine, key_id: engine.update_key(key_id, KeyUpdate(expires_at=None)),
        ],
    )
    def test_a_key_that_was_called_expired_stays_so(
        self, engine: Engine, clock: TurnableClock, change: Any
    ) -> None:
        created = create(engine, expires_at=START + HOUR)
        clock.turn(hours=1)
        with pytest.raises(InvalidStateTransitionError, match="final"):
            change(engine, created.key.id)
        clock.now = START
        with pytest.raises(KeyExpiredError):
            engine.validate_key(created.raw_key)

    def test_a_suspended_key_expires_as_well(self, engine: Engine, clock: TurnableClock) -> None:
        created = create(engine, expires_at=START + HOUR)
        engine.suspend_key(created.key.id)
        with pytest.raises(KeySuspendedError):
            engine.validate_key(created.raw_key)
        clock.turn(hours=1)
        with pytest.raises(KeyExpiredError):
            engine.validate_key(created.raw_key)
        with pytest.raises(InvalidStateTransitionError):
            engine.reactivate_key(created.key.id)

    def test_an_expired_key_is_refused_where_nothing_can_be_written(
        self, tmp_path: Any, clock: TurnableClock
    ) -> None:
        with SqliteStore(tmp_path / "keys.db", busy_timeout=timedelta(0)) as store:
            store.migrate()
            engine = Engine(store, clock=clock)
            created = create(engine, expires_at=START + HOUR)
            clock.turn(hours=1)
            other = store.db.raw_connection()
            other.driver_connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(KeyExpiredError):
                engine.validate_key(created.raw_key)
            other.driver_connection.execute("ROLLBACK")
            assert engine.get_key(created.key.id).state is KeyState.ACTIVE
            with pytest.raises(KeyExpiredError):
                engine.validate_key(created.raw_key)
            assert engine.get_key(created.key.id).state is KeyState.EXPIRED

    def test_missing_scopes_are_named(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "b", "c"])
        created = create(engine, scopes=["b"])
        with pytest.raises(InsufficientScopeError) as refused:
            engine.validate_key(created.raw_key, scopes=["c", "b", "a"])
        assert refused.value.missing == ("a", "c")
        assert engine.validate_key(created.raw_key, scopes="b").scopes == ("b",)

    def test_state_comes_before_rules_and_rules_before_scopes(self, engine: Engine) -> None:
        policy = engine.create_policy(
            PolicyCreate(
                name="p",
                allowed_ips=["10.0.0.0/8"],
                allowed_origins=["https://a.example"],
                allowed_methods=["GET"],
                allowed_paths=["/v1/*"],
            )
        )
        created = create(engine, policy_id=policy.id)
        request: dict[str, Any] = {"scopes": ["nope"]}
        for name, value, error in (
            ("ip", "10.1.2.3", IPNotAllowedError),
            ("origin", "https://A.example:443", OriginNotAllowedError),
            ("method", "get", MethodNotAllowedError),
            ("path", "/v1/users", PathNotAllowedError),
        ):
            with pytest.raises(error):
                engine.validate_key(created.raw_key, **request)
            request[name] = value
        with pytest.raises(InsufficientScopeError):
            engine.validate_key(created.raw_key, **request)
        engine.suspend_key(created.key.id)
        with pytest.raises(KeySuspendedError):
            engine.validate_key(created.raw_key)

    def test_a_store_that_cannot_answer_is_no_failed_validation(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        raw_key = create(engine).raw_key
        recorder.events.clear()
        engine.store.close()
        with pytest.raises(StoreUnavailableError):
            engine.validate_key(raw_key)
        assert recorder.events == []

    def test_a_refusal_leaves_no_raw_key_in_its_frames(self, engine: Engine) -> None:
        created = create(engine)
        engine.revoke_key(created.key.id)
        with pytest.raises(KeyRevokedError) as refused:
            engine.validate_key(created.raw_key)
        frames = [frame for frame, _ in traceback.walk_tb(refused.value.__traceback__)]
        ours = [frame for frame in frames if frame.f_code.co_filename != __file__]
        assert ours
        assert not any(created.raw_key in repr(frame.f_locals) for frame in ours)
