"""The limiter against an exact model: every window, every cost, and clocks that go wrong."""

from __future__ import annotations

import copy
from array import array
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keysmith import Limits, Period, QuotaExceededError, RateLimitedError, RateLimitStatus
from keysmith.engine import limits as limits_module
from keysmith.engine.limits import CountingRateLimiter, quota_resets
from keysmith.stores.counters import CELLS, MemoryCounters
from tests.conftest import START, TurnableClock

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MONTH = timedelta(days=30)
KEY = "akey_1"
MOST = 10**15

Refusal = RateLimitedError | QuotaExceededError


class Limiter:
    """The limiter in a world of its own, which can be copied to look what would happen."""

    def __init__(self, now: datetime = START) -> None:
        self.clock = TurnableClock(now)
        self.counters = MemoryCounters()

    def take(self, limits: Limits, cost: int) -> RateLimitStatus | Refusal | None:
        try:
            return CountingRateLimiter(self.counters, self.clock).take(KEY, limits, cost)
        except (RateLimitedError, QuotaExceededError) as refusal:
            return refusal

    def copied(self, by: timedelta = timedelta(0)) -> Limiter:
        other = Limiter(self.clock.now + by)
        other.counters._records = copy.deepcopy(self.counters._records)
        return other

    def grants(self, limits: Limits, cost: int, *, after: timedelta = timedelta(0)) -> bool:
        """Whether such a request would succeed then; nothing is counted by asking."""
        return not isinstance(self.copied(after).take(limits, cost), Exception)

    def room(self, limits: Limits) -> int:
        """The highest cost that would be granted."""
        low, high = 0, max(limits.rate_limit, limits.burst_limit, limits.daily_quota) + 1
        high = max(high, limits.monthly_quota + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.grants(limits, middle) else (low, middle)
        return low

    def cells(self) -> array[int]:
        return self.counters._records.get(KEY) or array("q", bytes(8 * CELLS))


@dataclass
class Counted:
    """Requests that were granted at once, and until when they may count at the longest."""

    at: datetime
    cost: int
    latest: datetime
    sure: bool = True
    """Whether the limiter has to know of them."""


@dataclass
class Window:
    """What a moving window has to refuse, and what it has to grant, by its documentation."""

    length: timedelta = SECOND
    counted: list[Counted] = field(default_factory=list)
    mark: datetime = START
    """The latest time it has seen, but for times from which the clock was put far back."""

    @property
    def at_most(self) -> timedelta:
        """How long a request counts at the longest."""
        return self.length * 33 / 32 + 33 * MICROSECOND

    def look(self, length: timedelta, now: datetime) -> None:
        """As every request makes the limiter look, whether or not it is granted."""
        self.counted = [each for each in self.counted if each.latest + self.at_most >= now]
        far_back = self.mark - now > self.at_most
        if length != self.length or far_back:
            for each in self.counted:
                each.sure &= now - each.at <= self.length
                each.latest = now if far_back else max(now, each.latest)
        self.mark = now if far_back else max(self.mark, now)
        self.length = length

    def used(self, now: datetime) -> int:
        """At least so many are in the window that ends now, both ends included."""
        return sum(each.cost for each in self.counted if each.sure and now - each.at <= self.length)

    def used_at_most(self, now: datetime) -> int:
        return sum(each.cost for each in self.counted if now - each.latest <= self.at_most)

    def count(self, now: datetime, cost: int) -> None:
        self.counted.append(Counted(now, cost, max(now, self.mark)))


lengths = st.sampled_from([1, 2, 7, 1000, 1500, 60_000, 3_600_000, 30 * 86_400_000]).map(
    lambda milliseconds: timedelta(milliseconds=milliseconds)
)
counts = st.integers(0, 12)
policies = st.builds(
    Limits,
    rate_limit=counts,
    window=lengths,
    burst_limit=counts,
    daily_quota=st.just(0),
    monthly_quota=st.just(0),
)
costs = st.one_of(st.just(1), st.integers(0, 13), st.just(MOST))
forward = st.one_of(
    st.integers(0, 40),
    st.integers(0, 2_000_000),
    st.sampled_from([1, 31, 32, 33, 990, 1000, 1032, 31_250, 1_000_000, 1_031_250, 1_031_251]),
    st.sampled_from([60, 3600, 86_400, 31 * 86_400, 366 * 86_400]).map(lambda s: s * 1_000_000),
    st.floats(0, 1.1).map(lambda share: int(share * MONTH / MICROSECOND)),
)
backward = st.one_of(
    st.integers(1, 2_000_000),
    st.sampled_from([60, 3600, 86_400, 366 * 86_400]).map(lambda s: s * 1_000_000),
).map(lambda step: -step)


def steps(times: st.SearchStrategy[int], shares: st.SearchStrategy[float]) -> st.SearchStrategy:
    """Costs to take, times to let pass, in microseconds or windows, and policies to change to."""
    passing = times.map(lambda us: us * MICROSECOND)
    return st.lists(st.one_of(costs, costs, passing, shares, policies), max_size=25)


def check_status(limiter: Limiter, limits: Limits, status: RateLimitStatus) -> None:
    """`remaining` and `resets_at` are true, as trying shows."""
    only_rate = Limits(limits.rate_limit, limits.window, 0, 0, 0)
    assert status.limit == limits.rate_limit
    assert limiter.room(only_rate) == status.remaining
    rest = status.resets_at - limiter.clock.now
    assert limiter.copied(rest).room(only_rate) == limits.rate_limit
    if status.remaining < limits.rate_limit:
        assert limiter.copied(rest - MICROSECOND).room(only_rate) < limits.rate_limit


def check_cells(limiter: Limiter) -> None:
    cells = limiter.cells()
    for at in (limits_module._RATE, limits_module._BURST):
        slices = cells[at + limits_module._FIRST :][: limits_module._RING]
        assert min(slices) >= 0
        assert sum(slices) == cells[at + limits_module._TOTAL]


def run(limits: Limits, sequence: list[object], *, clock_is_right: bool) -> None:
    limiter, rate, burst = Limiter(), Window(limits.window), Window()
    for step in sequence:
        if isinstance(step, Limits):
            limits = step
        elif isinstance(step, timedelta | float):
            passed = step if isinstance(step, timedelta) else step * limits.window
            before = limiter.room(limits)
            limiter.clock.now += passed
            if passed < timedelta(0):
                assert limiter.room(limits) <= before, "a clock put back gives nothing back"
        else:
            judge(limiter, limits, step, rate, burst, clock_is_right=clock_is_right)


def judge(
    limiter: Limiter,
    limits: Limits,
    cost: int,
    rate: Window,
    burst: Window,
    *,
    clock_is_right: bool,
) -> None:
    now = limiter.clock.now
    windows = [
        (window, limit, length)
        for window, limit, length in (
            (rate, limits.rate_limit, limits.window),
            (burst, limits.burst_limit, SECOND),
        )
        if limit
    ]
    for window, _, length in windows:
        window.look(length, now)
    outcome = limiter.take(limits, cost)
    check_cells(limiter)
    if isinstance(outcome, RateLimitedError):
        assert cost, "a cost of 0 is never refused"
        assert any(window.used_at_most(now) + cost > limit for window, limit, _ in windows)
        if all(cost <= limit for _, limit, _ in windows):
            wait = timedelta(seconds=outcome.retry_after)
            assert limiter.grants(limits, cost, after=wait), "retry_after is sufficient"
            assert not limiter.grants(limits, cost, after=wait - MICROSECOND), "and not too long"
            assert "never" not in str(outcome)
        else:
            assert "never succeeds" in str(outcome)
        return
    if cost:
        for window, limit, _ in windows:
            window.count(now, cost)
            if clock_is_right:
                assert window.used(now) <= limit, "no stretch of the window's length sees more"
    assert (outcome is None) == (limits.rate_limit == 0)
    if outcome is not None:
        check_status(limiter, limits, outcome)


@given(policies, steps(forward, st.floats(0, 2.1)))
@settings(max_examples=80)
@example(Limits(2, SECOND, 0, 0, 0), [1, 1.0, 0])
@example(Limits(0, SECOND, 1, 0, 0), [1, 2.0, Limits(1, SECOND, 0, 0, 0), 1])
@example(Limits(1, SECOND, 0, 0, 0), [1, 2.0, Limits(0, SECOND, 1, 0, 0), 1])
def test_no_window_sees_more_than_its_limit_and_none_is_refused_early(
    limits: Limits, sequence: list[object]
) -> None:
    run(limits, sequence, clock_is_right=True)


@given(policies, steps(st.one_of(forward, backward), st.floats(-2.1, 2.1)))
@settings(max_examples=80)
@example(Limits(1, SECOND, 0, 0, 0), [1, -1.5, 0, 1.04, 1])
@example(Limits(2, SECOND, 0, 0, 0), [1, 0.9, 1, -0.05, 0, 0.2, 1])
@example(Limits(1, timedelta(hours=1), 0, 0, 0), [1, timedelta(days=-366), 1])
@example(Limits(1, timedelta(days=30), 0, 0, 0), [1, Limits(1, SECOND, 0, 0, 0), 1])
def test_a_clock_that_steps_back_gives_nothing_back_and_blocks_nobody_for_long(
    limits: Limits, sequence: list[object]
) -> None:
    run(limits, sequence, clock_is_right=False)


@pytest.mark.parametrize("length", [1, 2, 7, 32, 1000, 86_400_000])
def test_windows_are_neither_shorter_nor_longer_than_promised(length: int) -> None:
    window = timedelta(milliseconds=length)
    refuses_for(window, Limits(1, window, 0, 0, 0))


def test_a_burst_counts_for_a_second() -> None:
    refuses_for(SECOND, Limits(0, timedelta(minutes=1), 1, 0, 0))


def refuses_for(window: timedelta, limits: Limits) -> None:
    width = window / 32
    for share in range(66):
        limiter = Limiter(START + share * width / 33)
        limiter.take(limits, 1)
        assert not limiter.grants(limits, 1, after=window)
        assert limiter.grants(limits, 1, after=window * 33 / 32 + 33 * MICROSECOND)


@pytest.mark.parametrize("back", [SECOND, timedelta(hours=1), timedelta(days=365)])
def test_what_a_refusal_says_holds_also_after_the_clock_was_put_back(back: timedelta) -> None:
    limiter, limits = Limiter(), Limits(1, timedelta(minutes=1), 0, 0, 0)
    limiter.take(limits, 1)
    limiter.clock.now -= back
    refusal = limiter.take(limits, 1)
    assert isinstance(refusal, RateLimitedError)
    assert timedelta(seconds=refusal.retry_after) < timedelta(minutes=3)
    limiter.clock.turn(seconds=refusal.retry_after)
    assert isinstance(limiter.take(limits, 1), RateLimitStatus)


# ---------------------------------------------------------------------------- quotas

edges = st.sampled_from(
    [
        datetime(2024, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2023, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 1, 31, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        START,
    ]
)
calendar_steps = st.sampled_from([1, 1_000_000, 3_600_000_000, 86_400_000_000, 31 * 86_400_000_000])
quota_limits = st.tuples(st.integers(0, 9), st.integers(0, 20)).map(
    lambda quotas: Limits(0, SECOND, 0, *quotas)
)


@given(
    edges,
    quota_limits,
    st.lists(st.one_of(st.integers(0, 6), calendar_steps.map(lambda us: us * MICROSECOND))),
)
@settings(max_examples=60)
def test_quotas_are_exact_by_the_calendar(
    start: datetime, limits: Limits, sequence: list[int | timedelta]
) -> None:
    limiter, used = Limiter(start), Counter[str]()
    for step in sequence:
        if isinstance(step, timedelta):
            limiter.clock.now += step
            continue
        day, month = f"{limiter.clock.now:%Y-%m-%d}", f"{limiter.clock.now:%Y-%m}"
        over = {
            "daily": 0 < limits.daily_quota < used[day] + step,
            "monthly": 0 < limits.monthly_quota < used[month] + step,
        }
        outcome = limiter.take(limits, step)
        if step and any(over.values()):
            assert isinstance(outcome, QuotaExceededError)
            assert outcome.period == ("daily" if over["daily"] else "monthly")
            check_reset(limiter, outcome, limits)
        else:
            assert outcome is None
            used[day] += step
            used[month] += step


def check_reset(limiter: Limiter, refusal: QuotaExceededError, limits: Limits) -> None:
    """The quota is full again when the refusal says so, and not before."""
    assert refusal.resets_at is not None
    daily = refusal.period == "daily"
    quota = limits.daily_quota if daily else limits.monthly_quota
    alone = Limits(0, SECOND, 0, quota if daily else 0, 0 if daily else quota)
    rest = refusal.resets_at - limiter.clock.now
    assert limiter.grants(alone, quota, after=rest)
    if limiter.room(alone) < quota:
        assert not limiter.grants(alone, quota, after=rest - MICROSECOND)


@given(
    edges,
    quota_limits,
    st.lists(
        st.one_of(
            st.integers(0, 6),
            st.tuples(st.sampled_from([-1, -1, 1]), calendar_steps).map(
                lambda step: step[0] * step[1] * MICROSECOND
            ),
        )
    ),
)
@settings(max_examples=60)
def test_quotas_give_nothing_back_to_a_clock_that_is_put_back(
    start: datetime, limits: Limits, sequence: list[int | timedelta]
) -> None:
    limiter = Limiter(start)
    for step in sequence:
        if isinstance(step, timedelta):
            before = limiter.room(limits)
            limiter.clock.now += step
            if step < timedelta(0):
                assert limiter.room(limits) <= before
        else:
            outcome = limiter.take(limits, step)
            if isinstance(outcome, QuotaExceededError):
                check_reset(limiter, outcome, limits)


def test_a_day_that_has_begun_goes_on_and_one_far_ahead_does_not() -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    limiter, limits = Limiter(midnight), Limits(0, SECOND, 0, 2, 0)
    limiter.take(limits, 2)
    limiter.clock.now = midnight - SECOND
    refusal = limiter.take(limits, 1)
    assert isinstance(refusal, QuotaExceededError)
    assert refusal.resets_at == midnight + timedelta(days=1)
    limiter.clock.now = midnight - timedelta(days=400)
    refusal = limiter.take(limits, 1)
    assert isinstance(refusal, QuotaExceededError)
    assert refusal.resets_at == midnight - timedelta(days=399)


def test_every_month_has_a_quota_of_its_own() -> None:
    limiter, limits = Limiter(datetime(2025, 11, 30, tzinfo=UTC)), Limits(0, SECOND, 0, 0, 1)
    for month in (
        datetime(2025, 12, 31, tzinfo=UTC),
        *(datetime(2026, m, 1, tzinfo=UTC) for m in (1, 2)),
    ):
        limiter.clock.now = month
        assert limiter.take(limits, 1) is None
        assert isinstance(limiter.take(limits, 1), QuotaExceededError)


def test_the_last_quotas_of_all_end_with_time() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert quota_resets(Period.DAILY, last) == quota_resets(Period.MONTHLY, last) == last
    assert quota_resets(Period.MONTHLY, datetime(2024, 2, 29, tzinfo=UTC)) == datetime(
        2024, 3, 1, tzinfo=UTC
    )
    limiter = Limiter(last)
    status = limiter.take(Limits(1, SECOND, 1, 1, 1), 1)
    assert isinstance(status, RateLimitStatus)
    assert status.resets_at == last


@given(
    st.builds(Limits, counts, lengths, counts, counts, counts),
    st.lists(st.one_of(costs, forward.map(lambda us: us * MICROSECOND))),
)
@settings(max_examples=60)
def test_a_refused_request_counts_nowhere(limits: Limits, sequence: list[int | timedelta]) -> None:
    limiter = Limiter()
    alone = [
        Limits(limits.rate_limit, limits.window, 0, 0, 0),
        Limits(0, SECOND, limits.burst_limit, 0, 0),
        Limits(0, SECOND, 0, limits.daily_quota, 0),
        Limits(0, SECOND, 0, 0, limits.monthly_quota),
    ]
    alone = [each for each in alone if limiter.room(each)]
    for step in sequence:
        if isinstance(step, timedelta):
            limiter.clock.now += step
            continue
        before = [limiter.room(each) for each in alone]
        refused = isinstance(limiter.take(limits, step), Exception)
        assert refused == (step > 0 and any(room < step for room in before))
        counted = 0 if refused else step
        assert [limiter.room(each) for each in alone] == [room - counted for room in before]


# ---------------------------------------------------------------------------- torn records


@given(st.data())
@settings(max_examples=50)
def test_whatever_a_record_holds_it_mends_with_time(data: st.DataObject) -> None:
    limiter, limits = Limiter(), Limits(5, SECOND, 3, 4, 6)
    numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-1000, 1000)
    limiter.counters._records[KEY] = array(
        "q", data.draw(st.lists(numbers, min_size=CELLS, max_size=CELLS))
    )
    for _ in range(3):
        limiter.take(limits, 1)
        limiter.clock.turn(milliseconds=data.draw(st.sampled_from([1, 40, 400])))
    # A day and a month that lie ahead may be come to, one after the other.
    for _ in range(3):
        limiter.clock.turn(days=62)
        limiter.take(limits, 1)
    limiter.clock.turn(days=62)
    assert limiter.room(limits) == 3
    assert isinstance(limiter.take(limits, 3), RateLimitStatus)
    check_cells(limiter)


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_numbers_beyond_all_limits_do_no_harm(number: int) -> None:
    limiter, limits = Limiter(), Limits(5, SECOND, 0, 0, 0)
    limiter.take(limits, 1)
    cells = limiter.counters._records[KEY]
    for place in range(limits_module._FIRST, limits_module._FIRST + limits_module._RING):
        cells[place] = number
    limiter.clock.turn(milliseconds=100)
    limiter.take(limits, 1)
    assert 0 <= limiter.room(limits) <= 5


def test_a_sum_that_was_torn_from_its_parts_is_added_up_again() -> None:
    limiter, limits = Limiter(), Limits(5, SECOND, 0, 0, 0)
    limiter.take(limits, 1)
    limiter.counters._records[KEY][limits_module._RATE + limits_module._TOTAL] = 5
    assert limiter.room(limits) == 0
    limiter.clock.turn(milliseconds=100)
    assert limiter.room(limits) == 4
