"""What every part of the engine stands on: the store, the clock, and whose objects exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from keysmith.clock import Clock
from keysmith.engine.buffer import UsageBuffer
from keysmith.engine.candidates import Candidates
from keysmith.engine.hooks import Hooks
from keysmith.engine.keepsakes import keepsake
from keysmith.engine.limits import RateLimiter
from keysmith.errors import (
    InvalidKeyError,
    KeyNotFoundError,
    PolicyNotFoundError,
    ScopeNotFoundError,
    TenantMismatchError,
)
from keysmith.models import Environment, Key, Policy, Scope
from keysmith.models.base import Owned, moment
from keysmith.raw_keys import MAX_RAW_KEY_LENGTH, Hasher, KeyGenerator, check_form
from keysmith.stores.base import Store, TenantFilters

OwnedT = TypeVar("OwnedT", bound=Owned)

Precondition = Callable[[OwnedT], object]
"""Looks at what is to be changed, in the transaction of the change; raises to prevent it."""


def present(clock: Clock) -> datetime:
    """What the clock says, in UTC. Raises `ValidationError` if that is naive."""
    now = clock()
    return now if now.tzinfo is UTC else moment(now)


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Whose objects exist for a caller: everybody's, one tenant's, or one app's of a tenant."""

    tenant_id: str | None = None
    app_id: str | None = None

    def owns(self, entity: Owned) -> bool:
        """Whether the object exists for this caller."""
        return self.tenant_id in (None, entity.tenant_id) and self.app_id in (None, entity.app_id)

    def stamp(self, data: OwnedT) -> OwnedT:
        """The same request, for this caller. Raises `TenantMismatchError` if it names another."""
        for name, value in self._bound.items():
            if name in data.model_fields_set and getattr(data, name) != value:
                raise TenantMismatchError
        return self.claim(data)

    def claim(self, data: OwnedT) -> OwnedT:
        """The same request, for this caller, whomever it names."""
        return data.model_copy(update=self._bound) if self._bound else data

    @property
    def _bound(self) -> dict[str, object]:
        return {name: value for name, value in self.filters().items() if value is not None}

    def filters(self) -> TenantFilters:
        """The filters that leave only this caller's objects."""
        return {"tenant_id": self.tenant_id, "app_id": self.app_id}

    def narrow(self, filters: dict[str, Any]) -> dict[str, Any] | None:
        """The filters within this caller's objects; `None` if they ask for somebody else's."""
        narrowed = dict(filters)
        for name, value in self._bound.items():
            if narrowed.get(name) not in (None, value):
                return None
            narrowed[name] = value
        return narrowed


@dataclass(frozen=True, slots=True)
class Context:
    """What the parts of an engine share."""

    store: Store
    clock: Clock
    hasher: Hasher
    generator: KeyGenerator
    hooks: Hooks
    candidates: Candidates
    limiter: RateLimiter
    usage: UsageBuffer
    tenancy: Tenancy

    def announce(self, hook: str, *arguments: Any) -> None:
        """Tells plugins what was done, once it is committed; if it never is, they never hear of it.

        What changes a key is announced in the transaction that changes it: its events come in the
        order of the commits. What no rollback undoes, such as a refusal, is told at once, by
        `hooks.fire`.
        """
        if not self.hooks.hears(hook):
            return
        if not self.store.in_transaction:
            self.hooks.fire(hook, *arguments)
            return
        # The caller may change them before the commit.
        arguments = tuple(map(keepsake, arguments))
        self.store.after_commit(partial(self.hooks.tell, hook, *arguments), in_order=True)
        self.store.after_commit(partial(self.hooks.call, hook, *arguments))

    def now(self) -> datetime:
        """The present, by the engine's clock. Raises `ValidationError` if the clock is naive."""
        return present(self.clock)

    def new_raw_key(self, prefix: str, environment: Environment) -> str:
        """A new secret. Raises `ValueError` for one that could never be validated."""
        raw_key = self.generator.generate(prefix, environment.value)
        try:
            return check_form(raw_key)
        except InvalidKeyError:
            raise ValueError(
                "The key generator made what is no raw key: it must be text of at most "
                f"{MAX_RAW_KEY_LENGTH} characters, and in Keysmith's format have its checksum."
            ) from None

    def key(self, key_id: str, *, for_update: bool = False) -> Key:
        """The caller's key. Raises `KeyNotFoundError`."""
        key = self.store.keys.get(key_id, for_update=for_update)
        if not self.tenancy.owns(key):
            raise KeyNotFoundError
        return key

    def policy(self, policy_id: str, *, for_update: bool = False) -> Policy:
        """The caller's policy. Raises `PolicyNotFoundError`."""
        policy = self.store.policies.get(policy_id, for_update=for_update)
        if not self.tenancy.owns(policy):
            raise PolicyNotFoundError
        return policy

    def scope(self, scope_id: str, *, for_update: bool = False) -> Scope:
        """The caller's scope. Raises `ScopeNotFoundError`."""
        scope = self.store.scopes.get(scope_id, for_update=for_update)
        if not self.tenancy.owns(scope):
            raise ScopeNotFoundError
        return scope
