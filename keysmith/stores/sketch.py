"""Percentiles in constant space: a DDSketch of latencies that can be stored, added to and merged.

Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", PVLDB 12 (2019). The mapping of values to bins is the library's. The bins are an array,
because a store of the library's costs ten times as much to read, add to and write.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import ceil

from ddsketch.mapping import LogarithmicMapping

ACCURACY = 0.01
"""Relative error of a quantile. The promise is 2 %; ties between neighbours take up the rest."""

SMALLEST = 1e-6
"""Latencies below a nanosecond count as none; so there are at most some 1,600 bins."""

_HEADER = struct.Struct("<ciQ")  # the type of the counts, the index of the first bin, zeros
_MAPPING = LogarithmicMapping(ACCURACY)


def bin_of(latency: float) -> int | None:
    """The index of the bin that a latency in milliseconds counts in; `None` for hardly any."""
    return _MAPPING.key(latency) if latency >= SMALLEST else None


class LatencySketch:
    """The distribution of latencies, in milliseconds."""

    __slots__ = ("_bins", "_first", "_zeros")

    def __init__(self) -> None:
        self._first = 0
        self._bins = array("Q")
        self._zeros = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> LatencySketch:
        """The sketch that `to_bytes` wrote; the empty one for no bytes.

        Raises `ValueError` for other bytes.
        """
        sketch = cls()
        if data:
            if len(data) < _HEADER.size or data[:1] not in (b"I", b"Q"):
                raise ValueError("not a sketch")
            code, sketch._first, sketch._zeros = _HEADER.unpack_from(data)
            bins = array(code.decode())
            bins.frombytes(data[_HEADER.size :])
            if sys.byteorder == "big":  # pragma: no cover
                bins.byteswap()
            sketch._bins = array("Q", bins)
        return sketch

    def to_bytes(self) -> bytes:
        """Everything that is needed to add to the sketch later."""
        code = "I" if max(self._bins, default=0) < 2**32 else "Q"
        bins = array(code, self._bins)
        if sys.byteorder == "big":  # pragma: no cover
            bins.byteswap()
        return _HEADER.pack(code.encode(), self._first, self._zeros) + bins.tobytes()

    def add(self, bins: Sequence[int | None]) -> None:
        """Counts latencies, of which `bin_of` has told the bins."""
        counted = [each for each in bins if each is not None]
        self._zeros += len(bins) - len(counted)
        if counted:
            self._reach(min(counted), max(counted))
            first, counts = self._first, self._bins
            for each in counted:
                counts[each - first] += 1

    def merge(self, other: LatencySketch) -> None:
        """Counts all that another sketch has counted."""
        self._zeros += other._zeros
        if other._bins:
            self._reach(other._first, other._first + len(other._bins) - 1)
            for place, count in enumerate(other._bins, other._first - self._first):
                self._bins[place] += count

    def quantiles(self, *fractions: float) -> list[float]:
        """The least latency that so large a part of the requests did not exceed; 0 without any."""
        cumulated = list(accumulate(self._bins, initial=self._zeros))
        # Rounded first: 0.07 times 100 is a little more than 7.
        ranks = [max(0, ceil(round(part * cumulated[-1], 6)) - 1) for part in fractions]
        places = [bisect_right(cumulated, rank) for rank in ranks]
        return [
            _MAPPING.value(self._first + place - 1) if 0 < place < len(cumulated) else 0.0
            for place in places
        ]

    def _reach(self, lowest: int, highest: int) -> None:
        """Makes room for the bins from `lowest` to `highest`."""
        if not self._bins:
            self._first = lowest
        if lowest < self._first:
            self._bins = array("Q", bytes(8 * (self._first - lowest))) + self._bins
            self._first = lowest
        missing = highest - self._first + 1 - len(self._bins)
        if missing > 0:
            self._bins.frombytes(bytes(8 * missing))
