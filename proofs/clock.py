"""A clock that jumps: back an hour, on a year, over month ends and leap days: `--only clock`.

Everything is used after each jump. A secret that was refused for good stays refused, a day's and a
month's quota are granted once, and nothing raises but what is documented.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from keysmith import (
    CreatedKey,
    Engine,
    InvalidStateTransitionError,
    KeyCreate,
    KeyExpiredError,
    KeyRevokedError,
    KeyState,
    PolicyCreate,
    QuotaExceededError,
    RateLimitedError,
    SqliteStore,
    UsageCreate,
)
from keysmith.testing import TurnableClock

PROMISE = (
    "When the clock jumps, nothing that has ended comes back to life, no quota is granted twice "
    "unless it is put back by more than a day, and nothing raises."
)
BROKEN = (
    "an expiry was not written down; a compromised secret was refused by the clock alone; a quota "
    "began anew when midnight came again"
)

WORLDS, QUICK, STEPS = 60, 2, 60
FILES = 12
"""Of so many worlds one is a file, the others are in memory."""

DAILY, MONTHLY = 4, 9
LAST = 9990
"""The year in which a world ends: beyond it grace has no end that can be written."""

STARTS = [
    datetime(2024, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2024, 2, 29, 12, tzinfo=UTC),
    datetime(2023, 12, 31, 23, 30, tzinfo=UTC),
    datetime(2026, 1, 31, 22, tzinfo=UTC),
    datetime(2026, 2, 28, 23, 59, tzinfo=UTC),
    datetime(1999, 12, 31, tzinfo=UTC),
    datetime(9980, 2, 29, tzinfo=UTC),
]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
EXPECTED = (InvalidStateTransitionError, ValidationError)
"""What calls may raise: a key that has ended, and an expiry that is past."""


def _month_end(now: datetime) -> datetime:
    next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    return next_month.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(microseconds=1)


def _leap_day(now: datetime) -> datetime:
    year = now.year + 1
    while year % 4 or (year % 100 == 0 and year % 400):
        year += 1
    return now.replace(year=year, month=2, day=29)


ON: dict[str, Callable[[datetime], datetime]] = {
    "a microsecond": lambda now: now + timedelta(microseconds=1),
    "ten minutes": lambda now: now + HOUR / 6,
    "an hour": lambda now: now + HOUR,
    "a day": lambda now: now + DAY,
    "a month": lambda now: now + 31 * DAY,
    "a year": lambda now: now + 365 * DAY,
    "to the end of the month": _month_end,
    "to a leap day": _leap_day,
}


@dataclass
class Life:
    """A key with all its secrets, and which of them were refused for good."""

    created: CreatedKey
    secrets: list[str]
    ended: set[str] = field(default_factory=set)


class World:
    """An engine whose clock jumps."""

    def __init__(self, chance: random.Random, start: datetime, store: SqliteStore) -> None:
        self._chance = chance
        self.clock = TurnableClock(start)
        self._latest = start
        self.engine = Engine(store, clock=self.clock)
        store.migrate()
        self.jumps = self.ended = self.granted = 0
        self._lives: list[Life] = []
        policy = self.engine.create_policy(
            PolicyCreate(name="quotas", daily_quota=DAILY, monthly_quota=MONTHLY)
        )
        self._limited = self.engine.create_key(KeyCreate(name="limited", policy_id=policy.id))
        self._counts = {"day": 0, "month": 0}
        self._spent = {"day": 0, "month": 0}
        window = self.engine.create_policy(
            PolicyCreate(name="window", rate_limit=3, rate_limit_window=HOUR, burst_limit=2)
        )
        self._window = self.engine.create_key(KeyCreate(name="w", policy_id=window.id)).raw_key

    def step(self) -> None:
        """A jump, and all that can be done after it."""
        self._jump()
        self._spend()
        for _ in range(3):
            self._try(self.engine.validate_key, self._window, expected=(RateLimitedError,))
        if len(self._lives) < 5 or self._chance.random() < 0.2:
            self._create()
        for life in self._chance.sample(self._lives, min(3, len(self._lives))):
            self._change(life)
        for life in self._lives:
            if self._chance.random() < 0.6:  # an end that nobody has seen is one, too
                self._check(life)
        self._keep_house()

    def _jump(self) -> None:
        """On by anything; back by far, or by an hour at most from the latest time there was."""
        if self._chance.random() < 0.04:
            back = self._chance.choice([2 * DAY, 40 * DAY])
            self._latest = self.clock.now = max(self.clock.now, EARLIEST + back) - back
        elif self._chance.random() < 0.4:
            back = self._chance.choice([timedelta(microseconds=1), HOUR / 2, HOUR])
            self.clock.now = max(self.clock.now - back, self._latest - HOUR)
        else:
            self.clock.now = self._chance.choice(list(ON.values()))(self.clock.now)
        self.jumps += 1
        self._latest = max(self._latest, self.clock.now)

    def _spend(self) -> None:
        now = self.clock.now
        for period, current in (("day", now.toordinal()), ("month", now.year * 12 + now.month)):
            if current > self._spent[period]:
                self._counts[period] = 0
            if current > self._spent[period] or current < self._spent[period] - 1:
                self._spent[period] = current  # by far: what has been counted counts now
        for _ in range(DAILY + 2):
            if self._try(
                self.engine.validate_key, self._limited.raw_key, expected=(QuotaExceededError,)
            ):
                self.granted += 1
                self._counts = {period: count + 1 for period, count in self._counts.items()}
        for period, most in (("day", DAILY), ("month", MONTHLY)):
            count = self._counts[period]
            assert count <= most, f"{count} requests in a {period} at {self.clock.now}"

    def _create(self) -> None:
        lasts = self._chance.choice([None, HOUR, DAY])
        expires_at = None if lasts is None else self.clock.now + lasts
        created = self._try(self.engine.create_key, KeyCreate(name="n", expires_at=expires_at))
        if created:
            self._lives.append(Life(created, [created.raw_key]))

    def _change(self, life: Life) -> None:
        engine, key_id = self.engine, life.created.key.id
        match self._chance.randrange(5):
            case 0:
                reason = self._chance.choice(["manual", "compromise"])
                grace = self._chance.choice([timedelta(0), HOUR, None])
                rotated = self._try(engine.rotate_key, key_id, reason=reason, grace=grace)
                if rotated and reason == "compromise":
                    life.ended.update(life.secrets)
                elif rotated and grace == timedelta(0):
                    life.ended.add(life.secrets[-1])
                life.secrets += [rotated.raw_key] if rotated else []
            case 1:
                if self._try(engine.suspend_key, key_id):
                    engine.reactivate_key(key_id)
            case 2 if self._chance.random() < 0.2:
                if self._try(engine.revoke_key, key_id):
                    life.ended.update(life.secrets)
            case _:
                usage = UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)
                engine.record_usage(usage)

    def _check(self, life: Life) -> None:
        refused = (KeyRevokedError, KeyExpiredError)
        for raw_key in life.secrets:
            if not self._try(self.engine.validate_key, raw_key, expected=refused):
                life.ended.add(raw_key)
            elif raw_key in life.ended:
                raise AssertionError(f"a secret came back to life at {self.clock.now}")
        if self.engine.get_key(life.created.key.id).state is not KeyState.ACTIVE:
            assert life.ended >= set(life.secrets), "a key that has ended has a secret left"

    def _keep_house(self) -> None:
        engine = self.engine
        match self._chance.randrange(4):
            case 0:
                engine.maintain(usage_retention=DAY, unused_for=DAY)
            case 1:
                engine.cleanup_expired_keys()
                engine.cleanup_grace_expired()
            case 2:
                counted = sum(day.request_count for day in engine.aggregate_usage())
                months = engine.aggregate_usage(period="monthly")
                assert counted == sum(month.request_count for month in months)
            case _:
                engine.list_keys_due_for_rotation()
                engine.flush()

    def _try(
        self, call: Callable[..., Any], *given: Any, expected: Any = EXPECTED, **named: Any
    ) -> Any:
        """What the call answers; `None` where it refuses as it may."""
        try:
            return call(*given, **named)
        except expected:
            return None

    def close(self) -> None:
        self.ended = sum(len(life.ended) for life in self._lives)
        self.engine.close()


def trial(quick: bool = False) -> str:
    """Tells how often it jumped."""
    with TemporaryDirectory() as folder:
        return _trial(Path(folder), quick)


def _trial(folder: Path, quick: bool) -> str:
    seed = 1 if quick else random.randrange(10**6)
    worlds = QUICK if quick else WORLDS
    over = []
    for number in range(worlds):
        store = SqliteStore(":memory:" if number % FILES else folder / f"{number}.db")
        world = World(random.Random(seed + number), STARTS[number % len(STARTS)], store)
        over.append(world)
        try:
            while world.jumps < STEPS and world.clock.now.year < LAST:
                world.step()
        except Exception as error:
            error.add_note(f"The seed was {seed + number}, the clock {world.clock.now}.")
            raise
        finally:
            world.close()
    jumps, ended, granted = (
        sum(getattr(world, name) for world in over) for name in ("jumps", "ended", "granted")
    )
    assert min(ended, granted), "nothing ended, or nothing was granted"
    return (
        f"{jumps:,} jumps in {worlds} worlds: {ended:,} secrets ended and stayed so; {granted:,} "
        f"requests within daily and monthly quotas, none too many"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
