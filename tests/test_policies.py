"""Policies: made, changed, and deleted once no key bears them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keysmith import (
    ConflictError,
    Engine,
    KeyUpdate,
    MethodNotAllowedError,
    PolicyCreate,
    PolicyInUseError,
    PolicyNotFoundError,
    PolicyUpdate,
)
from keysmith.ids import IdPrefix, new_id
from tests.conftest import START, Recorder, TurnableClock, create

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


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
