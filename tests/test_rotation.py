"""New secrets: grace periods, what ends them, and the history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    Engine,
    Key,
    KeyRevokedError,
    KeyState,
    KeySuspendedError,
    Policy,
    PolicyCreate,
    PolicyPublic,
    RotationReason,
)
from keysmith.ids import IdPrefix, new_id
from tests.conftest import START, Recorder, TurnableClock, create

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


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

    def test_the_longest_grace_there_is(self, engine: Engine) -> None:
        created = create(engine)
        engine.rotate_key(created.key.id, grace=timedelta(days=3650))
        assert engine.validate_key(created.raw_key).grace_ends == START + timedelta(days=3650)

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

    @pytest.mark.parametrize("state", ["active", "suspended", "revoked", "expired"])
    def test_the_use_of_an_old_secret_is_told_in_whatever_state_the_key_is(
        self, engine: Engine, clock: TurnableClock, recorder: Recorder, state: str
    ) -> None:
        created = create(engine, expires_at=START + HOUR)
        engine.rotate_key(created.key.id, reason="compromise")
        if state == "suspended":
            engine.suspend_key(created.key.id)
        elif state == "revoked":
            engine.revoke_key(created.key.id)
        elif state == "expired":
            clock.turn(hours=1)
        for times in (1, 2):
            with pytest.raises(KeyRevokedError):
                engine.validate_key(created.raw_key)
            assert recorder.names().count("on_rotated_key_reused") == times

    def test_a_precondition_holds_in_the_moment_of_the_rotation(self, engine: Engine) -> None:
        created = create(engine)
        seen = []

        def no(key: Key) -> None:
            seen.append((key.id, engine.store.in_transaction))
            raise KeySuspendedError

        with pytest.raises(KeySuspendedError):
            engine.rotate_key(created.key.id, precondition=no)
        assert seen == [(created.key.id, True)]
        assert engine.list_rotations() == []
        rotated = engine.rotate_key(created.key.id, precondition=lambda _: None)
        assert not engine.validate_key(rotated.raw_key).rotated

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
