"""Validation: what stands between a request and somebody's API."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from time import perf_counter

from keysmith.engine.context import Context
from keysmith.engine.lifecycle import Lifecycle, state_at
from keysmith.engine.results import ValidationResult
from keysmith.engine.rules import Request, check_request
from keysmith.engine.scopes import Grants
from keysmith.errors import (
    InsufficientScopeError,
    InvalidKeyError,
    KeyExpiredError,
    KeyInactiveError,
    KeyNotFoundError,
    KeyRevokedError,
    KeysmithError,
    KeySuspendedError,
    RotationNotFoundError,
    StoreError,
)
from keysmith.models import Key, KeyPublic, KeyState, Policy, PolicyPublic, Rotation
from keysmith.raw_keys import check_form, mask

logger = logging.getLogger(__name__)

_INACTIVE: dict[KeyState, type[KeyInactiveError]] = {
    KeyState.SUSPENDED: KeySuspendedError,
    KeyState.REVOKED: KeyRevokedError,
    KeyState.EXPIRED: KeyExpiredError,
}


class Validation:
    """Judges raw keys, in the order that the documentation promises."""

    def __init__(self, context: Context, lifecycle: Lifecycle) -> None:
        self._context = context
        self._lifecycle = lifecycle

    def validate(self, raw_key: str, request: Request, scopes: Iterable[str]) -> ValidationResult:
        hooks = self._context.hooks
        began = perf_counter() if hooks.hears("on_validation_timed") else None
        try:
            result = self._judge(raw_key, request, scopes)
        except KeysmithError as error:
            if began is not None:
                hooks.fire("on_validation_timed", error.code, perf_counter() - began)
            if not isinstance(error, StoreError):
                hooks.fire("on_key_validation_failed", mask(raw_key), error)
            raise
        if began is not None:
            hooks.fire("on_validation_timed", "ok", perf_counter() - began)
        hooks.fire("on_key_validated", result)
        return result

    def _judge(self, raw_key: str, request: Request, scopes: Iterable[str]) -> ValidationResult:
        key_hash = self._context.hasher.hash(check_form(raw_key))
        store = self._context.store
        with store.snapshot():
            now = self._context.now()
            key, rotation = self._find(key_hash)
            policy = store.policies.get(key.policy_id) if key.policy_id else None
            held = [scope.name for scope in store.scopes.list_by_key(key.id)]
            grants = Grants(store, key.tenant_id, held, policy)
        self._refuse_inactive(key, rotation, now)
        if policy is not None:
            check_request(policy, request)
        missing = grants.missing(scopes)
        if missing:
            raise InsufficientScopeError(missing=missing)
        return _result(key, rotation, policy, grants)

    def _find(self, key_hash: str) -> tuple[Key, Rotation | None]:
        """The key whose secret this is, and the rotation that took the secret out, if one did."""
        store, rotation = self._context.store, None
        try:
            key = store.keys.get_by_hash(key_hash)
        except KeyNotFoundError:
            try:
                rotation = store.rotations.get_by_old_hash(key_hash)
            except RotationNotFoundError:
                raise InvalidKeyError from None
            key = store.keys.get(rotation.key_id)
        if not self._context.tenancy.owns(key):
            raise InvalidKeyError
        return key, rotation

    def _refuse_inactive(self, key: Key, rotation: Rotation | None, now: datetime) -> None:
        state = state_at(key, now)
        if state is not key.state:
            self._note_expiry(key)
        if state is not KeyState.ACTIVE:
            raise _INACTIVE[state]
        if rotation is not None and not rotation.in_grace(now):
            self._context.hooks.fire("on_rotated_key_reused", key, rotation)
            raise KeyRevokedError

    def _note_expiry(self, key: Key) -> None:
        """Writes the expiry down; the key is refused all the same where that cannot be."""
        try:
            self._lifecycle.expire(key.id)
        except (StoreError, KeyNotFoundError) as error:
            logger.warning("The expiry of %s could not be written down: %s", key.id, error)


def _result(
    key: Key, rotation: Rotation | None, policy: Policy | None, grants: Grants
) -> ValidationResult:
    return ValidationResult(
        key=KeyPublic.model_validate(key),
        scopes=grants.names,
        policy=None if policy is None else PolicyPublic.model_validate(policy),
        rotated=rotation is not None,
        grace_ends=None if rotation is None else rotation.grace_ends,
    )
