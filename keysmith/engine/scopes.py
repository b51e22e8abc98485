"""Scopes: their hierarchy, who holds them, and what that grants."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from keysmith.engine.context import Context, Precondition
from keysmith.engine.scope_names import covers, name_list
from keysmith.errors import ScopeLoopError, ScopeNotAllowedError, ScopeNotFoundError
from keysmith.ids import IdPrefix, new_id
from keysmith.models import Key, Policy, Scope, ScopeCreate, ScopeUpdate
from keysmith.stores.base import Store

logger = logging.getLogger("keysmith.plugins")

MOST_TOLD = 1_000
"""Keys of which plugins hear that a scope was deleted: nobody else can write until they have."""


def refuse_unallowed(store: Store, policy: Policy | None, names: Iterable[str]) -> None:
    """Raises `ScopeNotAllowedError` for scopes outside of the policy's `allowed_scopes`."""
    allowed = _allowed(store, policy)
    refused = [name for name in names if allowed is not None and not covers(allowed, name)]
    if refused:
        raise ScopeNotAllowedError(names=refused)


def _closure(store: Store, tenant_id: str, names: Iterable[str]) -> set[str]:
    """The names themselves and, of the tenant's scopes, all that lie below them."""
    names = set(names)
    return names.union(store.scopes.below(tenant_id, names)) if names else names


def _allowed(store: Store, policy: Policy | None) -> set[str] | None:
    """The scopes that the policy allows; `None` for all."""
    if policy is None or not policy.allowed_scopes:
        return None
    return _closure(store, policy.tenant_id, policy.allowed_scopes)


class Scopes:
    """The scopes of a store, as their tenant sees them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, data: ScopeCreate) -> Scope:
        with self._context.store.transaction():
            return self._add(self._context.tenancy.stamp(data))

    def ensure(self, names: Iterable[str], tenant_id: str | None) -> list[Scope]:
        scopes = [self._request(name, tenant_id) for name in name_list(names)]
        store = self._context.store
        with store.transaction():
            return [self._get_or_add(data) for data in scopes]

    def get(self, scope_id: str) -> Scope:
        return self._context.scope(scope_id)

    def list(
        self, limit: int | None, after: str | tuple[str, str] | None, filters: dict[str, Any]
    ) -> Sequence[Scope]:
        narrowed = self._context.tenancy.narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.scopes.list(limit=limit, after=after, **narrowed)

    def update(
        self, scope_id: str, data: ScopeUpdate, precondition: Precondition[Scope] | None
    ) -> Scope:
        with self._context.store.transaction():
            scope = self._context.scope(scope_id, for_update=True)
            if precondition is not None:
                precondition(scope)
            for name, value in data.changes().items():
                setattr(scope, name, value)
            self._check_parent(scope)
            self._context.store.scopes.update(scope)
            self._context.announce("on_scope_updated", scope)
        return scope

    def delete(self, scope_id: str, precondition: Precondition[Scope] | None) -> None:
        with self._context.store.transaction():
            scope = self._context.scope(scope_id, for_update=True)
            if precondition is not None:
                precondition(scope)
            holders = self._heard_holders(scope)
            self._context.store.scopes.delete(scope_id)
            self._context.announce("on_scope_deleted", scope)
            names = self._context.store.scopes.names_by_key(key.id for key in holders)
            for key in holders:
                self._context.announce("on_key_scopes_changed", key, tuple(names.get(key.id, ())))

    def assign(self, key_id: str, names: Iterable[str]) -> None:
        names = name_list(names)
        store = self._context.store
        with self._change_of(key_id) as key:
            policy = store.policies.get(key.policy_id) if key.policy_id else None
            store.scopes.assign_to_key(key_id, names)
            refuse_unallowed(store, policy, names)

    def remove(self, key_id: str, names: Iterable[str]) -> None:
        names = name_list(names)
        with self._change_of(key_id):
            self._context.store.scopes.remove_from_key(key_id, names)

    def of_key(self, key_id: str) -> Sequence[Scope]:
        with self._context.store.snapshot():
            self._context.key(key_id)
            return self._context.store.scopes.list_by_key(key_id)

    @contextmanager
    def _change_of(self, key_id: str) -> Iterator[Key]:
        """A transaction in which the scopes of a key change; plugins hear of it if they do."""
        with self._context.store.transaction():
            key = self._context.key(key_id, for_update=True)
            before = self._held(key_id)
            yield key
            after = self._held(key_id)
            if after != before:
                self._context.announce("on_key_scopes_changed", key, after)

    def _heard_holders(self, scope: Scope) -> Sequence[Key]:
        """The keys that hold a scope and are told of."""
        if not self._context.hooks.hears("on_key_scopes_changed"):
            return []
        holders = self._context.store.keys.list_by_scope(scope.id, limit=MOST_TOLD + 1)
        if len(holders) > MOST_TOLD:
            logger.warning(
                "More than %d keys lose the scope %s. Plugins miss that of the oldest.",
                MOST_TOLD,
                scope.name,
            )
        return holders[:MOST_TOLD]

    def _held(self, key_id: str) -> tuple[str, ...]:
        return tuple(scope.name for scope in self._context.store.scopes.list_by_key(key_id))

    def _add(self, data: ScopeCreate) -> Scope:
        now = self._context.now()
        scope = Scope(**data.model_dump(), id=new_id(IdPrefix.SCOPE, now), created_at=now)
        self._check_parent(scope)
        self._context.store.scopes.create(scope)
        self._context.announce("on_scope_created", scope)
        return scope

    def _request(self, name: str, tenant_id: str | None) -> ScopeCreate:
        if tenant_id is None:
            return self._context.tenancy.stamp(ScopeCreate(name=name))
        return self._context.tenancy.stamp(ScopeCreate(name=name, tenant_id=tenant_id))

    def _get_or_add(self, data: ScopeCreate) -> Scope:
        try:
            return self._context.store.scopes.get_by_name(data.tenant_id, data.name)
        except ScopeNotFoundError:
            return self._add(data)

    def _check_parent(self, scope: Scope) -> None:
        """Raises `ScopeNotFoundError` for an unknown parent, `ScopeLoopError` for one below."""
        if scope.parent is None:
            return
        store = self._context.store
        if scope.parent in _closure(store, scope.tenant_id, [scope.name]):
            raise ScopeLoopError
        try:
            store.scopes.get_by_name(scope.tenant_id, scope.parent)
        except ScopeNotFoundError:
            raise ScopeNotFoundError(names=[scope.parent]) from None
