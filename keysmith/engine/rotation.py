"""Rotation: a new secret for the same key, while the old one works on for its grace period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from keysmith.engine.context import Context, Precondition
from keysmith.engine.idempotency import Mark
from keysmith.engine.lifecycle import AT_ONCE, ended_for_good, refuse_final, write_all
from keysmith.engine.results import CreatedKey
from keysmith.ids import IdPrefix, new_id
from keysmith.models import Key, Rotation, RotationReason
from keysmith.models.base import HIDE_INPUT, invalid
from keysmith.models.policies import DEFAULT_GRACE_PERIOD, MAX_GRACE, NonNegativeDuration
from keysmith.raw_keys import hint_of

_duration: TypeAdapter[timedelta] = TypeAdapter(NonNegativeDuration, config=HIDE_INPUT)
_reason: TypeAdapter[RotationReason] = TypeAdapter(RotationReason, config=HIDE_INPUT)


class Rotations:
    """The rotations of a store, as their tenant sees them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def rotate(
        self,
        key_id: str,
        reason: RotationReason | str,
        grace: timedelta | None,
        rotated_by: str,
        idempotency_key: str | None,
        precondition: Precondition[Key] | None,
    ) -> CreatedKey:
        reason = _reason.validate_python(reason)
        store = self._context.store
        mark = self._mark(key_id, reason, grace, idempotency_key)
        with ended_for_good(self._context, key_id), store.transaction():
            now = self._context.now()
            key = self._context.key(key_id, for_update=True)
            if precondition is not None:
                precondition(key)
            if mark is not None:
                mark.refuse_again(store.rotations.get_by_request)
            refuse_final(key, now, "rotated")
            raw_key = self._context.new_raw_key(key.prefix, key.environment)
            key_hash = self._context.hasher.hash(raw_key)
            lasts = self._grace(key, reason, grace)
            rotation = Rotation(
                **(asdict(mark) if mark is not None else {}),
                id=new_id(IdPrefix.ROTATION, now),
                key_id=key.id,
                tenant_id=key.tenant_id,
                old_key_hash=key.key_hash,
                new_key_hash=key_hash,
                reason=reason,
                grace_ttl_ms=lasts // timedelta(milliseconds=1),
                grace_ends=_end(now, lasts),
                rotated_by=rotated_by,
                created_at=now,
            )
            ended: Sequence[Rotation] = ()
            if reason is RotationReason.COMPROMISE:
                store.rotations.end_grace(key.id, now=now)
                ended = self._close_unnoted(key.id)
            key.key_hash = key_hash
            key.hint = hint_of(raw_key)
            key.rotated_at = key.updated_at = now
            store.keys.update(key)
            store.rotations.create(rotation)
            for earlier in ended:
                self._context.announce("on_grace_ended", key, earlier)
            self._context.announce("on_key_rotated", key, rotation)
        return CreatedKey(key, raw_key)

    def list(
        self, limit: int | None, after: str | None, filters: dict[str, Any]
    ) -> Sequence[Rotation]:
        narrowed = self._context.tenancy.narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.rotations.list(limit=limit, after=after, **narrowed)

    def due(self) -> Sequence[Key]:
        now = self._context.now()
        whose = self._context.tenancy.filters()
        return self._context.store.keys.list_due_for_rotation(now, **whose)

    def _close_unnoted(self, key_id: str) -> Sequence[Rotation]:
        """Notes the ends that came by themselves, lest a clock that is put back undoes them."""
        rotations = self._context.store.rotations
        ended = [
            each
            for each in rotations.list(key_id=key_id)
            if not (each.grace_closed or each.cut_short)
        ]
        for rotation in ended:
            rotation.grace_closed = True
            rotations.update(rotation)
        return ended

    def close(self, rotation_id: str) -> bool:
        """Notes that a grace period has ended; tells whether nobody else had already."""
        store = self._context.store
        with store.transaction():
            rotation = store.rotations.get(rotation_id, for_update=True)
            if rotation.grace_closed:
                return False
            key = store.keys.get(rotation.key_id)
            rotation.grace_closed = True
            store.rotations.update(rotation)
            self._context.announce("on_grace_ended", key, rotation)
            return True

    def close_ended(self) -> int:
        """Notes every grace period that has ended, and tells how many there were."""
        store, whose = self._context.store, self._context.tenancy.filters()
        closed = 0
        while ended := store.rotations.list_ended_grace(
            self._context.now(), limit=AT_ONCE, **whose
        ):
            closed += write_all(store, self.close, ended)
        return closed

    def _mark(
        self,
        key_id: str,
        reason: RotationReason,
        grace: timedelta | None,
        idempotency_key: str | None,
    ) -> Mark | None:
        if idempotency_key is None:
            return None
        asked = {"key_id": key_id, "reason": reason.value, "grace": str(grace)}
        return Mark.of(self._context.tenancy, idempotency_key, asked)

    def _grace(self, key: Key, reason: RotationReason, grace: timedelta | None) -> timedelta:
        if reason is RotationReason.COMPROMISE:
            return timedelta(0)
        if grace is None:
            if key.policy_id is None:
                return DEFAULT_GRACE_PERIOD
            return min(self._context.store.policies.get(key.policy_id).grace_period, MAX_GRACE)
        grace = _duration.validate_python(grace)
        if grace > MAX_GRACE:
            raise invalid(Rotation, "grace", f"must be at most {MAX_GRACE.days} days")
        return grace


def _end(now: datetime, lasts: timedelta) -> datetime:
    try:
        return now + lasts
    except OverflowError:
        raise invalid(Rotation, "grace", "must end before the year 10000") from None
