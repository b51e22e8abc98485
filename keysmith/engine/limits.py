"""Limits: how many requests in a window, and in a day and a month of the calendar.

A window is counted in `SLICES` slices of time, and one more, so that whatever stretch as long as
the window one looks at, it lies within the slices counted. Slices are whole microseconds wide. It
follows that

- no stretch of time as long as the window, however it is cut, sees more than the limit; and
- a request is granted whenever the last `1 + 1/SLICES` windows and 33 µs saw fewer than the limit.

Quotas are exact, by the calendar of UTC.

A clock that is put back gives nothing back. By less than a window: what was counted later than now
counts until the clock has caught up and the window has passed. By more: it counts as of now. A day
or a month that has begun goes on, should the clock step back to the one before it; further back,
what it counted counts now, and when it comes again it begins anew. Another window than before
begins with what the last one counts; it is taken to be of now.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import ClassVar, Protocol, Self

from keysmith.clock import Clock
from keysmith.engine.results import RateLimitStatus
from keysmith.errors import KeysmithError, QuotaExceededError, RateLimitedError
from keysmith.models import Period
from keysmith.models.policies import PolicyFields
from keysmith.stores.base import Counters

SLICES = 32

_RING = SLICES + 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000

# A window's cells in a record: the width of its slices in microseconds, the newest slice, how many
# requests count in all, and in each slice of a ring.
_WIDTH, _NEWEST, _TOTAL, _FIRST = 0, 1, 2, 3
_WINDOW_CELLS = _FIRST + _RING

# A quota's cells: which day or month, how many.
_PERIOD, _COUNT = 0, 1

# Where in a key's record each rule counts.
_RATE = 0
_BURST = _RATE + _WINDOW_CELLS
_DAY = _BURST + _WINDOW_CELLS
_MONTH = _DAY + 2

_MOST = 2**62
"""More than any limit, with room in a cell for one request more."""

Outcome = RateLimitStatus | RateLimitedError | QuotaExceededError | None
Update = Callable[[str, "Callable[[array[int]], Outcome]"], Outcome]


def _slice_width(window: timedelta) -> int:
    return -(-(window // _MICROSECOND) // SLICES)


_BURST_SLICE = _slice_width(timedelta(seconds=1))


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
    slice_width: int = field(init=False, repr=False)
    """Microseconds that a slice of the window is wide."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slice_width", _slice_width(self.window))

    @classmethod
    def of(cls, policy: PolicyFields | None) -> Self | None:
        """The policy's limits; `None` if it has none."""
        if policy is None:
            return None
        limited = policy.rate_limit or policy.burst_limit
        if not (limited or policy.daily_quota or policy.monthly_quota):
            return None
        return cls(
            policy.rate_limit,
            policy.rate_limit_window,
            policy.burst_limit,
            policy.daily_quota,
            policy.monthly_quota,
        )


class RateLimiter(Protocol):
    """Counts requests against limits. Give the engine one of your own to count elsewhere.

    One that never waits for a network says so with an attribute `immediate = True`, and is then
    asked on the event loop of an `AsyncEngine`; any other, on a worker thread. One that may have
    to wait for something nearer can have a method `take_at_once`, which the loop then calls: as
    `take`, but sooner than wait it raises `StoreUnavailableError`, and a worker thread takes. One
    that may be out of reach can have a method `ping()` that raises `StoreError` then:
    `Engine.health()` calls it.
    """

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """Counts a request of that cost, against every limit or against none.

        Raises `RateLimitedError` or `QuotaExceededError` where there is not enough left; gives
        `None` without a rate limit. A cost of 0 counts nothing and is never refused.
        """


class CountingRateLimiter:
    """The default `RateLimiter`: counts in the store, together with all who use it."""

    immediate: ClassVar[bool] = True

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._update_at_once: Update = getattr(counters, "update_at_once", counters.update)
        self._clock = clock

    def ping(self) -> None:
        """See `RateLimiter`."""
        self._counters.ping()

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """See `RateLimiter.take`."""
        return self._take(self._counters.update, key_id, limits, cost)

    def take_at_once(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """See `RateLimiter`."""
        return self._take(self._update_at_once, key_id, limits, cost)

    def _take(
        self, update: Update, key_id: str, limits: Limits, cost: int
    ) -> RateLimitStatus | None:
        def change(cells: array[int]) -> Outcome:
            # The time is read where nobody else counts, so that it does not step back between
            # those who count one after another.
            return _take(cells, limits, cost, self._clock())

        outcome = update(key_id, change)
        if isinstance(outcome, KeysmithError):
            raise outcome
        return outcome


def quota_resets(period: Period, now: datetime) -> datetime:
    """When the day or the month in which `now` lies is over."""
    start = period.start(now)
    try:
        return period.start(start + timedelta(days=32 if period is Period.MONTHLY else 1))
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def rate_limited(cost: int, limit: int, retry_after: float) -> RateLimitedError:
    """The refusal of a request, which says so where waiting does not help."""
    message = f"A request of cost {cost} never succeeds: the limit is {limit}."
    return RateLimitedError(message if cost > limit else None, retry_after=retry_after)


def _take(cells: array[int], limits: Limits, cost: int, now: datetime) -> Outcome:
    """Counts the request, or gives the refusal; what time has done to the cells stays anyway."""
    moment = (now - _EPOCH) // _MICROSECOND
    rate, burst = limits.rate_limit, limits.burst_limit
    used = _slide(cells, _RATE, limits.slice_width, moment) if rate else 0
    used_in_second = _slide(cells, _BURST, _BURST_SLICE, moment) if burst else 0
    if cost:
        if (rate and used + cost > rate) or (burst and used_in_second + cost > burst):
            return _rate_limited(cells, limits, cost, moment)
        if limits.daily_quota or limits.monthly_quota:
            exceeded = _count_in_quotas(cells, limits, cost, now)
            if exceeded is not None:
                return exceeded
        if rate:
            _count(cells, _RATE, cost)
        if burst:
            _count(cells, _BURST, cost)
    if not rate:
        return None
    return RateLimitStatus(rate, max(0, rate - used - cost), _datetime(_emptied(cells, moment)))


def _slide(cells: array[int], at: int, width: int, moment: int) -> int:
    """Brings a window up to the moment, and tells how many requests still count in it."""
    slice_, newest, known = moment // width, cells[at + _NEWEST], cells[at + _WIDTH]
    if known == width and slice_ >= newest - SLICES:
        if slice_ > newest:
            _move_on(cells, at, slice_)
    else:
        if known and moment // known > newest:
            _move_on(cells, at, moment // known)
        _begin_anew(cells, at, width, slice_)
    return cells[at + _TOTAL]


def _move_on(cells: array[int], at: int, slice_: int) -> None:
    """Forgets what has left the window.

    What is left is added up, so that a record which a loss of power has torn mends by itself.
    """
    first, newest = at + _FIRST, cells[at + _NEWEST]
    for passed in range(newest + 1, min(slice_, newest + _RING) + 1):
        cells[first + passed % _RING] = 0
    cells[at + _NEWEST] = slice_
    cells[at + _TOTAL] = min(max(0, sum(cells[first : first + _RING])), _MOST)


def _begin_anew(cells: array[int], at: int, width: int, slice_: int) -> None:
    """For another window than before, or a clock that was put back: what counts, counts now."""
    first, total = at + _FIRST, cells[at + _TOTAL]
    cells[first : first + _RING] = array("q", bytes(8 * _RING))
    cells[first + slice_ % _RING] = total
    cells[at + _WIDTH], cells[at + _NEWEST] = width, slice_


def _count(cells: array[int], at: int, cost: int) -> None:
    cells[at + _TOTAL] += cost
    cells[at + _FIRST + cells[at + _NEWEST] % _RING] += cost


def _rate_limited(cells: array[int], limits: Limits, cost: int, moment: int) -> RateLimitedError:
    waits = [
        _wait(cells, at, cells[at + _TOTAL] + cost - limit, moment)
        for at, limit in ((_RATE, limits.rate_limit), (_BURST, limits.burst_limit))
        if limit
    ]
    least = min(filter(None, (limits.rate_limit, limits.burst_limit)))
    return rate_limited(cost, least, max(waits))


def _wait(cells: array[int], at: int, excess: int, moment: int) -> float:
    """Seconds until so many requests count no more, should no other come."""
    width, newest, first = cells[at + _WIDTH], cells[at + _NEWEST], at + _FIRST
    if excess <= 0:
        return 0.0
    for slice_ in range(newest - SLICES, newest + 1):
        excess -= cells[first + slice_ % _RING]
        if excess <= 0:
            return ((slice_ + _RING) * width - moment) / _SECOND
    return width * _RING / _SECOND  # it costs more than the limit is


def _emptied(cells: array[int], moment: int) -> int:
    """When nothing of what has been counted against the rate limit counts any more."""
    newest, first = cells[_RATE + _NEWEST], _RATE + _FIRST
    for slice_ in range(newest, newest - _RING, -1):
        if cells[first + slice_ % _RING]:
            return (slice_ + _RING) * cells[_RATE + _WIDTH]
    return moment


def _count_in_quotas(
    cells: array[int], limits: Limits, cost: int, now: datetime
) -> QuotaExceededError | None:
    """Counts the request in the day and the month, or in neither where one is used up."""
    quotas = [
        (at, period, quota)
        for at, period, quota in (
            (_DAY, Period.DAILY, limits.daily_quota),
            (_MONTH, Period.MONTHLY, limits.monthly_quota),
        )
        if quota
    ]
    for at, period, _ in quotas:
        current = _ordinal(period, now)
        if cells[at + _PERIOD] < current:
            cells[at + _PERIOD], cells[at + _COUNT] = current, 0
        elif cells[at + _PERIOD] > current + 1:
            cells[at + _PERIOD] = current  # the clock was far ahead; what it counted counts now
    for at, period, quota in quotas:
        if cells[at + _COUNT] + cost > quota:
            # It goes on with the next one, where that has begun and the clock stepped back.
            begun = cells[at + _PERIOD] == _ordinal(period, now)
            resets_at = quota_resets(period, now if begun else quota_resets(period, now))
            return QuotaExceededError(period=period.value, resets_at=resets_at)
    for at, _, _ in quotas:
        cells[at + _COUNT] += cost
    return None


def _ordinal(period: Period, now: datetime) -> int:
    return now.year * 12 + now.month if period is Period.MONTHLY else now.toordinal()


@lru_cache(maxsize=1024)
def _datetime(microseconds: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
