"""Limits that several machines count together, in Redis or elsewhere, through the library `limits`.

https://limits.readthedocs.io
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import ClassVar, NamedTuple, Protocol, cast

from keysmith.clock import Clock, utc_now
from keysmith.engine.limits import Limits, quota_resets, rate_limited
from keysmith.engine.results import RateLimitStatus
from keysmith.errors import QuotaExceededError, RateLimitedError, StoreUnavailableError
from keysmith.models import Period

_SECOND = timedelta(seconds=1)

_COARSENESS = 0.001
"""Seconds by which Redis may be wrong about when a request came."""

_SLACK = timedelta(days=2)
"""How long a quota's counter outlives its day or month, for machines whose clocks are late."""


class Window(NamedTuple):
    """A moving window that a policy asks for."""

    key: str
    limit: int
    seconds: int


class Quota(NamedTuple):
    """A day or a month of the calendar in which a policy bounds requests."""

    key: str
    limit: int
    period: Period


class Storage(Protocol):
    """What is needed of the storages of `limits`."""

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Counts so many requests in a moving window, if all of them are within the limit."""

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest request in the window came, and how many are in it."""

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Adds to a counter, which begins as 0 and is forgotten after `expiry` seconds."""

    def check(self) -> bool:
        """Whether it answers."""


class LimitsRateLimiter:
    """A `RateLimiter` that counts in a storage of the library `limits`, such as Redis.

    Rates and bursts are moving windows, exact but for what the clocks of the machines differ by;
    the storage keeps a number for each request in a window. Windows are whole seconds long, and
    rounded up. Quotas are counters for a day or a month of UTC, which expire after it.

    The storage counts in one limit at a time. A request is counted in quotas first, taken back
    where a later limit refuses it. Of two requests at once that meet at two limits, one may be
    refused and yet count in the `burst_limit`, for a second. More than a limit is never let
    through.
    """

    immediate: ClassVar[bool] = False

    def __init__(self, uri: str, clock: Clock = utc_now) -> None:
        """`uri` is such as `redis://localhost:6379/0`; `clock` tells the day and the month.

        Raises `StoreUnavailableError` where the library is missing, or cannot use the URI.
        """
        self._scheme = uri.partition(":")[0]
        self._storage, self._failure = _open(uri, self._scheme)
        self._clock = clock

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        """See `RateLimiter.take`. Raises `StoreUnavailableError` if the storage does not answer."""
        windows = _windows(key_id, limits)
        try:
            used = [self._used(window, cost) for window in windows]
            if cost:
                self._count(windows, key_id, limits, cost)
        except self._failure:
            raise self._silent() from None
        if not limits.rate_limit:
            return None
        left = limits.rate_limit - used[-1] - cost
        lasts = timedelta(seconds=windows[-1].seconds if used[-1] + cost else 0)
        return RateLimitStatus(limits.rate_limit, max(0, left), self._clock() + lasts)

    def ping(self) -> None:
        """Raises `StoreUnavailableError` if the storage does not answer."""
        try:
            answers = self._storage.check()
        except self._failure:
            answers = False
        if not answers:
            raise self._silent()

    def _silent(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"Limits are counted in {self._scheme}, and it does not answer."
        )

    def _count(self, windows: list[Window], key_id: str, limits: Limits, cost: int) -> None:
        now = self._clock()
        counted: list[Quota] = []
        refusal: QuotaExceededError | RateLimitedError | None = None
        for quota in _quotas(key_id, limits, now):
            counted.append(quota)
            if self._add(quota, cost, now) > quota.limit:
                resets_at = quota_resets(quota.period, now)
                refusal = QuotaExceededError(period=quota.period.value, resets_at=resets_at)
                break
        refusal = refusal or self._acquire(windows, cost)
        if refusal is not None:
            for quota in counted:
                self._add(quota, -cost, now)
            raise refusal

    def _acquire(self, windows: list[Window], cost: int) -> RateLimitedError | None:
        """Counts in the windows, up to the first that somebody else has filled meanwhile."""
        for window in windows:
            if not self._storage.acquire_entry(*window, cost):
                return RateLimitedError(retry_after=window.seconds + _COARSENESS)
        return None

    def _used(self, window: Window, cost: int) -> int:
        """How many requests are in the window; raises `RateLimitedError` if it has no room."""
        oldest, used = self._storage.get_moving_window(*window)
        excess = used + cost - window.limit
        if cost == 0 or excess <= 0:
            return used
        wait = float(window.seconds)
        if excess == 1:
            wait = max(0.0, min(wait, oldest + wait - utc_now().timestamp()))
        raise rate_limited(cost, window.limit, wait + _COARSENESS)

    def _add(self, quota: Quota, cost: int, now: datetime) -> int:
        lasts = quota_resets(quota.period, now) - now + _SLACK
        return self._storage.incr(quota.key, lasts // _SECOND, cost)


def _windows(key_id: str, limits: Limits) -> list[Window]:
    """The policy's windows; the shortest comes first, and the rate limit's last."""
    windows = []
    if limits.burst_limit:
        windows.append(Window(f"keysmith/{key_id}/burst", limits.burst_limit, 1))
    if limits.rate_limit:
        seconds = -(-limits.window // _SECOND)
        windows.append(Window(f"keysmith/{key_id}/rate", limits.rate_limit, seconds))
    return windows


def _quotas(key_id: str, limits: Limits, now: datetime) -> Iterator[Quota]:
    if limits.daily_quota:
        yield Quota(f"keysmith/{key_id}/{now:%Y-%m-%d}", limits.daily_quota, Period.DAILY)
    if limits.monthly_quota:
        yield Quota(f"keysmith/{key_id}/{now:%Y-%m}", limits.monthly_quota, Period.MONTHLY)


def _open(uri: str, scheme: str) -> tuple[Storage, type[Exception]]:
    """The storage, and what it raises when it fails. No message shows the URI: a password is in."""
    try:
        from limits.errors import ConfigurationError, StorageError  # noqa: PLC0415  an extra
        from limits.storage import MovingWindowSupport, storage_from_string  # noqa: PLC0415
    except ModuleNotFoundError:
        raise StoreUnavailableError(
            "To count limits elsewhere than in the store is the extra `limits`: "
            "install Keysmith with it."
        ) from None
    try:
        storage = storage_from_string(uri, wrap_exceptions=True)
    except (ConfigurationError, ValueError) as error:
        missing = "prerequisite" in str(error)
        raise StoreUnavailableError(
            f"{scheme} needs a library that is not installed: pip install 'limits[{scheme}]'"
            if missing
            else "rate_limiter takes a URI such as redis://localhost:6379/0."
        ) from None
    if not isinstance(storage, MovingWindowSupport):
        raise StoreUnavailableError(f"{scheme} cannot count in moving windows. Redis can.")
    return cast("Storage", storage), StorageError
