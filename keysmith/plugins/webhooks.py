"""Webhooks: events sent to a URL, until they have been accepted."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from weakref import WeakSet

from keysmith.clock import Clock, Onward, utc_now
from keysmith.engine.listeners import PATIENCE, QUEUE_LIMIT, renew_after_fork
from keysmith.models.base import moment
from keysmith.plugins.events import EVENT_TYPES, REPEATED, VALIDATIONS, Event, EventPlugin
from keysmith.plugins.outbox import Delivery, Outbox
from keysmith.plugins.receiver import Answer, Receiver, new_secret

logger = logging.getLogger("keysmith.plugins")

DEFAULT_EVENTS = frozenset(EVENT_TYPES.values()) - VALIDATIONS
"""All but validations."""

LOOK = 60.0
"""Seconds at most between two looks at the clock: a wait is as much longer if it is put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookStatistics:
    """What has become of the events."""

    waiting: int
    delivered: int
    given_up: int
    """Not accepted in time, or by the end of the engine, or waiting when the receiver was gone."""
    dropped: int
    """Not taken: too many were waiting, or the receiver is gone."""


class Webhooks(EventPlugin):
    """Sends events to a URL: signed POST requests with a JSON body `{"type", "timestamp", "data"}`.

    Signatures, headers and how answers are understood follow Standard Webhooks 1.0.0.
    What was not answered with a 2xx status is sent again, with the same `webhook-id`, after pauses
    that double and jitter; events of one key arrive in order, and do not hold up those of others.
    Redirects are not followed. An answer of 410 ends all sending.

    While a `key.rate_limited` waits, another of the same key is left out, as it says the same; so
    are a `key.quota_exceeded`, and a `key.reused` of the same secret.

    Events wait in memory, `limit` of them at most: those that come on top are dropped, and what has
    not arrived when the process ends is lost. Both are counted and logged.
    """

    def __init__(
        self,
        url: str,
        secret: str | Sequence[str],
        *,
        events: Collection[str] = DEFAULT_EVENTS,
        timeout: timedelta = timedelta(seconds=15),
        first_retry: timedelta = timedelta(seconds=5),
        longest_retry: timedelta = timedelta(hours=1),
        give_up_after: timedelta = timedelta(days=1),
        limit: int = QUEUE_LIMIT,
        clock: Clock = utc_now,
    ) -> None:
        """`secret` comes from `new_secret()`; of several, as while one is replaced, all sign.

        `events` are the types to send: all but validations. `timeout` is how long the receiver may
        be silent. An event that is not accepted `give_up_after` it happened is given up. Raises
        `ValueError` for a URL that is not one of HTTP, or not in printable ASCII; for a malformed
        secret; for an unknown event type.
        """
        self._receiver = Receiver(
            url,
            [secret] if isinstance(secret, str) else secret,
            timeout=timeout.total_seconds(),
        )
        unknown = sorted(set(events) - set(EVENT_TYPES.values()))
        if unknown:
            raise ValueError(f"There are no events of the type {', '.join(unknown)}.")
        self._events = frozenset(events)
        self._clock = clock
        self._gone = False
        self._new_outbox = partial(
            Outbox,
            limit=limit,
            first_retry=first_retry,
            longest_retry=longest_retry,
            give_up=give_up_after,
        )
        self.renew()
        renew_after_fork(self)

    @staticmethod
    def new_secret() -> str:
        """A secret to share with the receiver: `whsec_` and 32 random bytes in base64."""
        return new_secret()

    def renew(self) -> None:
        """As it was before the first event."""
        self._changed = threading.Condition()
        self._outbox = self._new_outbox()
        self._pace = Onward(self._now)
        self._thread: threading.Thread | None = None
        self._delivered = self._given_up = self._dropped = self._newly_dropped = 0
        self._failing = self._closing = False
        self._tellers: WeakSet[threading.Thread] = WeakSet()
        """The threads of the engines that have told something, and are not closed."""

    # ------------------------------------------------------------------ events

    def wants(self, type: str) -> bool:
        """The types that were asked for."""
        return type in self._events

    def on_event(self, event: Event) -> None:
        """Puts it into the outbox, and sees to it that somebody delivers it."""
        now = self._now()
        message_id = f"msg_{secrets.token_hex(16)}"
        lane = event.about or message_id
        gist = _gist(event)
        with self._changed:
            self._closing = False
            if not self.inline:
                self._tellers.add(threading.current_thread())
            if gist and self._outbox.says(gist, lane):
                return
            delivery = Delivery(
                id=message_id,
                type=event.type,
                lane=lane,
                body=_body(event, now),
                happened=self._pace(),
                gist=gist,
            )
            if self._gone or not self._outbox.add(delivery):
                self._drop()
                return
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def on_shutdown(self) -> None:
        """Sends what waits a last time, for as long as the end of the engine may take.

        What does not arrive is given up, unless another engine goes on telling.
        """
        with self._changed:
            self._tellers.discard(threading.current_thread())
            self._closing = not any(teller.is_alive() for teller in self._tellers)
        self.retry_now()
        self.flush(PATIENCE * 0.8)
        with self._changed:
            if self._closing:
                self._lose_what_waits("the engine was closed")

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Waits, for at most `timeout` seconds, until nothing waits to be delivered.

        Gives whether that is so. Events that the engine has not told of yet do not count:
        `engine.flush()` sees to that.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._outbox, timeout)

    def retry_now(self) -> None:
        """Sends everything that waits, at once: the receiver is known to be back."""
        with self._changed:
            self._outbox.hurry(self._pace())
            self._changed.notify_all()

    @property
    def statistics(self) -> WebhookStatistics:
        """What has become of the events, of this process, so far."""
        with self._changed:
            return WebhookStatistics(
                waiting=len(self._outbox),
                delivered=self._delivered,
                given_up=self._given_up,
                dropped=self._dropped,
            )

    # ------------------------------------------------------------------ the thread that delivers

    def _start(self) -> None:
        """A thread that lives for as long as anything waits."""
        self._thread = threading.Thread(target=self._run, name="keysmith deliveries", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # the next event tries again
            raise

    def _run(self) -> None:
        while (delivery := self._next()) is not None:
            answer = self._receiver.send(delivery.id, delivery.body, self._now())
            with self._changed:
                if delivery in self._outbox:
                    self._settle(delivery, answer, self._pace())
                self._changed.notify_all()

    def _next(self) -> Delivery | None:
        """Waits for the next delivery that is due; `None` when there is nothing to wait for."""
        with self._changed:
            while True:
                now = self._pace()
                delivery = self._outbox.take(now)
                if delivery is not None:
                    return delivery
                wait = self._outbox.seconds_to_next(now)
                if wait is None:
                    self._thread = None
                    return None
                self._changed.wait(min(wait, LOOK))

    def _settle(self, delivery: Delivery, answer: Answer, now: datetime) -> None:
        if answer.accepted:
            self._outbox.done(delivery, now)
            self._delivered += 1
            if self._failing:
                self._failing = False
                self._outbox.hurry_after_recovery(now)
        elif answer.status == HTTPStatus.GONE:
            self._gone = True
            self._lose_what_waits("it answered 410 Gone, and is sent no more")
        else:
            self._failing = True
            if (pause := answer.pause(self._now())) is not None:
                self._outbox.pause(pause, now)
            self._retry_or_give_up(delivery, answer, now)
        if self._newly_dropped and not self._outbox:
            logger.warning(
                "No more webhooks wait for %s; it has missed %d.",
                self._receiver,
                self._newly_dropped,
            )
            self._newly_dropped = 0

    def _retry_or_give_up(self, delivery: Delivery, answer: Answer, now: datetime) -> None:
        what = f"{delivery.id} ({delivery.type}): {answer}"
        if self._closing:
            self._outbox.done(delivery, now)
        elif self._outbox.failed(delivery, now):
            if delivery.attempts == 1:
                logger.warning(
                    "%s did not accept webhook %s. It is sent again, with growing pauses.",
                    self._receiver,
                    what,
                )
            return
        self._given_up += 1
        logger.warning("%s did not accept webhook %s. It is given up.", self._receiver, what)

    # ------------------------------------------------------------------ what is lost

    def _drop(self) -> None:
        self._dropped += 1
        if not self._gone:
            self._newly_dropped += 1
            if self._newly_dropped == 1:
                logger.warning(
                    "%d webhooks wait for %s. It misses what comes on top.",
                    len(self._outbox),
                    self._receiver,
                )

    def _lose_what_waits(self, why: str) -> None:
        if self._outbox:
            logger.warning(
                "%d webhooks for %s are given up: %s.", len(self._outbox), self._receiver, why
            )
        self._given_up += len(self._outbox)
        self._outbox.clear()
        self._changed.notify_all()

    def _now(self) -> datetime:
        return moment(self._clock())


def _gist(event: Event) -> str:
    if event.type not in REPEATED:
        return ""
    return f"{event.type} {event.rotation.id if event.rotation else ''}"


def _body(event: Event, happened: datetime) -> bytes:
    return json.dumps(
        {
            "type": event.type,
            "timestamp": happened.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "data": event.data(),
        },
        separators=(",", ":"),
    ).encode()
