"""What waits to be delivered: in order for each key, and each key at its own pace."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(slots=True, kw_only=True)
class Delivery:
    """A message on its way to the receiver."""

    id: str
    """The same however often it is sent, so that the receiver can tell."""
    type: str
    lane: str
    """What it is about, or a lane of its own. Within a lane, nothing overtakes."""
    body: bytes
    happened: datetime
    gist: str = ""
    """What it says, if that is likely to be said again before it has arrived."""
    attempts: int = 0


class Outbox:
    """Deliveries that wait, a lane for each key. Whoever calls holds a lock.

    The first of a lane is taken, and either done, or due again after a pause that doubles with each
    failure; those behind it wait. Other lanes are not held up.
    """

    def __init__(
        self, *, limit: int, first_retry: timedelta, longest_retry: timedelta, give_up: timedelta
    ) -> None:
        self._limit = limit
        self._first_retry = first_retry
        self._longest_retry = longest_retry
        self._give_up = give_up
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._lanes: dict[str, deque[Delivery]] = {}
        self._due: list[tuple[datetime, int, str]] = []  # a heap, of the lanes not taken from
        self._turns = itertools.count()
        self._paused_until: datetime | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, delivery: Delivery) -> bool:
        """Whether this, which was taken, has not been forgotten on its way."""
        waiting = self._lanes.get(delivery.lane)
        return waiting is not None and waiting[0] is delivery

    def add(self, delivery: Delivery) -> bool:
        """Puts it last in its lane; `False` if there is no room."""
        if self._size >= self._limit:
            return False
        self._size += 1
        if delivery.lane in self._lanes:
            self._lanes[delivery.lane].append(delivery)
        else:
            self._lanes[delivery.lane] = deque([delivery])
            self._schedule(delivery.lane, delivery.happened)
        return True

    def says(self, gist: str, lane: str) -> bool:
        """Whether the lane has one of this gist."""
        return any(waiting.gist == gist for waiting in self._lanes.get(lane, ()))

    def take(self, now: datetime) -> Delivery | None:
        """One that is due, to be sent and then `done` or `failed`; `None` if none is."""
        wait = self.seconds_to_next(now)
        if wait is None or wait > 0:
            return None
        _, _, lane = heapq.heappop(self._due)
        return self._lanes[lane][0]

    def seconds_to_next(self, now: datetime) -> float | None:
        """How long until the next is due; `None` if none waits."""
        if not self._due:
            return None
        due = self._due[0][0]
        if self._paused_until is not None:
            due = max(due, self._paused_until)
        return max(0.0, (due - now).total_seconds())

    def done(self, delivery: Delivery, now: datetime) -> None:
        """It has arrived, or never will: the next of its lane is due."""
        self._size -= 1
        waiting = self._lanes[delivery.lane]
        waiting.popleft()
        if waiting:
            self._schedule(delivery.lane, now)
        else:
            del self._lanes[delivery.lane]

    def failed(self, delivery: Delivery, now: datetime) -> bool:
        """It is to be sent again later; `False` if it is too old for that, and given up."""
        delivery.attempts += 1
        pause = self._pause(delivery.attempts)
        if now - delivery.happened + pause >= self._give_up:
            self.done(delivery, now)
            return False
        self._schedule(delivery.lane, now + pause)
        return True

    def pause(self, seconds: float, now: datetime) -> None:
        """The receiver asked for a pause: nothing is due before its end."""
        seconds = min(seconds, self._longest_retry.total_seconds())
        self._paused_until = now + timedelta(seconds=seconds)

    def hurry(self, by: datetime) -> None:
        """Everything that waits is due at this moment, if not before."""
        self._paused_until = None
        self._due = sorted((min(due, by), turn, lane) for due, turn, lane in self._due)

    def hurry_after_recovery(self, now: datetime) -> None:
        """The receiver is back: nothing waits longer than after a first failure."""
        self.hurry(now + self._first_retry)

    def _schedule(self, lane: str, due: datetime) -> None:
        heapq.heappush(self._due, (due, next(self._turns), lane))

    def _pause(self, attempts: int) -> timedelta:
        """Doubling, with a jitter that keeps senders from coming back all at once."""
        longest = min(self._first_retry * float(1 << min(attempts - 1, 30)), self._longest_retry)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  nobody gains by guessing it  # nosec B311
