"""Percentiles in constant space: a DDSketch of latencies that can be stored and added to.

Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", PVLDB 12 (2019).
"""

from __future__ import annotations

import json
from typing import Any

from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import CollapsingLowestDenseStore

ACCURACY = 0.01
"""Relative error of a quantile. The promise is 2 %; ties between neighbours take up the rest."""

MAX_BINS = 2048
"""Enough for latencies from a nanosecond to years at this accuracy."""


class LatencySketch:
    """The distribution of latencies in a period."""

    def __init__(self, bins: dict[int, int], zeros: int) -> None:
        self._store: Any = CollapsingLowestDenseStore(MAX_BINS)
        for index, count in bins.items():
            self._store.add(index, count)
        self._sketch: Any = BaseDDSketch(
            mapping=LogarithmicMapping(ACCURACY),
            store=self._store,
            negative_store=CollapsingLowestDenseStore(MAX_BINS),
            zero_count=zeros,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> LatencySketch:
        """The sketch that `to_bytes` wrote; the empty one for no bytes."""
        if not data:
            return cls({}, 0)
        stored = json.loads(data)
        first = stored["first"]
        bins = {first + place: count for place, count in enumerate(stored["bins"]) if count}
        return cls(bins, stored["zeros"])

    def to_bytes(self) -> bytes:
        """Everything that is needed to add to the sketch later."""
        store = self._store
        counts = {
            store.offset + place: int(count) for place, count in enumerate(store.bins) if count
        }
        first = min(counts, default=0)
        bins = [counts.get(index, 0) for index in range(first, max(counts, default=-1) + 1)]
        zeros = int(self._sketch.count - store.count)
        return json.dumps({"first": first, "bins": bins, "zeros": zeros}).encode()

    def add(self, latency: float) -> None:
        self._sketch.add(latency)

    def quantile(self, fraction: float) -> float:
        """The latency that this fraction of the requests did not exceed; 0 without requests."""
        value: float | None = self._sketch.get_quantile_value(fraction)
        return value or 0.0
