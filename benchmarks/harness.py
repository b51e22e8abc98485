"""Timing two ways of doing something side by side. Standard library only: peers run it, too.

Absolute times drift, with the machine's other work, its clock rate and its temperature. So the two
take turns in batches of some milliseconds, and what counts is the ratio within each round.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

_DISCARDED = 2
"""Rounds that only warm up."""


Clock = Callable[[], float]
"""Seconds since whenever."""


class Side(Protocol):
    """One of the two."""

    def time(self, operations: int, clock: Clock) -> float:
        """Seconds an operation, of a batch of so many."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A side whose `run` is timed. It gets what `prepare` made for so many operations."""

    prepare: Callable[[int], Any]
    run: Callable[[Any], object]

    def time(self, operations: int, clock: Clock) -> float:
        """See `Side.time`."""
        prepared, run = self.prepare(operations), self.run
        start = clock()
        run(prepared)
        return (clock() - start) / operations


def each(operation: Callable[[Any], object]) -> Callable[[Sequence[Any]], None]:
    """A `run` that does the operation once for everything that was prepared."""

    def run(prepared: Sequence[Any]) -> None:
        for one in prepared:
            operation(one)

    return run


def drawn(values: Sequence[Any]) -> Callable[[int], list[Any]]:
    """A `prepare` that deals out the values in turn, and begins again after the last."""
    endless = itertools.cycle(values)
    return lambda count: list(itertools.islice(endless, count))


@dataclass(frozen=True, slots=True)
class Pair:
    """What is measured, and the bare thing beside it."""

    subject: Side
    bare: Side
    batch: float = 0.003
    """Seconds that a batch should take."""
    most: int = 1_000_000
    """Operations in a batch at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    seconds: float
    """For each pair, the rounds go on at least so long."""
    rounds: int
    """… and there are at least so many."""
    processor: bool = False
    """Whether the time counts that processors spent, on all threads, instead of what passed.

    That is what can still be compared where others keep the machine busy. What is spent on waiting
    for a disk, a lock or another process is missing.
    """

    @property
    def clock(self) -> Clock:
        """What the sides are timed by."""
        return time.process_time if self.processor else time.perf_counter


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, between its quartiles."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of some values, two at least."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out: microseconds an operation, and how the two relate."""

    subject: Spread
    bare: Spread
    ratio: Spread
    """The subject's time by the bare one's, round by round."""
    overall: float
    """The same of all rounds together; above the median where single rounds are slow."""
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        spreads = {name: Spread(**data[name]) for name in ("subject", "bare", "ratio")}
        return cls(**{**data, **spreads})


def compare(pair: Pair, plan: Plan) -> Comparison:
    """Times the two in turns."""
    sides = (pair.subject, pair.bare)
    clock = plan.clock
    sizes = [_size(side, clock, pair.batch, pair.most) for side in sides]
    gc.collect()
    rounds: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(rounds) < plan.rounds + _DISCARDED or time.perf_counter() - started < plan.seconds:
        times = [0.0, 0.0]
        for which in (0, 1) if len(rounds) % 2 else (1, 0):
            times[which] = sides[which].time(sizes[which], clock)
        rounds.append((times[0], times[1]))
    counted = rounds[_DISCARDED:]
    subject, bare = zip(*counted, strict=True)
    return Comparison(
        subject=Spread.of([1e6 * seconds for seconds in subject]),
        bare=Spread.of([1e6 * seconds for seconds in bare]),
        ratio=Spread.of([ours / theirs for ours, theirs in counted]),
        overall=sum(subject) / sum(bare),
        rounds=len(counted),
    )


def alone(side: Side, clock: Clock, *, batch: float, batches: int, most: int) -> float:
    """Microseconds an operation takes of a side that is compared with none: the median."""
    operations = _size(side, clock, batch, most)
    return 1e6 * statistics.median(side.time(operations, clock) for _ in range(batches))


def _size(side: Side, clock: Clock, batch: float, most: int) -> int:
    """How many operations fill a batch of so many seconds."""
    operations = 1
    side.time(operations, clock)  # the first of all opens files and fills caches
    while (takes := side.time(operations, clock)) * operations < batch / 2 and operations < most:
        operations = min(most, 2 * operations)
    return max(1, min(most, round(batch / takes)))
