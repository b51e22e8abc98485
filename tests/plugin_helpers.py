"""What the tests of plugins share: an engine in which everything happens."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from keysmith import (
    Engine,
    KeyCreate,
    KeyNotFoundError,
    KeysmithError,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    ScopeUpdate,
)
from tests.conftest import TurnableClock


def everything_happens(engine: Engine, clock: TurnableClock) -> list[str]:
    """Fires every hook but that of the shutdown; gives all raw keys and hashes there were."""
    acme = engine.for_tenant("acme")
    policy = acme.create_policy(PolicyCreate(name="p"))
    acme.update_policy(policy.id, PolicyUpdate(description="changed"))
    acme.delete_policy(policy.id)
    first = acme.create_key(KeyCreate(name="one", created_by="alice"))
    secrets = [first.raw_key, first.key.key_hash]
    with suppress(KeysmithError):
        acme.create_key(KeyCreate(name="two", created_by="bob", scopes=["nope"]))
    acme.validate_key(first.raw_key)
    second = acme.rotate_key(first.key.id, grace=timedelta(0), rotated_by="carol")
    secrets += [second.raw_key, second.key.key_hash]
    for raw_key in (first.raw_key, second.raw_key[:-1]):
        with suppress(KeysmithError):
            acme.validate_key(raw_key)
    acme.cleanup_grace_expired()
    third = acme.rotate_key(first.key.id, reason="compromise")
    secrets += [third.raw_key, third.key.key_hash]
    acme.suspend_key(first.key.id)
    acme.reactivate_key(first.key.id)
    acme.update_key(first.key.id, KeyUpdate(name="renamed"))
    read, _ = acme.ensure_scopes(["read", "write"])
    acme.update_scope(read.id, ScopeUpdate(parent="write"))
    acme.assign_scopes(first.key.id, ["read", "write"])
    acme.remove_scopes(first.key.id, ["read", "write"])
    acme.delete_scope(read.id)
    hooks = engine._context.hooks
    hooks.fire("on_key_rate_limited", acme.get_key(first.key.id))
    hooks.fire("on_key_quota_exceeded", acme.get_key(first.key.id))
    acme.revoke_key(first.key.id, reason="leaked\nin a log")
    brief = acme.create_key(KeyCreate(name="three", expires_at=clock() + timedelta(hours=1)))
    secrets += [brief.raw_key, brief.key.key_hash]
    clock.turn(hours=1)
    acme.cleanup_expired_keys()
    acme.delete_key(brief.key.id)
    with suppress(KeyNotFoundError):
        acme.revoke_key("nope")
    return secrets


HAPPENED = [
    "policy.created",
    "policy.updated",
    "policy.deleted",
    "key.created",
    "key.create_failed",
    "key.validated",
    "key.rotated",
    "key.reused",
    "key.validation_failed",
    "key.validation_failed",
    "key.grace_ended",
    "key.rotated",
    "key.suspended",
    "key.reactivated",
    "key.updated",
    "scope.created",
    "scope.created",
    "scope.updated",
    "key.scopes_changed",
    "key.scopes_changed",
    "scope.deleted",
    "key.rate_limited",
    "key.quota_exceeded",
    "key.revoked",
    "key.created",
    "key.expired",
    "key.deleted",
]
"""The events of `everything_happens`, in order."""
