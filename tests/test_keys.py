"""The life of a key: created, read, changed, suspended, revoked and deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Engine,
    Hasher,
    HmacSha256Hasher,
    InvalidKeyError,
    InvalidStateTransitionError,
    KeyCreate,
    KeyGenerator,
    KeyNotFoundError,
    KeyState,
    KeyUpdate,
    PolicyCreate,
    PolicyInUseError,
    PolicyNotFoundError,
    PolicyViolationError,
    ScopeNotFoundError,
    SqliteStore,
)
from tests.conftest import START, Recorder, TurnableClock, create

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


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
        recorder.events.clear()
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
        for data in (
            KeyUpdate(policy_id=policy.id),
            KeyUpdate(policy_id=policy.id, expires_at=None),
            KeyUpdate(policy_id=policy.id, expires_at=START + 3 * DAY),
        ):
            with pytest.raises(PolicyViolationError, match="older"):
                engine.update_key(old.id, data)
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

    def test_what_is_final_keeps_no_policy_from_being_deleted(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        policy, other = (
            engine.create_policy(PolicyCreate(name=name, max_key_lifetime=lifetime))
            for name, lifetime in (("p", None), ("q", HOUR))
        )
        revoked = create(engine, policy_id=policy.id).key
        engine.revoke_key(revoked.id)
        expired = create(engine, policy_id=policy.id, expires_at=START + HOUR).key
        clock.turn(days=1)
        for key, new in ((revoked, None), (expired, other.id)):
            with pytest.raises(PolicyInUseError):
                engine.delete_policy(policy.id)
            changed = engine.update_key(key.id, KeyUpdate(policy_id=new))
            assert (changed.policy_id, changed.expires_at) == (new, key.expires_at)
        engine.delete_policy(policy.id)

    def test_the_expiry_of_a_key_that_bears_another_apps_policy(self, engine: Engine) -> None:
        policy = engine.create_policy(
            PolicyCreate(name="p", app_id="billing", max_key_lifetime=2 * DAY)
        )
        shop = engine.for_tenant("default", app_id="shop")
        key = create(engine, app_id="shop", policy_id=policy.id).key
        assert shop.update_key(key.id, KeyUpdate(expires_at=START + DAY)).expires_at == START + DAY
        with pytest.raises(PolicyViolationError):
            shop.update_key(key.id, KeyUpdate(expires_at=START + 3 * DAY))
        with pytest.raises(PolicyNotFoundError):
            shop.update_key(key.id, KeyUpdate(policy_id=policy.id))

    @pytest.mark.parametrize("made", ["x" * 513, "", "sk_live_" + 49 * "a", b"bytes"])
    def test_a_generator_of_what_could_never_be_validated(
        self, memory: SqliteStore, made: Any
    ) -> None:
        class Generator(KeyGenerator):
            def generate(self, prefix: str, environment: str) -> str:
                return made if broken else super().generate(prefix, environment)

        broken = False
        engine = Engine(memory, generator=Generator())
        raw_key = create(engine).raw_key
        broken = True
        with pytest.raises(ValueError, match="key generator"):
            create(engine)
        with pytest.raises(ValueError, match="key generator"):
            engine.rotate_key(engine.list_keys()[0].id)
        assert not engine.validate_key(raw_key).rotated
        assert engine.count_keys() == 1

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
