"""Percentiles from a sketch: near the truth, the same however it was put together, and small."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keysmith.models.usages import MAX_LATENCY_MS
from keysmith.stores.sketch import SMALLEST, LatencySketch, bin_of
from tests.recording import exact

FRACTIONS = (0.0, 0.5, 0.9, 0.99, 1.0)

latency = (
    st.just(0.0)
    | st.floats(0, SMALLEST)
    | st.floats(0, 10)
    | st.floats(1, 1000)
    | st.floats(0, MAX_LATENCY_MS)
    | st.sampled_from([5e-324, SMALLEST, 1.0, MAX_LATENCY_MS])
)
latencies = st.lists(latency, min_size=1, max_size=300)


def sketch(values: list[float]) -> LatencySketch:
    made = LatencySketch()
    made.add([bin_of(value) for value in values])
    return made


@given(latencies)
def test_percentiles_are_within_two_percent_of_the_exact_ones(values: list[float]) -> None:
    for fraction, found in zip(FRACTIONS, sketch(values).quantiles(*FRACTIONS), strict=True):
        assert found == pytest.approx(exact(values, fraction), rel=0.02, abs=SMALLEST)


@pytest.mark.parametrize("seed", range(5))
def test_also_of_many_requests(seed: int) -> None:
    source = random.Random(seed)
    values = [source.lognormvariate(3, 1.5) for _ in range(20_000)]
    for fraction, found in zip(FRACTIONS, sketch(values).quantiles(*FRACTIONS), strict=True):
        assert found == pytest.approx(exact(values, fraction), rel=0.02)


@pytest.mark.parametrize(
    ("values", "median", "slow"),
    [([1, 1000], 1, 1000), ([1] * 99 + [9], 1, 1), ([1] * 98 + [9, 9], 1, 9), ([7], 7, 7)],
)
def test_few_requests_hide_no_slow_one(values: list[float], median: float, slow: float) -> None:
    assert sketch(values).quantiles(0.5, 0.99) == pytest.approx([median, slow], rel=0.02)


def test_a_product_that_is_hardly_more_than_whole() -> None:
    assert 0.07 * 100 > 7
    assert sketch([1] * 7 + [9] * 93).quantiles(0.07) == pytest.approx([1], rel=0.02)


@given(st.lists(latencies, max_size=8))
def test_days_merged_are_exactly_the_month(days: list[list[float]]) -> None:
    month = sketch([value for day in days for value in day])
    merged, added = LatencySketch(), LatencySketch()
    for day in days:
        merged.merge(LatencySketch.from_bytes(sketch(day).to_bytes()))
        added = LatencySketch.from_bytes(added.to_bytes())
        added.add([bin_of(value) for value in day])
    assert merged.to_bytes() == month.to_bytes() == added.to_bytes()
    assert merged.quantiles(*FRACTIONS) == month.quantiles(*FRACTIONS)


@given(latencies)
def test_order_does_not_matter(values: list[float]) -> None:
    assert sketch(values).to_bytes() == sketch(sorted(values)).to_bytes()


def test_nothing_has_no_latency() -> None:
    assert LatencySketch().quantiles(0.5, 0.99) == [0, 0]
    assert LatencySketch.from_bytes(b"").to_bytes() == LatencySketch().to_bytes()


def test_space_is_constant() -> None:
    extremes = sketch([0.0, SMALLEST, MAX_LATENCY_MS])
    assert len(extremes.to_bytes()) < 6_500
    everything = sketch([SMALLEST * 1.005**power for power in range(6_430)] * 3)
    assert len(everything.to_bytes()) <= len(extremes.to_bytes())


def test_more_requests_than_32_bits_count() -> None:
    many = LatencySketch()
    many.add([bin_of(10.0), bin_of(20.0)])
    for _ in range(33):
        many.merge(LatencySketch.from_bytes(many.to_bytes()))
    written = many.to_bytes()
    assert written.count((2**33).to_bytes(8, "little")) == 2
    again = LatencySketch.from_bytes(written)
    again.merge(many)
    assert again.quantiles(0.49, 0.51) == pytest.approx([10, 20], rel=0.02)


@pytest.mark.parametrize(
    "data", [b"x", b"Q", bytes(13), b"\xff" * 32, sketch([1.0]).to_bytes() + b"x"]
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"sketch|multiple"):
        LatencySketch.from_bytes(data)
