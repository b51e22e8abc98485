"""The outbox: order within a lane, pauses that grow, and an end to trying."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from keysmith.clock import Onward
from keysmith.plugins.outbox import Delivery, Outbox
from tests.conftest import START

SECOND = timedelta(seconds=1)


def outbox(**changed: object) -> Outbox:
    options = {
        "limit": 100,
        "first_retry": 5 * SECOND,
        "longest_retry": 100 * SECOND,
        "give_up": 1000 * SECOND,
    }
    return Outbox(**(options | changed))  # type: ignore[arg-type]


def delivery(id: str, lane: str = "a", happened: object = START) -> Delivery:
    return Delivery(id=id, type="key.created", lane=lane, body=b"", happened=happened)  # type: ignore[arg-type]


def test_time_goes_on_when_the_clock_is_put_back() -> None:
    asked = iter([START, START + SECOND, START - 100 * SECOND, START - 98 * SECOND])
    onward = Onward(lambda: next(asked))  # which is not asked before it has to be
    moments = [onward() for _ in range(4)]
    assert moments == [START, START + SECOND, START + SECOND, START + 3 * SECOND]


def test_what_fails_holds_up_its_own_lane_only() -> None:
    box = outbox()
    first, second, other = delivery("a1"), delivery("a2"), delivery("b1", "b")
    assert all(map(box.add, (first, second, other)))
    assert box.take(START) is first
    assert box.failed(first, START)
    assert box.take(START) is other
    box.done(other, START)
    assert box.take(START) is None
    assert len(box) == 2
    later = START + 5 * SECOND
    assert box.take(later) is first
    assert box.take(later) is None, "its lane is under way"
    box.done(first, later)
    assert box.take(later) is second
    box.done(second, later)
    assert len(box) == 0
    assert box.seconds_to_next(later) is None


def test_pauses_double_and_jitter_up_to_the_longest() -> None:
    ranges: dict[int, set[float]] = defaultdict(set)
    for _ in range(50):
        box, now = outbox(give_up=timedelta(days=1)), START
        box.add(one := delivery("a"))
        for attempt in range(1, 40):
            assert box.take(now) is one
            assert box.failed(one, now)
            pause = box.seconds_to_next(now)
            assert pause is not None
            ranges[attempt].add(pause)
            now += timedelta(seconds=pause)
    for attempt, pauses in ranges.items():
        longest = min(5.0 * 2 ** (attempt - 1), 100.0)
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
        assert len(pauses) > 10


def test_what_is_too_old_is_given_up_and_the_next_has_its_turn() -> None:
    box = outbox(give_up=10 * SECOND)
    old, new = delivery("old"), delivery("new", happened=START + 9 * SECOND)
    box.add(old)
    box.add(new)
    assert box.take(START) is old
    assert box.failed(old, START)
    now = START + 9 * SECOND
    assert box.take(now) is old
    assert not box.failed(old, now)
    assert box.take(now) is new
    assert box.failed(new, now)


def test_there_is_room_for_so_many() -> None:
    box = outbox(limit=2)
    assert box.add(delivery("a"))
    assert box.add(delivery("b", "b"))
    assert not box.add(delivery("c"))
    box.done(box.take(START), START)  # type: ignore[arg-type]
    assert box.add(delivery("c"))


def test_a_pause_that_was_asked_for_is_kept_within_reason() -> None:
    box = outbox()
    box.add(delivery("a"))
    box.pause(30.0, START)
    assert box.take(START) is None
    assert box.seconds_to_next(START) == 30.0
    box.pause(float("inf"), START)
    assert box.seconds_to_next(START) == 100.0
    box.hurry(START)
    assert box.take(START)


def test_once_it_is_back_nothing_waits_long() -> None:
    box, now = outbox(), START
    box.add(one := delivery("a"))
    for _ in range(6):
        box.take(now)
        box.failed(one, now)
        now += timedelta(seconds=box.seconds_to_next(now) or 0)
    box.take(now)
    box.failed(one, now)
    assert (box.seconds_to_next(now) or 0) > 5
    box.hurry_after_recovery(now)
    assert box.seconds_to_next(now) == 5


def test_what_was_on_its_way_when_all_was_forgotten_is_forgotten() -> None:
    box = outbox()
    box.add(one := delivery("a"))
    assert box.take(START) is one
    box.clear()
    assert one not in box
    box.add(another := delivery("b"))
    assert one not in box
    assert len(box) == 1
    assert box.take(START) is another
    assert another in box


lanes = st.sampled_from("abc")
steps = st.one_of(
    st.tuples(st.just("add"), lanes),
    st.tuples(st.just("send"), st.booleans()),
    st.tuples(st.just("wait"), st.floats(0, 300)),
    st.tuples(st.just("hurry"), st.none()),
)


@given(st.lists(steps, max_size=60))
def test_nothing_overtakes_and_nothing_is_lost(plan: list[tuple[str, object]]) -> None:
    box, now = outbox(limit=10), START
    taken: list[Delivery] = []
    ended: list[Delivery] = []
    for what, how in plan:
        if what == "add":
            one = delivery(str(len(taken)), str(how), now)
            if len(taken) - len(ended) < 10:
                assert box.add(one)
                taken.append(one)
            else:
                assert not box.add(one)
        elif what == "wait":
            now += timedelta(seconds=float(how))  # type: ignore[arg-type]
        elif what == "hurry":
            box.hurry(now)
        elif (sent := box.take(now)) is not None:
            if how:
                box.done(sent, now)
                ended.append(sent)
            elif not box.failed(sent, now):
                ended.append(sent)
        assert len(box) == len(taken) - len(ended)
    while len(box):
        now += timedelta(seconds=box.seconds_to_next(now) or 0)
        sent = box.take(now)
        assert sent is not None
        box.done(sent, now)
        ended.append(sent)
    assert sorted(ended, key=taken.index) == taken
    for lane in "abc":
        order = [taken.index(one) for one in ended if one.lane == lane]
        assert all(earlier < later for earlier, later in pairwise(order))
