"""What each call of the engine means: keys, rotation, states, policies, scopes and hooks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    CreatedKey,
    Engine,
    Hasher,
    HmacSha256Hasher,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    IPNotAllowedError,
    KeyCreate,
    KeyExpiredError,
    KeyGenerator,
    KeyInactiveError,
    KeyNotFoundError,
    KeyRevokedError,
    KeyState,
    KeySuspendedError,
    KeyUpdate,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
    Plugin,
    Policy,
    PolicyCreate,
    PolicyInUseError,
    PolicyNotFoundError,
    PolicyPublic,
    PolicyUpdate,
    PolicyViolationError,
    RotationReason,
    ScopeCreate,
    ScopeLoopError,
    ScopeNotAllowedError,
    ScopeNotFoundError,
    ScopeUpdate,
    SqliteStore,
    StoreUnavailableError,
    TenantMismatchError,
)
from keysmith.ids import IdPrefix, new_id
from tests.conftest import START, Recorder, TurnableClock, mistyped

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def create(engine: Engine, **fields: Any) -> CreatedKey:
    return engine.create_key(KeyCreate(**{"name": "n"} | fields))


class TestCreate:
    def test_a_key_is_what_was_asked_for(self, engine: Engine) -> None:
        engine.ensure_scopes(["read", "write"], tenant_id="acme")
        created = create(
            engine,
            name="Production",
            tenant_id="acme",
            app_id="billing",
            prefix="pk",
            environment="test",
            scopes=["write", "read"],
            created_by="user_1",
            meta={"team": "a"},
            expires_at=START + DAY,
        )
        key = engine.get_key(created.key.id)
        assert key.to_row() == created.key.to_row()
        assert (key.name, key.tenant_id, key.app_id) == ("Production", "acme", "billing")
        assert (key.state, key.meta, key.created_by) == (KeyState.ACTIVE, {"team": "a"}, "user_1")
        assert key.created_at == key.updated_at == START
        assert key.expires_at == START + DAY
        assert created.raw_key.startswith("pk_test_")
        assert created.raw_key.endswith(key.hint)
        assert key.key_hash == Hasher().hash(created.raw_key)
        assert [scope.name for scope in engine.list_key_scopes(key.id)] == ["read", "write"]
        assert created.raw_key not in repr(created)

    def test_one_unknown_scope_leaves_no_trace(self, engine: Engine, recorder: Recorder) -> None:
        engine.ensure_scopes(["a", "b", "c", "d"])
        before = list(engine.store.db.raw_connection().driver_connection.iterdump())
        with pytest.raises(ScopeNotFoundError) as refused:
            create(engine, scopes=["a", "b", "nope", "c", "d"])
        assert refused.value.names == ("nope",)
        assert "nope" in str(refused.value)
        assert list(engine.store.db.raw_connection().driver_connection.iterdump()) == before
        assert recorder.names() == ["on_key_create_failed"]

    def test_expiry_lies_in_the_future(self, engine: Engine) -> None:
        for moment in (START, START - DAY):
            with pytest.raises(ValidationError, match="must be in the future"):
                create(engine, expires_at=moment)
        assert create(engine, expires_at=START + timedelta(microseconds=1))

    def test_a_policy_bounds_the_lifetime(self, engine: Engine, clock: TurnableClock) -> None:
        policy = engine.create_policy(PolicyCreate(name="p", max_key_lifetime=DAY))
        assert create(engine, policy_id=policy.id).key.expires_at == START + DAY
        assert create(engine, policy_id=policy.id, expires_at=START + DAY)
        with pytest.raises(PolicyViolationError, match="at the latest"):
            create(engine, policy_id=policy.id, expires_at=START + 2 * DAY)
        key = create(engine).key
        bounded = engine.update_key(key.id, KeyUpdate(policy_id=policy.id))
        assert bounded.expires_at == START + DAY
        with pytest.raises(PolicyViolationError):
            engine.update_key(key.id, KeyUpdate(expires_at=START + 2 * DAY))
        assert engine.update_key(key.id, KeyUpdate(expires_at=None)).expires_at == START + DAY
        sooner = engine.update_key(key.id, KeyUpdate(expires_at=START + HOUR))
        assert sooner.expires_at == START + HOUR
        old = create(engine).key
        clock.turn(days=1)
        with pytest.raises(PolicyViolationError, match="older"):
            engine.update_key(old.id, KeyUpdate(policy_id=policy.id))
        endless = engine.create_policy(PolicyCreate(name="e", max_key_lifetime=9000 * 365 * DAY))
        assert create(engine, policy_id=endless.id).key.expires_at == datetime.max.replace(
            tzinfo=UTC
        )

    def test_a_policy_must_be_the_tenants_own(self, engine: Engine) -> None:
        policy = engine.create_policy(PolicyCreate(name="p", tenant_id="acme"))
        for policy_id in (policy.id, "kpol_00000000000000000000000000", "nope"):
            with pytest.raises(PolicyNotFoundError):
                create(engine, policy_id=policy_id)
        key = create(engine).key
        with pytest.raises(PolicyNotFoundError):
            engine.update_key(key.id, KeyUpdate(policy_id=policy.id))

    def test_generator_and_hasher_of_ones_own(self, memory: SqliteStore) -> None:
        class Uuids(KeyGenerator):
            def generate(self, prefix: str, environment: str) -> str:
                return f"{environment}-{super().generate(prefix, environment)[-20:]}"

        engine = Engine(memory, generator=Uuids(), hasher=HmacSha256Hasher("pepper" * 6))
        created = create(engine)
        assert created.raw_key.startswith("live-")
        assert engine.validate_key(created.raw_key).key.id == created.key.id
        with pytest.raises(InvalidKeyError):
            Engine(memory).validate_key(created.raw_key)

    def test_import(self, engine: Engine, recorder: Recorder) -> None:
        raw_key = "legacy-key-from-elsewhere"
        data = KeyCreate(name="legacy")
        key = engine.import_key(data, key_hash=Hasher().hash(raw_key), hint="here")
        assert engine.validate_key(raw_key).key.id == key.id
        rotated = engine.rotate_key(key.id)
        assert engine.validate_key(raw_key).rotated
        for used in (raw_key, rotated.raw_key):
            with pytest.raises(ConflictError):
                engine.import_key(data, key_hash=Hasher().hash(used), hint="here")
        for wrong in ("A" * 64, "ab", Hasher().hash("x").upper()):
            with pytest.raises(ValidationError):
                engine.import_key(data, key_hash=wrong, hint="here")
        with pytest.raises(ValidationError):
            engine.import_key(data, key_hash=Hasher().hash("x"), hint="longer")
        assert recorder.names().count("on_key_create_failed") == 6


class TestReadUpdateDelete:
    def test_lists_and_counts(self, engine: Engine, clock: TurnableClock) -> None:
        made = []
        for number in range(5):
            made.append(create(engine, name=str(number), tenant_id="ab"[number % 2]).key.id)
            clock.turn(seconds=number % 2)
        assert [key.id for key in engine.list_keys()] == made[::-1]
        assert [key.name for key in engine.list_keys(tenant_id="a", limit=2)] == ["4", "2"]
        assert [key.name for key in engine.list_keys(after=made[1])] == ["0"]
        assert engine.count_keys() == 5
        assert engine.count_keys(tenant_id="b") == 2

    def test_update_changes_only_what_was_set(self, engine: Engine, clock: TurnableClock) -> None:
        key = create(engine, description="d", meta={"a": 1}, expires_at=START + DAY).key
        clock.turn(hours=1)
        changed = engine.update_key(key.id, KeyUpdate(name="renamed"))
        expected = key.to_row() | {"name": "renamed", "updated_at": START + HOUR}
        assert changed.to_row() == engine.get_key(key.id).to_row() == expected
        assert engine.update_key(key.id, KeyUpdate(meta={}, expires_at=None)).expires_at is None
        with pytest.raises(ValidationError, match="future"):
            engine.update_key(key.id, KeyUpdate(expires_at=START))

    def test_nothing_brings_back_what_is_final(self, engine: Engine, clock: TurnableClock) -> None:
        revoked = create(engine).key
        engine.revoke_key(revoked.id)
        expired = create(engine, expires_at=START + HOUR).key
        clock.turn(hours=1)
        for key in (revoked, expired):
            with pytest.raises(InvalidStateTransitionError):
                engine.update_key(key.id, KeyUpdate(expires_at=START + 2 * DAY))
            assert engine.update_key(key.id, KeyUpdate(description="why")).description == "why"

    def test_delete(self, engine: Engine) -> None:
        created = create(engine)
        rotated = engine.rotate_key(created.key.id)
        engine.delete_key(created.key.id)
        for raw_key in (created.raw_key, rotated.raw_key):
            with pytest.raises(InvalidKeyError):
                engine.validate_key(raw_key)
        for call in (
            lambda: engine.get_key(created.key.id),
            lambda: engine.delete_key(created.key.id),
            lambda: engine.update_key(created.key.id, KeyUpdate(name="x")),
            lambda: engine.rotate_key(created.key.id),
            lambda: engine.revoke_key(created.key.id),
            lambda: engine.assign_scopes(created.key.id, []),
            lambda: engine.list_key_scopes(created.key.id),
        ):
            with pytest.raises(KeyNotFoundError):
                call()

    def test_a_raw_key_in_place_of_an_id_is_not_echoed(self, engine: Engine) -> None:
        raw_key = create(engine).raw_key
        with pytest.raises(KeyNotFoundError) as refused:
            engine.get_key(raw_key)
        assert raw_key not in str(refused.value)


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


class TestRotate:
    def test_both_secrets_work_until_the_grace_period_has_passed(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        created = create(engine)
        clock.turn(hours=1)
        rotated = engine.rotate_key(created.key.id, rotated_by="ops")
        assert rotated.key.id == created.key.id
        assert rotated.key.rotated_at == rotated.key.updated_at == START + HOUR
        assert rotated.key.state is KeyState.ACTIVE
        result = engine.validate_key(created.raw_key)
        assert (result.rotated, result.grace_ends) == (True, START + HOUR + DAY)
        assert not engine.validate_key(rotated.raw_key).rotated
        clock.now = START + HOUR + DAY - timedelta(microseconds=1)
        engine.validate_key(created.raw_key)
        clock.turn(microseconds=1)
        with pytest.raises(KeyRevokedError):
            engine.validate_key(created.raw_key)
        assert "on_rotated_key_reused" in recorder.names()
        engine.validate_key(rotated.raw_key)
        [rotation] = engine.list_rotations(key_id=created.key.id)
        assert rotation.created_at == START + HOUR
        assert rotation.id < new_id(IdPrefix.ROTATION, START + 2 * HOUR)
        assert (rotation.reason, rotation.rotated_by) == (RotationReason.MANUAL, "ops")
        assert rotation.grace_ttl_ms == 86_400_000

    def test_each_old_secret_has_its_own_grace(self, engine: Engine, clock: TurnableClock) -> None:
        secrets = [create(engine).raw_key]
        key_id = engine.validate_key(secrets[0]).key.id
        for hours in (5, 2, 9):
            secrets.append(engine.rotate_key(key_id, grace=hours * HOUR).raw_key)
        for turned, works in ((0, "1111"), (2, "1011"), (5, "0011"), (9, "0001")):
            clock.now = START + turned * HOUR
            for secret, does in zip(secrets, works, strict=True):
                if does == "1":
                    assert engine.validate_key(secret).key.id == key_id
                else:
                    with pytest.raises(KeyRevokedError):
                        engine.validate_key(secret)

    def test_compromise_ends_all_grace(self, engine: Engine) -> None:
        created = create(engine)
        second = engine.rotate_key(created.key.id)
        third = engine.rotate_key(created.key.id, reason="compromise", grace=DAY)
        for raw_key in (created.raw_key, second.raw_key):
            with pytest.raises(KeyRevokedError):
                engine.validate_key(raw_key)
        engine.validate_key(third.raw_key)
        assert {rotation.grace_ends for rotation in engine.list_rotations()} == {START}

    def test_grace_is_the_argument_else_the_policys(self, engine: Engine) -> None:
        policy = engine.create_policy(PolicyCreate(name="p", grace_period=timedelta(0)))
        created = create(engine, policy_id=policy.id)
        engine.rotate_key(created.key.id)
        with pytest.raises(KeyRevokedError):
            engine.validate_key(created.raw_key)
        second = engine.rotate_key(created.key.id, grace=HOUR)
        third = engine.rotate_key(created.key.id, grace=2 * HOUR)
        assert third.key.hint == third.raw_key[-4:]
        assert [r.grace_ends - START for r in engine.list_rotations()] == [
            2 * HOUR,
            HOUR,
            timedelta(0),
        ]
        engine.validate_key(second.raw_key)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"reason": "whim"},
            {"grace": -HOUR},
            {"grace": timedelta(microseconds=1)},
            {"grace": timedelta(days=4000)},
            {"grace": timedelta.max},
            {"rotated_by": "x" * 256},
        ],
    )
    def test_what_makes_no_sense_changes_nothing(self, engine: Engine, arguments: Any) -> None:
        created = create(engine)
        with pytest.raises(ValidationError):
            engine.rotate_key(created.key.id, **arguments)
        assert not engine.validate_key(created.raw_key).rotated
        assert engine.list_rotations() == []

    def test_at_the_end_of_time(self, engine: Engine, clock: TurnableClock) -> None:
        created = create(engine)
        clock.now = datetime(9999, 12, 31, 23, tzinfo=UTC)
        with pytest.raises(ValidationError):
            engine.rotate_key(created.key.id)

    def test_the_old_secret_is_subject_to_what_the_key_is(self, engine: Engine) -> None:
        created = create(engine)
        rotated = engine.rotate_key(created.key.id)
        engine.suspend_key(created.key.id)
        again = engine.rotate_key(created.key.id)
        for raw_key in (created.raw_key, rotated.raw_key, again.raw_key):
            with pytest.raises(KeySuspendedError):
                engine.validate_key(raw_key)
        engine.reactivate_key(created.key.id)
        engine.validate_key(created.raw_key)
        engine.revoke_key(created.key.id)
        for raw_key in (created.raw_key, rotated.raw_key, again.raw_key):
            with pytest.raises(KeyRevokedError):
                engine.validate_key(raw_key)

    @pytest.mark.parametrize(
        "how", ["refused", "none", "compromise", "compromise later", "cleaned up"]
    )
    def test_a_clock_that_is_put_back_gives_no_secret_back(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder, how: str
    ) -> None:
        created = create(engine)
        engine.rotate_key(created.key.id, grace=timedelta(0) if how == "none" else HOUR)
        if how == "compromise":
            engine.rotate_key(created.key.id, reason="compromise")
        elif how != "none":
            clock.turn(hours=1)
        if how == "compromise later":
            engine.rotate_key(created.key.id, reason="compromise")
            assert recorder.names().count("on_grace_ended") == 1
        if how == "cleaned up":
            engine.cleanup_grace_expired()
        elif how == "refused":
            for _ in range(2):
                with pytest.raises(KeyRevokedError):
                    engine.validate_key(created.raw_key)
            assert recorder.names().count("on_grace_ended") == 1
            assert engine.cleanup_grace_expired() == 0
        clock.turn(minutes=-30)
        with pytest.raises(KeyRevokedError):
            engine.validate_key(created.raw_key)

    def test_an_end_of_grace_that_cannot_be_noted_is_one_all_the_same(
        self, engine: Engine, clock: TurnableClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        created = create(engine)
        engine.rotate_key(created.key.id, grace=HOUR)
        clock.turn(hours=1)
        with engine.store.snapshot(), pytest.raises(KeyRevokedError):
            engine.validate_key(created.raw_key)
        assert "The end of the grace period of a secret of akey_" in caplog.text
        assert engine.cleanup_grace_expired() == 1

    def test_a_policy_of_somebody_elses_making_gives_no_more_grace_than_there_is(
        self, engine: Engine
    ) -> None:
        policy = Policy(name="p", grace_period=timedelta(days=4000))
        engine.store.policies.create(policy)
        assert PolicyPublic.model_validate(engine.get_policy(policy.id))
        key_id = create(engine, policy_id=policy.id).key.id
        engine.rotate_key(key_id)
        [rotation] = engine.list_rotations(key_id=key_id)
        assert rotation.grace_ends == START + timedelta(days=3650)

    def test_ended_grace_is_reported_once(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        for _ in range(2):
            engine.rotate_key(create(engine).key.id, grace=HOUR)
        assert engine.cleanup_grace_expired() == 0
        clock.turn(hours=1)
        assert engine.for_tenant("acme").cleanup_grace_expired() == 0
        assert engine.cleanup_grace_expired() == 2
        assert engine.cleanup_grace_expired() == 0
        assert recorder.names().count("on_grace_ended") == 2


class TestStates:
    WAYS = {
        ("active", "suspend"): "suspended",
        ("active", "revoke"): "revoked",
        ("suspended", "reactivate"): "active",
        ("suspended", "revoke"): "revoked",
        ("active", "rotate"): "active",
        ("suspended", "rotate"): "suspended",
    }

    @pytest.mark.parametrize("deed", ["suspend", "revoke", "reactivate", "rotate"])
    @pytest.mark.parametrize("state", ["active", "suspended", "revoked", "expired"])
    def test_ways(self, engine: Engine, clock: TurnableClock, state: str, deed: str) -> None:
        key_id = create(engine, expires_at=START + HOUR).key.id
        if state == "suspended":
            engine.suspend_key(key_id)
        elif state == "revoked":
            engine.revoke_key(key_id)
        elif state == "expired":
            clock.turn(hours=1)
        expected = self.WAYS.get((state, deed))
        before = engine.get_key(key_id).to_row()
        call = getattr(engine, f"{deed}_key")
        if expected is None:
            with pytest.raises(InvalidStateTransitionError, match=state):
                call(key_id)
            assert engine.get_key(key_id).state == state
            if state != "expired":
                assert engine.get_key(key_id).to_row() == before
        else:
            call(key_id)
            assert engine.get_key(key_id).state == expected

    def test_times_are_kept(self, engine: Engine, clock: TurnableClock) -> None:
        key = create(engine).key
        clock.turn(hours=1)
        assert engine.suspend_key(key.id).updated_at == START + HOUR
        clock.turn(hours=1)
        revoked = engine.revoke_key(key.id, reason="gone")
        assert revoked.revoked_at == revoked.updated_at == START + 2 * HOUR

    def test_cleanup_notes_each_expiry_once(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        for tenant in ("a", "a", "b"):
            create(engine, tenant_id=tenant, expires_at=START + HOUR)
        create(engine)
        assert engine.cleanup_expired_keys() == 0
        clock.turn(hours=1)
        assert engine.for_tenant("a").cleanup_expired_keys() == 2
        assert engine.cleanup_expired_keys() == 1
        assert engine.cleanup_expired_keys() == 0
        assert recorder.names().count("on_key_expired") == 3
        assert engine.count_keys(state=KeyState.EXPIRED) == 3


class TestPolicies:
    def test_create_read_update_delete(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder
    ) -> None:
        policy = engine.create_policy(PolicyCreate(name="p", rate_limit=5, meta={"a": 1}))
        assert engine.get_policy(policy.id).to_row() == policy.to_row()
        assert policy.created_at == policy.updated_at == START
        assert policy.id < new_id(IdPrefix.POLICY, START + HOUR)
        clock.turn(hours=1)
        changed = engine.update_policy(
            policy.id, PolicyUpdate(rate_limit=7, rotation_period=DAY, allowed_ips=["10.0.0.1"])
        )
        assert changed.to_row() == policy.to_row() | {
            "rate_limit": 7,
            "rotation_period": DAY,
            "allowed_ips": ["10.0.0.1/32"],
            "updated_at": START + HOUR,
        }
        cleared = engine.update_policy(policy.id, PolicyUpdate(rotation_period=None))
        assert cleared.rotation_period is None
        with pytest.raises(ConflictError, match="name"):
            engine.create_policy(PolicyCreate(name="p"))
        other = engine.create_policy(PolicyCreate(name="p", tenant_id="acme"))
        assert [found.id for found in engine.list_policies(limit=5)] == [other.id, policy.id]
        key = create(engine, policy_id=policy.id).key
        with pytest.raises(PolicyInUseError):
            engine.delete_policy(policy.id)
        engine.update_key(key.id, KeyUpdate(policy_id=None))
        engine.delete_policy(policy.id)
        for call in (
            lambda: engine.get_policy(policy.id),
            lambda: engine.delete_policy(policy.id),
            lambda: engine.update_policy(policy.id, PolicyUpdate(name="x")),
        ):
            with pytest.raises(PolicyNotFoundError):
                call()
        assert [name for name in recorder.names() if "policy" in name] == [
            "on_policy_created",
            "on_policy_updated",
            "on_policy_updated",
            "on_policy_created",
            "on_policy_deleted",
        ]

    def test_a_change_counts_from_the_next_validation_on(self, engine: Engine) -> None:
        policy = engine.create_policy(PolicyCreate(name="p"))
        created = create(engine, policy_id=policy.id)
        engine.validate_key(created.raw_key)
        engine.update_policy(policy.id, PolicyUpdate(allowed_methods=["GET"]))
        with pytest.raises(MethodNotAllowedError):
            engine.validate_key(created.raw_key, method="POST")


class TestScopes:
    def test_create_read_update_delete(self, engine: Engine) -> None:
        parent = engine.create_scope(ScopeCreate(name="admin"))
        scope = engine.create_scope(ScopeCreate(name="audit", parent="admin", description="d"))
        assert engine.get_scope(scope.id).to_row() == scope.to_row()
        assert scope.created_at == START
        assert scope.id < new_id(IdPrefix.SCOPE, START + HOUR)
        assert [found.name for found in engine.list_scopes()] == ["admin", "audit"]
        assert [found.name for found in engine.list_scopes(parent="admin")] == ["audit"]
        changed = engine.update_scope(scope.id, ScopeUpdate(description="e", meta={"a": 1}))
        assert (changed.description, changed.parent, changed.meta) == ("e", "admin", {"a": 1})
        with pytest.raises(ConflictError):
            engine.create_scope(ScopeCreate(name="audit"))
        with pytest.raises(ScopeNotFoundError) as refused:
            engine.create_scope(ScopeCreate(name="other", parent="nope"))
        assert refused.value.names == ("nope",)
        engine.delete_scope(parent.id)
        assert engine.get_scope(scope.id).parent is None
        for call in (
            lambda: engine.get_scope(parent.id),
            lambda: engine.delete_scope(parent.id),
            lambda: engine.update_scope(parent.id, ScopeUpdate()),
        ):
            with pytest.raises(ScopeNotFoundError):
                call()

    def test_ensure_is_idempotent_and_all_or_nothing(self, engine: Engine) -> None:
        first = engine.ensure_scopes(["b", "a"])
        again = engine.ensure_scopes(["a", "b", "c", "c"])
        assert [scope.name for scope in again] == ["a", "b", "c", "c"]
        assert {scope.id for scope in first} < {scope.id for scope in again}
        with pytest.raises(ValidationError):
            engine.ensure_scopes(["d", "Not A Scope"])
        assert [scope.name for scope in engine.list_scopes()] == ["a", "b", "c"]
        assert [scope.name for scope in engine.ensure_scopes("a")] == ["a"]

    def test_a_loop_of_parents_is_refused(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "c"])
        b = engine.create_scope(ScopeCreate(name="b", parent="a"))
        engine.update_scope(engine.list_scopes(limit=1)[0].id, ScopeUpdate(parent="c"))
        c = engine.store.scopes.get_by_name("default", "c")
        for parent in ("a", "b", "c"):
            with pytest.raises(ScopeLoopError):
                engine.update_scope(c.id, ScopeUpdate(parent=parent))
        with pytest.raises(ScopeLoopError):
            engine.create_scope(ScopeCreate(name="self", parent="self"))
        engine.ensure_scopes(["x:y"])
        with pytest.raises(ScopeLoopError):
            engine.create_scope(ScopeCreate(name="x", parent="x:y"))
        assert engine.get_scope(b.id).parent == "a"

    def test_what_is_granted(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "a:b", "ab", "c"])
        engine.create_scope(ScopeCreate(name="below", parent="a:b"))
        created = create(engine, scopes=["a"])
        result = engine.validate_key(created.raw_key, scopes=["a:b", "below", "a:undeclared:x"])
        assert result.scopes == ("a", "a:b", "below")
        with pytest.raises(InsufficientScopeError) as refused:
            engine.validate_key(created.raw_key, scopes=["ab", "c", "below:x", "b"])
        assert refused.value.missing == ("ab", "b", "c")

    def test_assign_and_remove(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "b"])
        key_id, raw_key = (created := create(engine)).key.id, created.raw_key
        engine.assign_scopes(key_id, ["a"])
        with pytest.raises(ScopeNotFoundError):
            engine.assign_scopes(key_id, ["b", "nope"])
        with pytest.raises(ScopeNotFoundError):
            engine.remove_scopes(key_id, ["a", "nope"])
        assert engine.validate_key(raw_key).scopes == ("a",)
        engine.assign_scopes(key_id, "b")
        engine.remove_scopes(key_id, ["a"])
        assert engine.validate_key(raw_key).scopes == ("b",)

    def test_a_policy_bounds_what_is_assigned_and_granted(self, engine: Engine) -> None:
        engine.ensure_scopes(["read", "read:users", "read:users:me", "write"])
        engine.create_scope(ScopeCreate(name="export", parent="read:users"))
        policy = engine.create_policy(
            PolicyCreate(name="p", allowed_scopes=["read:users", "later:declared"])
        )
        with pytest.raises(ScopeNotAllowedError) as refused:
            create(engine, policy_id=policy.id, scopes=["read:users", "write", "read"])
        assert refused.value.names == ("read", "write")
        bounded = create(engine, policy_id=policy.id, scopes=["read:users:me", "export"])
        with pytest.raises(ScopeNotAllowedError):
            engine.assign_scopes(bounded.key.id, ["write"])
        assert engine.validate_key(bounded.raw_key).scopes == ("export", "read:users:me")
        broad = create(engine, scopes=["read", "write"])
        engine.update_key(broad.key.id, KeyUpdate(policy_id=policy.id))
        result = engine.validate_key(broad.raw_key, scopes=["read:users:anything"])
        assert result.scopes == ("export", "read:users", "read:users:me")
        with pytest.raises(InsufficientScopeError) as lacking:
            engine.validate_key(broad.raw_key, scopes=["write", "read:other"])
        assert lacking.value.missing == ("read:other", "write")


class TestTenants:
    def test_a_bound_engine_makes_its_own(self, engine: Engine) -> None:
        acme = engine.for_tenant("acme", app_id="billing")
        acme.ensure_scopes(["read"])
        policy = acme.create_policy(PolicyCreate(name="p"))
        created = create(acme, scopes=["read"], policy_id=policy.id)
        for entity in (created.key, policy, *acme.list_scopes()):
            assert (entity.tenant_id, entity.app_id) == ("acme", "billing")
        assert acme.validate_key(created.raw_key, scopes=["read"])
        assert engine.validate_key(created.raw_key)
        assert acme.tenant_id == "acme"

    @pytest.mark.parametrize("nobody", [None, "", 7, b"acme", uuid4()])
    def test_what_is_no_tenant_is_not_all_of_them(self, engine: Engine, nobody: Any) -> None:
        with pytest.raises(ValidationError):
            engine.for_tenant(nobody)
        if nobody is not None:
            with pytest.raises(ValidationError):
                engine.for_tenant("acme", app_id=nobody)

    def test_another_tenants_objects_do_not_exist(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        acme, globex = engine.for_tenant("acme"), engine.for_tenant("globex")
        [scope] = acme.ensure_scopes(["read"])
        policy = acme.create_policy(PolicyCreate(name="p"))
        created = create(acme, scopes=["read"], policy_id=policy.id)
        acme.rotate_key(created.key.id, grace=DAY)
        own = create(globex)
        before = engine.store.db.raw_connection().driver_connection
        dump = list(before.iterdump())
        calls: list[tuple[type[Exception], Any]] = [
            (InvalidKeyError, lambda: globex.validate_key(created.raw_key)),
            (KeyNotFoundError, lambda: globex.get_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.update_key(created.key.id, KeyUpdate(name="x"))),
            (KeyNotFoundError, lambda: globex.delete_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.rotate_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.revoke_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.suspend_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.reactivate_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.list_key_scopes(created.key.id)),
            (KeyNotFoundError, lambda: globex.assign_scopes(created.key.id, [])),
            (KeyNotFoundError, lambda: globex.remove_scopes(created.key.id, [])),
            (ScopeNotFoundError, lambda: globex.assign_scopes(own.key.id, ["read"])),
            (ScopeNotFoundError, lambda: globex.get_scope(scope.id)),
            (ScopeNotFoundError, lambda: globex.update_scope(scope.id, ScopeUpdate())),
            (ScopeNotFoundError, lambda: globex.delete_scope(scope.id)),
            (ScopeNotFoundError, lambda: create(globex, scopes=["read"])),
            (PolicyNotFoundError, lambda: globex.get_policy(policy.id)),
            (PolicyNotFoundError, lambda: globex.update_policy(policy.id, PolicyUpdate())),
            (PolicyNotFoundError, lambda: globex.delete_policy(policy.id)),
            (PolicyNotFoundError, lambda: create(globex, policy_id=policy.id)),
            (TenantMismatchError, lambda: create(globex, tenant_id="acme")),
            (TenantMismatchError, lambda: globex.ensure_scopes(["x"], tenant_id="acme")),
            (TenantMismatchError, lambda: globex.for_tenant("acme")),
        ]
        for error, call in calls:
            with pytest.raises(error):
                call()
        for listed in (
            globex.list_keys(tenant_id="acme"),
            globex.list_policies(),
            globex.list_policies(tenant_id="acme"),
            globex.list_scopes(),
            globex.list_scopes(tenant_id="acme"),
            globex.list_rotations(),
            globex.list_rotations(tenant_id="acme"),
            globex.list_rotations(key_id=created.key.id),
        ):
            assert listed == []
        assert [key.id for key in globex.list_keys()] == [own.key.id]
        assert (globex.count_keys(), globex.count_keys(tenant_id="acme")) == (1, 0)
        assert list(before.iterdump()) == dump

    def test_an_import_tells_nothing_of_another_tenants_secret(self, engine: Engine) -> None:
        acme = engine.for_tenant("acme", app_id="billing")
        old = create(acme)
        new = acme.rotate_key(old.key.id)
        others = (engine.for_tenant("globex"), engine.for_tenant("acme", app_id="search"))

        def refusal(importing: Engine, raw_key: str) -> str:
            with pytest.raises(ConflictError) as refused:
                importing.import_key(
                    KeyCreate(name="n"), key_hash=Hasher().hash(raw_key), hint="abcd"
                )
            return str(refused.value)

        told = {refusal(other, created.raw_key) for other in others for created in (old, new)}
        assert told == {"This secret cannot be imported: it is known already."}
        for owner in (engine, engine.for_tenant("acme"), acme):
            assert "rotated out of use" in refusal(owner, old.raw_key)
            assert refusal(owner, new.raw_key) == "Another key has this secret already."

    def test_apps_of_a_tenant_are_apart(self, engine: Engine) -> None:
        billing = engine.for_tenant("acme", app_id="billing")
        search = engine.for_tenant("acme", app_id="search")
        created = create(billing)
        billing.rotate_key(created.key.id)
        with pytest.raises(KeyNotFoundError):
            search.get_key(created.key.id)
        with pytest.raises(InvalidKeyError):
            search.validate_key(created.raw_key)
        with pytest.raises(TenantMismatchError):
            search.for_tenant("acme", app_id="billing")
        assert search.list_keys() == []
        assert search.list_rotations(key_id=created.key.id) == search.list_rotations() == []
        assert len(billing.list_rotations(key_id=created.key.id)) == 1
        assert engine.for_tenant("acme").get_key(created.key.id).app_id == "billing"


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
