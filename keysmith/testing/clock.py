"""Time, as a test wants it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class TurnableClock:
    """A clock that moves only when told: `Engine(store, clock=TurnableClock())`."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """What time it is."""
        return self.now

    def turn(self, **by: float) -> datetime:
        """Moves on by `days=`, `hours=`, `seconds=` and so on, as `timedelta` takes them."""
        self.now += timedelta(**by)
        return self.now
