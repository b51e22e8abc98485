"""Keys: create, import, read, change and delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from keysmith.engine.context import Context, Precondition
from keysmith.engine.idempotency import Mark
from keysmith.engine.lifecycle import ended_for_good, refuse_final, state_at
from keysmith.engine.results import CreatedKey
from keysmith.engine.scopes import refuse_unallowed
from keysmith.errors import (
    ConflictError,
    KeyNotFoundError,
    KeysmithError,
    PolicyNotFoundError,
    PolicyViolationError,
    RequestRepeatedError,
)
from keysmith.ids import IdPrefix, new_id
from keysmith.models import Key, KeyCreate, KeyUpdate, Policy
from keysmith.models.base import invalid
from keysmith.raw_keys import hint_of

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class Keys:
    """The keys of a store, as their tenant sees them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, data: KeyCreate, idempotency_key: str | None) -> CreatedKey:
        raw_key = self._context.new_raw_key(data.prefix, data.environment)
        key_hash = self._context.hasher.hash(raw_key)
        key = self._add(data, key_hash, hint_of(raw_key), idempotency_key=idempotency_key)
        return CreatedKey(key, raw_key)

    def import_(self, data: KeyCreate, key_hash: str, hint: str) -> Key:
        return self._add(data, key_hash, hint, imported=True)

    def get(self, key_id: str) -> Key:
        return self._context.key(key_id)

    def list(self, limit: int | None, after: str | None, filters: dict[str, Any]) -> Sequence[Key]:
        narrowed = self._narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.keys.list(limit=limit, after=after, **narrowed)

    def count(self, filters: dict[str, Any]) -> int:
        narrowed = self._narrow(filters)
        return 0 if narrowed is None else self._context.store.keys.count(**narrowed)

    def update(self, key_id: str, data: KeyUpdate, precondition: Precondition[Key] | None) -> Key:
        changes = data.changes()
        with ended_for_good(self._context, key_id), self._context.store.transaction():
            now = self._context.now()
            key = self._context.key(key_id, for_update=True)
            if precondition is not None:
                precondition(key)
            if "expires_at" in changes:
                refuse_final(key, now, "given another expiry")
            if "expires_at" in changes or "policy_id" in changes:
                changes["expires_at"] = self._expiry(key, changes, now)
            for name, value in changes.items():
                setattr(key, name, value)
            key.updated_at = now
            key = self._context.store.keys.update(key)
            self._context.announce("on_key_updated", key)
        return key

    def delete(self, key_id: str, precondition: Precondition[Key] | None) -> None:
        with self._context.store.transaction():
            key = self._context.key(key_id, for_update=True)
            if precondition is not None:
                precondition(key)
            self._context.store.keys.delete(key_id)
            self._context.announce("on_key_deleted", key)

    def _narrow(self, filters: dict[str, Any]) -> dict[str, Any] | None:
        if filters.get("unused_since") is not None and not self._context.store.in_transaction:
            self._context.usage.flush()
        return self._context.tenancy.narrow(filters)

    def _add(
        self,
        data: KeyCreate,
        key_hash: str,
        hint: str,
        *,
        imported: bool = False,
        idempotency_key: str | None = None,
    ) -> Key:
        try:
            data = self._context.tenancy.stamp(data)
            mark = self._mark(data, idempotency_key)
            return self._insert(data, key_hash, hint, imported, mark)
        except RequestRepeatedError:
            raise
        except (KeysmithError, ValidationError) as error:
            asked = self._context.tenancy.claim(data)  # another tenant is not to hear of it
            self._context.hooks.fire("on_key_create_failed", asked, error)
            raise

    def _mark(self, data: KeyCreate, idempotency_key: str | None) -> Mark | None:
        if idempotency_key is None:
            return None
        asked = data.model_dump(mode="json", exclude_defaults=True)
        return Mark.of(self._context.tenancy, idempotency_key, asked)

    def _insert(
        self, data: KeyCreate, key_hash: str, hint: str, imported: bool, mark: Mark | None
    ) -> Key:
        store = self._context.store
        with store.transaction():
            if mark is not None:
                mark.refuse_again(store.keys.get_by_request)
            now = self._context.now()
            policy = self._policy(data.policy_id, data.tenant_id)
            if imported:
                self._refuse_used(key_hash)
            values = data.model_dump(exclude={"scopes", "expires_at"})
            key = Key(
                **values,
                **(asdict(mark) if mark is not None else {}),
                id=new_id(IdPrefix.KEY, now),
                key_hash=key_hash,
                hint=hint,
                expires_at=bounded_expiry(
                    data.expires_at, policy, created_at=now, now=now, model=KeyCreate
                ),
                created_at=now,
                updated_at=now,
            )
            store.keys.create(key)
            if data.scopes:
                store.scopes.assign_to_key(key.id, data.scopes)
                refuse_unallowed(store, policy, data.scopes)
            self._context.announce("on_key_created", key)
            return key

    def _policy(self, policy_id: str | None, tenant_id: str) -> Policy | None:
        if policy_id is None:
            return None
        policy = self._context.policy(policy_id)
        if policy.tenant_id != tenant_id:
            raise PolicyNotFoundError
        return policy

    def _refuse_used(self, key_hash: str) -> None:
        """A secret that was rotated out never comes back, also not as another key's."""
        try:
            found = self._context.store.credentials.find(key_hash)
        except KeyNotFoundError:
            return
        if not self._context.tenancy.owns(found.key):
            # Another tenant is not to hear whether it works still.
            raise ConflictError("This secret cannot be imported: it is known already.")
        if found.rotation is not None:
            raise ConflictError("This secret was rotated out of use; it cannot be imported again.")

    def _expiry(self, key: Key, changes: dict[str, Any], now: datetime) -> datetime | None:
        if "policy_id" in changes:
            policy = self._policy(changes["policy_id"], key.tenant_id)
        else:  # the one that it bears may be another app's
            policy = self._context.store.policies.get(key.policy_id) if key.policy_id else None
        if state_at(key, now).final:
            return key.expires_at
        latest = latest_expiry(policy, key.created_at)
        shortened = min(filter(None, (key.expires_at, latest)), default=None)
        wanted = changes.get("expires_at", shortened)
        return bounded_expiry(wanted, policy, created_at=key.created_at, now=now, model=KeyUpdate)


def latest_expiry(policy: Policy | None, created_at: datetime) -> datetime | None:
    """The latest moment at which a key of this policy may expire; `None` for never."""
    if policy is None or policy.max_key_lifetime is None:
        return None
    try:
        return created_at + policy.max_key_lifetime
    except OverflowError:
        return _END_OF_TIME


def bounded_expiry(
    wanted: datetime | None,
    policy: Policy | None,
    *,
    created_at: datetime,
    now: datetime,
    model: type[KeyCreate] | type[KeyUpdate],
) -> datetime | None:
    """The expiry that was asked for, within the policy's `max_key_lifetime`.

    Raises `ValidationError` for one that is not in the future, and `PolicyViolationError` for one
    that is later than the policy allows, or for a key that is older than that.
    """
    latest = latest_expiry(policy, created_at)
    if latest is not None and latest <= now:
        raise PolicyViolationError("The key is older than the policy lets a key become.")
    if wanted is None:
        wanted = latest
    if wanted is not None and wanted <= now:
        raise invalid(model, "expires_at", "must be in the future")
    if wanted is not None and latest is not None and wanted > latest:
        raise PolicyViolationError(
            f"The policy lets a key live until {latest.isoformat()} at the latest."
        )
    return wanted
