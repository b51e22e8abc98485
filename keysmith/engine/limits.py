"""Limits: how many requests in a window, and in a day and a month of the calendar.

A window is counted in `SLICES` slices of time, and one more, so that whatever stretch as long as
the window one looks at, it lies within the slices counted. It follows that

- no stretch of time as long as the window, however it is cut, sees more than the limit; and
- a request is granted whenever the last `1 + 1/SLICES` windows saw fewer than the limit.

Quotas are exact, by the calendar of UTC. Time that steps back does not give anything back: what was
counted counts in the present.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self

from keysmith.clock import Clock
from keysmith.engine.results import RateLimitStatus
from keysmith.errors import QuotaExceededError, RateLimitedError
from keysmith.models import Period
from keysmith.models.policies import PolicyFields
from keysmith.stores.base import Counters

SLICES = 32

_RING = SLICES + 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000

# A window's cells in a record: the width of its slices in microseconds, the newest slice, a ring.
_WIDTH, _NEWEST, _FIRST = 0, 1, 2
_WINDOW_CELLS = _FIRST + _RING

# A quota's cells: which day or month, how many.
_PERIOD, _COUNT = 0, 1

# Where in a key's record each rule counts.
_RATE = 0
_BURST = _RATE + _WINDOW_CELLS
_DAY = _BURST + _WINDOW_CELLS
_MONTH = _DAY + 2


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a policy lets its keys be used; 0 is no limit."""

    rate_limit: int
    """Requests in `window`."""
    window: timedelta
    burst_limit: int
    """Requests in any one second."""
    daily_quota: int
    """Requests in a calendar day of UTC."""
    monthly_quota: int
    """Requests in a calendar month of UTC."""

    @classmethod
    def of(cls, policy: PolicyFields | None) -> Self | None:
        """The policy's limits; `None` if it has none."""
        if policy is None:
            return None
        limits = cls(
            policy.rate_limit,
            policy.rate_limit_window,
            policy.burst_limit,
            policy.daily_quota,
            policy.monthly_quota,
        )
        limited = policy.rate_limit or policy.burst_limit
        return limits if limited or policy.daily_quota or policy.monthly_quota else None


class RateLimiter(Protocol):
    """Counts requests against limits. Give the engine one of your own to count elsewhere."""

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """Counts a request of that cost, against every limit or against none.

        Raises `RateLimitedError` or `QuotaExceededError` where there is not enough left; gives
        `None` without a rate limit. A cost of 0 counts nothing and is never refused.
        """


class CountingRateLimiter:
    """The default `RateLimiter`: counts in the store, together with all who use it."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """See `RateLimiter.take`."""

        def change(cells: array[int]) -> RateLimitStatus | None:
            # The time is read where nobody else counts, so that it does not step back between
            # those who count one after another.
            return _take(cells, limits, cost, self._clock())

        return self._counters.update(key_id, change)


def quota_resets(period: Period, now: datetime) -> datetime:
    """When the day or the month in which `now` lies is over."""
    start = period.start(now)
    try:
        return period.start(start + timedelta(days=32 if period is Period.MONTHLY else 1))
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _take(cells: array[int], limits: Limits, cost: int, now: datetime) -> RateLimitStatus | None:
    moment = (now - _EPOCH) // _MICROSECOND
    windows: list[tuple[int, int, int]] = []
    used = 0
    if limits.rate_limit:
        used = _slide(cells, _RATE, limits.window // _MICROSECOND, moment)
        windows.append((_RATE, limits.rate_limit, used))
    if limits.burst_limit:
        used_in_second = _slide(cells, _BURST, _SECOND, moment)
        windows.append((_BURST, limits.burst_limit, used_in_second))
    if cost:
        full = [(at, used + cost - limit) for at, limit, used in windows if used + cost > limit]
        if full:
            raise RateLimitedError(retry_after=max(_wait(cells, moment, *each) for each in full))
        if limits.daily_quota or limits.monthly_quota:
            _count_in_quotas(cells, limits, cost, now)
        for at, _, _ in windows:
            cells[at + _FIRST + cells[at + _NEWEST] % _RING] += cost
    if not limits.rate_limit:
        return None
    remaining = limits.rate_limit - used - cost
    return RateLimitStatus(limits.rate_limit, max(0, remaining), _datetime(_empty(cells, moment)))


def _slide(cells: array[int], at: int, window: int, moment: int) -> int:
    """Brings a window up to the moment, and tells how many requests still count in it."""
    width = -(-window // SLICES)
    slice_, newest, first = moment // width, cells[at + _NEWEST], at + _FIRST
    if cells[at + _WIDTH] != width or slice_ < newest - SLICES:
        # Another window than before, or a clock that was put back: what still counts counts from
        # now on, so that neither lets more through.
        passed = cells[at + _WIDTH] * (newest + _RING) <= moment
        total = 0 if passed else sum(cells[first : first + _RING])
        cells[first : first + _RING] = array("q", bytes(8 * _RING))
        cells[at + _WIDTH], cells[at + _NEWEST] = width, slice_
        cells[first + slice_ % _RING] = total
    elif slice_ > newest:
        for passed_slice in range(newest + 1, min(slice_, newest + _RING) + 1):
            cells[first + passed_slice % _RING] = 0
        cells[at + _NEWEST] = slice_
    return sum(cells[first : first + _RING])


def _wait(cells: array[int], moment: int, at: int, excess: int) -> float:
    """Seconds until so many requests count no more, should no other come."""
    width, newest, first = cells[at + _WIDTH], cells[at + _NEWEST], at + _FIRST
    for slice_ in range(newest - SLICES, newest + 1):
        excess -= cells[first + slice_ % _RING]
        if excess <= 0:
            return max((slice_ + _RING) * width - moment, 1) / _SECOND
    return width * _RING / _SECOND  # it costs more than the limit is: never


def _empty(cells: array[int], moment: int) -> int:
    """When nothing of what has been counted against the rate limit counts any more."""
    width, newest, first = cells[_RATE + _WIDTH], cells[_RATE + _NEWEST], _RATE + _FIRST
    for slice_ in range(newest, newest - _RING, -1):
        if cells[first + slice_ % _RING]:
            return (slice_ + _RING) * width
    return moment


def _count_in_quotas(cells: array[int], limits: Limits, cost: int, now: datetime) -> None:
    quotas = [
        (at, period, quota)
        for at, period, quota in (
            (_DAY, Period.DAILY, limits.daily_quota),
            (_MONTH, Period.MONTHLY, limits.monthly_quota),
        )
        if quota
    ]
    for at, period, quota in quotas:
        current = now.year * 12 + now.month if period is Period.MONTHLY else now.toordinal()
        counted_for = cells[at + _PERIOD]
        if counted_for < current:
            cells[at + _PERIOD], cells[at + _COUNT] = current, 0
        elif counted_for > current + 1:
            cells[at + _PERIOD] = current  # the clock was far ahead; what it counted counts now
        if cells[at + _COUNT] + cost > quota:
            raise QuotaExceededError(period=period.value, resets_at=quota_resets(period, now))
    for at, _, _ in quotas:
        cells[at + _COUNT] += cost


def _datetime(microseconds: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
