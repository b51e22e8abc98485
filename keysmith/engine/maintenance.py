"""Maintenance: what is to be done now and then, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter

from keysmith.engine.context import Context
from keysmith.engine.keys import Keys
from keysmith.engine.lifecycle import Lifecycle
from keysmith.engine.rotation import Rotations
from keysmith.engine.usage import Usage
from keysmith.models import KeyPublic
from keysmith.models.base import HIDE_INPUT
from keysmith.models.policies import NonNegativeDuration

_duration: TypeAdapter[timedelta] = TypeAdapter(NonNegativeDuration, config=HIDE_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What maintenance has done, and what it found to be done by others."""

    at: datetime
    """When it began."""
    expired: int
    """Keys whose expiry had passed, and that have the state `expired` now."""
    grace_ended: int
    """Rotations whose grace period had ended."""
    usage_purged: int
    """Usage records removed."""
    due_for_rotation: tuple[KeyPublic, ...]
    """Keys whose secret is older than their policy's `rotation_period`, the longest due first."""
    unused: tuple[KeyPublic, ...]
    """Keys that nobody has used for as long as was asked; the oldest first."""


class Maintenance:
    """Cleans up, and looks for what needs somebody's attention."""

    def __init__(
        self,
        context: Context,
        lifecycle: Lifecycle,
        rotations: Rotations,
        usage: Usage,
        keys: Keys,
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._rotations = rotations
        self._usage = usage
        self._keys = keys

    def run(
        self, usage_retention: timedelta | None, unused_for: timedelta | None
    ) -> MaintenanceReport:
        """See `Engine.maintain`."""
        now = self._context.now()
        purge, since = _before(now, usage_retention), _before(now, unused_for)
        return MaintenanceReport(
            at=now,
            expired=self._lifecycle.expire_all(),
            grace_ended=self._rotations.close_ended(),
            usage_purged=0 if purge is None else self._usage.purge(purge, None),
            due_for_rotation=tuple(map(KeyPublic.model_validate, self._rotations.due())),
            unused=() if since is None else self._unused(since),
        )

    def _unused(self, since: datetime) -> tuple[KeyPublic, ...]:
        keys = self._keys.list(None, None, {"unused_since": since})
        return tuple(KeyPublic.model_validate(key) for key in reversed(keys))


def _before(now: datetime, lasts: timedelta | None) -> datetime | None:
    """So long ago; `None` if nothing is as old as that, or nobody asked."""
    if lasts is None:
        return None
    lasts = _duration.validate_python(lasts)
    try:
        return now - lasts
    except OverflowError:
        return None
