"""Policies."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keysmith import (
    ConflictError,
    NotFoundError,
    Policy,
    PolicyInUseError,
    PolicyNotFoundError,
    Store,
)
from keysmith.testing.contract.samples import a_key, ids


class TestPolicies:
    def test_round_trip_update_and_lists(self, store: Store) -> None:
        policy = store.policies.create(
            Policy(
                name="p",
                allowed_ips=["10.0.0.0/8"],
                max_key_lifetime=timedelta(days=1),
                rate_limit_window=timedelta(milliseconds=1500),
                meta={"a": 1},
            )
        )
        assert store.policies.get(policy.id).to_row() == policy.to_row()
        policy.allowed_ips = []
        policy.max_key_lifetime = None
        store.policies.update(policy)
        assert store.policies.get_by_name("default", "p").to_row() == policy.to_row()
        other = store.policies.create(Policy(name="p", tenant_id="acme"))
        assert store.policies.get_by_name("acme", "p") == other
        assert ids(store.policies.list()) == [other.id, policy.id]
        assert ids(store.policies.list(tenant_id="acme")) == [other.id]
        assert ids(store.policies.list(limit=1, after=other.id)) == [policy.id]
        assert (store.policies.count(), store.policies.count(tenant_id="acme")) == (2, 1)

    def test_names_are_unique_within_a_tenant(self, store: Store) -> None:
        store.policies.create(Policy(name="p"))
        other = store.policies.create(Policy(name="q"))
        with pytest.raises(ConflictError, match="name"):
            store.policies.create(Policy(name="p"))
        assert store.policies.get_by_name("default", "q") == other
        other.name = "p"
        with pytest.raises(ConflictError, match="name"):
            store.policies.update(other)

    def test_one_in_use_stays(self, store: Store) -> None:
        policy = store.policies.create(Policy(name="p"))
        key = a_key(store, policy_id=policy.id)
        with pytest.raises(PolicyInUseError):
            store.policies.delete(policy.id)
        store.keys.delete(key.id)
        store.policies.delete(policy.id)
        for call in (
            lambda: store.policies.get(policy.id),
            lambda: store.policies.get_by_name("default", "p"),
            lambda: store.policies.update(policy),
            lambda: store.policies.delete(policy.id),
        ):
            with pytest.raises(PolicyNotFoundError):
                call()
        with pytest.raises(NotFoundError):
            a_key(store, policy_id=policy.id)
