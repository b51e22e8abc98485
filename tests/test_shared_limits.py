"""Limits counted through the library `limits`, in memory and in a real Redis."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keysmith import (
    Engine,
    KeyCreate,
    KeysmithError,
    Limits,
    PolicyCreate,
    QuotaExceededError,
    RateLimitedError,
    RateLimitStatus,
    SqliteStore,
    StoreUnavailableError,
)
from keysmith.clock import utc_now
from keysmith.engine.shared_limits import LimitsRateLimiter, _windows
from tests.conftest import START, TurnableClock
from tests.hammering import hammers, most_seen
from tests.redis_server import redis_server, with_redis

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
KEY = "akey_1"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own; gives its URI."""
    with redis_server(tmp_path_factory.mktemp("redis")) as uri:
        yield uri


@pytest.fixture(params=["memory", pytest.param("redis", marks=with_redis)])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "memory":
        yield "memory://"
        return
    address = request.getfixturevalue("redis")
    yield address
    LimitsRateLimiter(address)._storage.reset()  # type: ignore[attr-defined]


@pytest.fixture
def limiter(uri: str, clock: TurnableClock) -> LimitsRateLimiter:
    return LimitsRateLimiter(uri, clock)


def refused(limiter: LimitsRateLimiter, limits: Limits, cost: int = 1) -> Any:
    with pytest.raises((RateLimitedError, QuotaExceededError)) as caught:
        limiter.take(KEY, limits, cost)
    return caught.value


def test_a_moving_window(uri: str) -> None:
    limiter, limits = LimitsRateLimiter(uri), Limits(3, HOUR, 0, 0, 0)
    began = utc_now()
    nothing = limiter.take(KEY, limits, 0)
    assert isinstance(nothing, RateLimitStatus)
    assert nothing.remaining == 3
    assert began <= nothing.resets_at <= utc_now()
    status = limiter.take(KEY, limits, 2)
    assert isinstance(status, RateLimitStatus)
    assert (status.limit, status.remaining) == (3, 1)
    assert began + HOUR <= status.resets_at <= utc_now() + HOUR
    full = limiter.take(KEY, limits, 1)
    assert isinstance(full, RateLimitStatus)
    assert began + HOUR <= full.resets_at <= utc_now() + HOUR
    time.sleep(0.01)
    assert HOUR.total_seconds() - 60 < refused(limiter, limits).retry_after < 3600
    assert refused(limiter, limits, 3).retry_after == pytest.approx(3600.001)
    assert limiter.take("akey_2", limits, 3)


def test_who_waits_as_long_as_was_said_is_let_through(uri: str) -> None:
    limiter, limits = LimitsRateLimiter(uri), Limits(1, SECOND, 0, 0, 0)
    limiter.take(KEY, limits, 1)
    try:
        limiter.take(KEY, limits, 1)
    except RateLimitedError as error:
        assert 0 < error.retry_after <= 1.001
        time.sleep(error.retry_after)
        limiter.take(KEY, limits, 1)


def test_whoever_meets_a_window_that_filled_meanwhile_waits_until_it_is_empty(uri: str) -> None:
    limiter, limits = LimitsRateLimiter(uri), Limits(1, HOUR, 0, 0, 0)
    limiter.take(KEY, limits, 1)
    refusal = limiter._acquire(_windows(KEY, limits), 1)
    assert refusal is not None
    assert refusal.retry_after > HOUR.total_seconds()


def test_windows_are_whole_seconds_and_never_shorter_than_asked() -> None:
    for milliseconds, seconds in ((1, 1), (1000, 1), (1001, 2), (60_000, 60)):
        limits = Limits(1, timedelta(milliseconds=milliseconds), 1, 0, 0)
        assert [window.seconds for window in _windows(KEY, limits)] == [1, seconds]


def test_quotas_go_by_the_calendar(limiter: LimitsRateLimiter, clock: TurnableClock) -> None:
    clock.now = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
    limits = Limits(0, SECOND, 0, 2, 3)
    assert limiter.take(KEY, limits, 2) is None
    error = refused(limiter, limits)
    assert (error.period, error.resets_at) == ("daily", datetime(2024, 3, 1, tzinfo=UTC))
    clock.turn(microseconds=1)
    limiter.take(KEY, limits, 2)
    clock.turn(days=1)
    limiter.take(KEY, limits, 1)
    error = refused(limiter, limits)
    assert (error.period, error.resets_at) == ("monthly", datetime(2024, 4, 1, tzinfo=UTC))
    clock.now = datetime(2024, 4, 1, tzinfo=UTC)
    assert limiter.take(KEY, limits, 2) is None


def test_counters_of_quotas_expire_after_their_time(
    limiter: LimitsRateLimiter, clock: TurnableClock
) -> None:
    limiter.take(KEY, Limits(0, SECOND, 0, 5, 5), 1)
    day = limiter._storage.get_expiry(f"keysmith/{KEY}/{START:%Y-%m-%d}")  # type: ignore[attr-defined]
    month = limiter._storage.get_expiry(f"keysmith/{KEY}/{START:%Y-%m}")  # type: ignore[attr-defined]
    assert day - time.time() == pytest.approx(2.5 * 86_400, abs=60)
    assert month - time.time() == pytest.approx(32.5 * 86_400, abs=60)


@pytest.mark.parametrize(
    "refusing",
    [
        Limits(1, HOUR, 9, 9, 9),
        Limits(9, HOUR, 1, 9, 9),
        Limits(9, HOUR, 9, 1, 9),
        Limits(9, HOUR, 9, 9, 1),
    ],
)
def test_a_refused_request_counts_nowhere(limiter: LimitsRateLimiter, refusing: Limits) -> None:
    limiter.take(KEY, refusing, 1)
    for _ in range(4):
        refused(limiter, refusing, 2)
    eight_left = Limits(9, HOUR, 9, 9, 9)
    assert limiter.take(KEY, eight_left, 8)
    refused(limiter, eight_left)


def test_what_costs_nothing_is_not_refused(limiter: LimitsRateLimiter) -> None:
    limits = Limits(1, HOUR, 1, 1, 1)
    limiter.take(KEY, limits, 1)
    for _ in range(2):
        status = limiter.take(KEY, limits, 0)
        assert status is not None
        assert status.remaining == 0


def test_what_costs_more_than_the_limit_never_succeeds(limiter: LimitsRateLimiter) -> None:
    for limits in (Limits(3, HOUR, 0, 0, 0), Limits(0, HOUR, 3, 0, 0)):
        assert "never succeeds: the limit is 3" in str(refused(limiter, limits, 4))
    refused(limiter, Limits(0, HOUR, 0, 3, 0), 4)
    refused(limiter, Limits(0, HOUR, 0, 0, 3), 4)


class Overtaken:
    """A storage in which somebody else counts between a look and the deed that follows it."""

    def __init__(self, storage: Any, overtake: Any) -> None:
        self._storage = storage
        self._overtake = [overtake]

    def __getattr__(self, name: str) -> Any:
        if name == "acquire_entry" and self._overtake:
            self._overtake.pop()()
        return getattr(self._storage, name)


@pytest.mark.parametrize("limits", [Limits(1, HOUR, 9, 9, 9), Limits(9, HOUR, 1, 9, 9)])
def test_of_two_at_once_one_is_refused_and_its_quotas_are_given_back(
    limiter: LimitsRateLimiter, limits: Limits
) -> None:
    storage: Any = limiter._storage
    limiter._storage = Overtaken(storage, lambda: other.take(KEY, limits, 1))
    other = object.__new__(LimitsRateLimiter)
    other.__dict__.update(limiter.__dict__, _storage=storage)
    error = refused(limiter, limits)
    assert error.retry_after > 0
    limiter._storage = storage
    assert limiter.take(KEY, Limits(0, HOUR, 0, 9, 9), 8) is None, "one was counted, not two"


class TestEngine:
    @with_redis
    def test_counts_there_for_every_engine(self, redis: str, memory: SqliteStore) -> None:
        one, two = Engine(memory, rate_limiter=redis), Engine(memory, rate_limiter=redis)
        policy = one.create_policy(PolicyCreate(name="p", rate_limit=2, daily_quota=100))
        created = one.create_key(KeyCreate(name="k", policy_id=policy.id))
        one.validate_key(created.raw_key)
        result = two.validate_key(created.raw_key)
        assert result.rate_limit is not None
        assert result.rate_limit.remaining == 0
        for engine in (one, two):
            engine.health()
            with pytest.raises(RateLimitedError):
                engine.validate_key(created.raw_key)

    def test_uses_its_own_clock_for_quotas(self, memory: SqliteStore, clock: TurnableClock) -> None:
        engine = Engine(memory, rate_limiter="memory://", clock=clock)
        policy = engine.create_policy(PolicyCreate(name="p", daily_quota=1))
        created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
        engine.validate_key(created.raw_key)
        with pytest.raises(QuotaExceededError):
            engine.validate_key(created.raw_key)
        clock.turn(days=1)
        engine.validate_key(created.raw_key)

    @with_redis
    def test_two_processes_get_what_the_policy_allows(self, redis: str, tmp_path: Path) -> None:
        path, window = tmp_path / "keys.db", timedelta(seconds=1)
        with (
            Engine(SqliteStore(path)) as engine,
            hammers(path, tmp_path, 2, limiter=redis) as started,
        ):
            engine.store.migrate()
            policy = engine.create_policy(
                PolicyCreate(name="p", rate_limit=100, rate_limit_window=window, monthly_quota=250)
            )
            created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
            for hammer in started:
                hammer.go(created.raw_key)
            for hammer in started:
                assert hammer.process.wait(120) == 0
            grants = [grant for hammer in started for grant in hammer.grants()]
        assert len(grants) == 250
        assert most_seen(grants, 1_000_000) <= 100

    def test_a_redis_that_is_away(self, tmp_path: Path) -> None:
        uri = f"redis+unix://user:secret@{tmp_path}/nobody"
        with Engine(SqliteStore(":memory:"), rate_limiter=uri) as engine:
            engine.store.migrate()
            policy = engine.create_policy(PolicyCreate(name="p", rate_limit=2))
            created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
            with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
                engine.validate_key(created.raw_key)
            assert "secret" not in str(caught.value)
            with pytest.raises(StoreUnavailableError, match="does not answer"):
                engine.health()


class TestOpening:
    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("", "such as redis://"),
            ("redis", "such as redis://"),
            ("nonsense://:secret@host", "such as redis://"),
            ("async+memory://", "cannot count in moving windows"),
            ("memcached://:secret@host:11211", r"pip install 'limits\[memcached\]'"),
        ],
    )
    def test_what_cannot_be_used_says_why(self, uri: str, message: str) -> None:
        with pytest.raises(StoreUnavailableError, match=message) as caught:
            LimitsRateLimiter(uri)
        assert "secret" not in str(caught.value)

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("limits", "limits.errors", "limits.storage"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(KeysmithError, match="the extra `limits`: install Keysmith with it"):
            LimitsRateLimiter("memory://")
