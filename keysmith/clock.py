"""Time. The one place in the package that asks the system what time it is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
"""Gives the present moment as a timezone-aware UTC datetime."""


def utc_now() -> datetime:
    """The system's time: the default `Clock`."""
    return datetime.now(UTC)


class Onward:
    """The time of a clock that goes on from where it was when the clock is put back.

    For what waits: by the clock itself it would wait until that has caught up.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = timedelta(0)
        self._latest: datetime | None = None

    def __call__(self) -> datetime:
        """What it is by now, never before what it was."""
        now = self._clock()
        if self._latest is not None:
            self._ahead = max(self._ahead, self._latest - now)
        self._latest = now + self._ahead
        return self._latest
