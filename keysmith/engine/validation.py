"""Validation: what stands between a request and somebody's API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from time import perf_counter
from typing import Annotated

from pydantic import Field, TypeAdapter

from keysmith.engine.candidates import Candidate
from keysmith.engine.context import Context
from keysmith.engine.lifecycle import Lifecycle
from keysmith.engine.limits import Limits
from keysmith.engine.results import RateLimitStatus, ValidationResult
from keysmith.engine.rotation import Rotations
from keysmith.errors import (
    InvalidKeyError,
    KeyExpiredError,
    KeyInactiveError,
    KeyRevokedError,
    KeysmithError,
    KeySuspendedError,
    NotFoundError,
    QuotaExceededError,
    RateLimitedError,
    StoreError,
    StoreUnavailableError,
)
from keysmith.models import KeyPublic, KeyState
from keysmith.models.base import HIDE_INPUT
from keysmith.models.policies import MAX_COUNT
from keysmith.raw_keys import check_form, mask

logger = logging.getLogger(__name__)

_INACTIVE: dict[KeyState, type[KeyInactiveError]] = {
    KeyState.SUSPENDED: KeySuspendedError,
    KeyState.REVOKED: KeyRevokedError,
    KeyState.EXPIRED: KeyExpiredError,
}

Take = Callable[[str, Limits, int], RateLimitStatus | None]

Cost = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]

_cost: TypeAdapter[int] = TypeAdapter(Cost, config=HIDE_INPUT)


class Validation:
    """Judges raw keys, in the order that the documentation promises."""

    def __init__(self, context: Context, lifecycle: Lifecycle, rotations: Rotations) -> None:
        self._context = context
        self._candidates = context.candidates
        self._hash = context.hasher.hash
        self._tenancy = context.tenancy
        self._anyone = context.tenancy.tenant_id is None
        self._lifecycle = lifecycle
        self._rotations = rotations
        self._hooks = context.hooks
        self._timed = context.hooks.hears("on_validation_timed")
        self._heard = context.hooks.hears("on_key_validated")
        self._failures_heard = context.hooks.hears("on_key_validation_failed")
        told = self._timed or self._heard or self._failures_heard
        self.validate = self._tell if told else self._answer
        """The result; `None` if it is to come `at_once`, and may have to be waited for."""
        self._counts_at_once = getattr(context.limiter, "immediate", False)
        self._take_at_once: Take | None = getattr(context.limiter, "take_at_once", None)

    def _tell(
        self,
        raw_key: str,
        ip: str | None,
        origin: str | None,
        method: str | None,
        path: str | None,
        scopes: Iterable[str],
        cost: int,
        at_once: bool = False,
    ) -> ValidationResult | None:
        began = perf_counter() if self._timed else 0.0
        try:
            result = self._answer(raw_key, ip, origin, method, path, scopes, cost, at_once)
        except KeysmithError as error:
            self._tell_failure(raw_key, error, began)
            raise
        if result is not None:
            if self._timed:
                self._hooks.fire("on_validation_timed", "ok", perf_counter() - began)
            if self._heard:
                self._context.announce("on_key_validated", result)
        return result

    def _answer(
        self,
        raw_key: str,
        ip: str | None,
        origin: str | None,
        method: str | None,
        path: str | None,
        scopes: Iterable[str],
        cost: int,
        at_once: bool = False,
    ) -> ValidationResult | None:
        context, candidates = self._context, self._candidates
        key_hash = self._hash(check_form(raw_key))
        candidate = candidates.find_at_once(key_hash) if at_once else candidates.find(key_hash)
        if candidate is None:
            return None
        now = context.now()
        if at_once and not candidate.timeless and self._waits(candidate, now):
            return None
        key = candidate.key
        if not (self._anyone or self._tenancy.owns(key)):
            candidates.count(candidate)
            raise InvalidKeyError
        try:
            # First the secret: that an old one is used is told in whatever state the key is.
            if candidate.grace_ends is not None:
                self._refuse_rotated(candidate, now)
            if not candidate.active or candidate.expires_at is not None:
                self._refuse_inactive(key, now)
            if candidate.rules is not None:
                candidate.rules.check(ip, origin, method, path)
            if scopes:
                candidate.require(scopes)
            if type(cost) is not int or cost != 1:
                cost = _cost.validate_python(cost)
            result = candidate.result
            if candidate.limits is not None:
                counted = self._counted(candidate, candidate.limits, cost, at_once)
                if counted is None:
                    return None
                result = counted
        except KeysmithError as error:
            candidates.count(candidate)
            error.key_id, error.tenant_id = key.id, key.tenant_id
            raise
        candidates.count(candidate)
        context.usage.touch(key.id, now)
        return result

    def _tell_failure(self, raw_key: str, error: KeysmithError, began: float) -> None:
        if self._timed:
            self._hooks.fire("on_validation_timed", error.code, perf_counter() - began)
        if self._failures_heard and not isinstance(error, StoreError):
            self._hooks.fire("on_key_validation_failed", mask(raw_key), error)

    def _counted(
        self, candidate: Candidate, limits: Limits, cost: int, at_once: bool
    ) -> ValidationResult | None:
        key, result = candidate.key, candidate.result
        take_at_once = self._take_at_once if at_once else None
        try:
            status = (take_at_once or self._context.limiter.take)(key.id, limits, cost)
        except StoreUnavailableError:
            if take_at_once is not None:
                return None
            raise
        except RateLimitedError as error:
            error.policy = result.policy
            self._hooks.fire("on_key_rate_limited", key)
            raise
        except QuotaExceededError:
            self._hooks.fire("on_key_quota_exceeded", key)
            raise
        if status is None:
            return result
        return ValidationResult(
            key=key,
            scopes=result.scopes,
            policy=result.policy,
            rotated=result.rotated,
            grace_ends=result.grace_ends,
            rate_limit=status,
        )

    def _waits(self, candidate: Candidate, now: datetime) -> bool:
        """Whether judging it may take its time: an end to write down, or counting elsewhere."""
        if candidate.limits is not None and not self._counts_at_once:
            return True
        expires_at, grace_ends = candidate.expires_at, candidate.grace_ends
        if grace_ends is not None and grace_ends <= now and not candidate.grace_over:
            return True
        return expires_at is not None and expires_at <= now and not candidate.key.state.final

    def _refuse_inactive(self, key: KeyPublic, now: datetime) -> None:
        if not key.state.final and key.expires_at is not None and key.expires_at <= now:
            self._note("life", key.id, self._lifecycle.expire, key.id)
            raise KeyExpiredError
        if key.state is not KeyState.ACTIVE:
            raise _INACTIVE[key.state]

    def _refuse_rotated(self, candidate: Candidate, now: datetime) -> None:
        rotation = candidate.rotation
        if rotation is None or (now < rotation.grace_ends and not candidate.grace_over):
            return
        if not candidate.grace_over:
            self._note(
                "grace period of a secret", rotation.key_id, self._rotations.close, rotation.id
            )
        self._hooks.fire("on_rotated_key_reused", candidate.key, rotation)
        raise KeyRevokedError

    def _note(self, what: str, key_id: str, write: Callable[[str], object], entity_id: str) -> None:
        """Writes an end down, so that it is one for good; where that cannot be, it still is now."""
        try:
            write(entity_id)
        except (StoreError, NotFoundError) as error:
            logger.warning(
                "The end of the %s of %s could not be written down: %s", what, key_id, error
            )
