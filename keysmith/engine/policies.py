"""Policies: create, read, change and delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keysmith.engine.context import Context, Precondition
from keysmith.ids import IdPrefix, new_id
from keysmith.models import Policy, PolicyCreate, PolicyUpdate


class Policies:
    """The policies of a store, as their tenant sees them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, data: PolicyCreate) -> Policy:
        now = self._context.now()
        policy = Policy(
            **self._context.tenancy.stamp(data).model_dump(),
            id=new_id(IdPrefix.POLICY, now),
            created_at=now,
            updated_at=now,
        )
        with self._context.store.transaction():
            self._context.store.policies.create(policy)
            self._context.announce("on_policy_created", policy)
        return policy

    def get(self, policy_id: str) -> Policy:
        return self._context.policy(policy_id)

    def list(
        self, limit: int | None, after: str | None, filters: dict[str, Any]
    ) -> Sequence[Policy]:
        narrowed = self._context.tenancy.narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.policies.list(limit=limit, after=after, **narrowed)

    def update(
        self, policy_id: str, data: PolicyUpdate, precondition: Precondition[Policy] | None
    ) -> Policy:
        with self._context.store.transaction():
            policy = self._context.policy(policy_id, for_update=True)
            if precondition is not None:
                precondition(policy)
            for name, value in data.changes().items():
                setattr(policy, name, value)
            policy.updated_at = self._context.now()
            self._context.store.policies.update(policy)
            self._context.announce("on_policy_updated", policy)
        return policy

    def delete(self, policy_id: str, precondition: Precondition[Policy] | None) -> None:
        with self._context.store.transaction():
            policy = self._context.policy(policy_id, for_update=True)
            if precondition is not None:
                precondition(policy)
            self._context.store.policies.delete(policy_id)
            self._context.announce("on_policy_deleted", policy_id)
