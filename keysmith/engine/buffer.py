"""The buffer between requests, which must not wait, and the store, which writes many at once."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from datetime import datetime
from itertools import islice
from weakref import WeakSet

from keysmith.errors import StoreError, StoreUnavailableError
from keysmith.forks import renew_after_fork
from keysmith.stores.base import RecordedUsage, Store

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds that usage waits at most before it is written."""

BATCH = 1_000
"""Records that are written in one transaction, and from which on they wait no longer."""

CAPACITY = 10 * BATCH
"""Records that can wait. When as many do, recording waits, too."""


class UsageBuffer:
    """Records and last uses that wait to be written, by a thread that lives while there are any.

    What a process that is killed loses is what waits here: `INTERVAL` at most.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dropped = 0
        """Records dropped because their key had been deleted meanwhile, or was somebody else's."""
        self._begin()
        renew_after_fork(self)
        store.before_close(self.close)
        _buffers.add(self)

    def _begin(self) -> None:
        self._waiting: deque[RecordedUsage] = deque()
        self._last_used: dict[str, datetime] = {}
        self._failure: StoreError | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def renew(self) -> None:
        """Empty, in a forked child: what the parent recorded, the parent writes."""
        self._begin()

    def touch(self, key_id: str, at: datetime) -> None:
        """Notes that a key was used; of many uses in one interval the last is written."""
        self._last_used[key_id] = at
        if self._thread is None:
            self._start()

    def full(self) -> bool:
        """Whether recording would wait."""
        return len(self._waiting) >= CAPACITY

    def put(self, usage: RecordedUsage) -> None:
        """Adds a record; waits while the buffer is full.

        Raises what the store raised, if it is full because the store cannot be written to, and
        `StoreUnavailableError` once it is closed.
        """
        with self._lock:
            if self._closed:
                raise StoreUnavailableError("The engine or its store has been closed.")
            # Whoever is in a transaction would wait for a writer that waits for the transaction.
            while self.full() and not self._store.in_transaction:
                if self._failure is not None:
                    raise self._failure
                self._emptied.wait(INTERVAL)
            self._waiting.append(usage)
            if len(self._waiting) >= BATCH:
                self._filled.notify()
        if self._thread is None:
            self._start()

    def flush(self) -> None:
        """Writes all that was put or touched before; it is in the store when this returns.

        Raises `StoreError` where that cannot be; what was not written then goes on waiting.
        """
        if self._store.in_transaction:
            raise StoreError("Within a transaction usage cannot be flushed; do so after it.")
        with self._writing:
            left = len(self._waiting)
            while left > 0 or self._last_used:
                left -= self._write(left)

    def close(self) -> None:
        """Writes what waits, and takes no more. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._filled.notify()
        self.flush()

    def _write(self, most: int) -> int:
        """Writes a batch; only one thread does at a time. Tells how many records it had."""
        last_used, self._last_used = self._last_used, {}
        last_used = dict(last_used)  # a thread that still held the old one may be adding to it
        batch = list(islice(self._waiting, min(most, BATCH)))
        try:
            self.dropped += self._store.usages.record_known(batch, last_used)
        except StoreError as failure:
            self._last_used = {**last_used, **self._last_used}
            with self._lock:
                self._failure = failure
                self._emptied.notify_all()
            raise
        with self._lock:
            for _ in batch:
                self._waiting.popleft()
            self._failure = None
            self._emptied.notify_all()
        return len(batch)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closed:
                return
            self._thread = threading.Thread(target=self._run, name="keysmith-usage", daemon=True)
            thread = self._thread
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down, and flushes as its last act
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._lock:
                if len(self._waiting) < BATCH and not self._closed:
                    self._filled.wait(INTERVAL)
            if not self._pending():
                # Whoever adds something now starts another thread, or did so before this look.
                self._thread = None
                if self._closed or not self._pending():
                    return
                with self._lock:
                    if self._thread is not None:
                        return
                    self._thread = threading.current_thread()
            try:
                self.flush()
            except StoreError as failure:
                if self._closed:
                    return  # whoever closed it was told
                logger.warning("Usage waits, as it cannot be written: %s", failure)

    def _pending(self) -> bool:
        return bool(self._waiting or self._last_used)


_buffers: WeakSet[UsageBuffer] = WeakSet()


@atexit.register
def _flush_all() -> None:
    for buffer in list(_buffers):
        try:
            buffer.close()
        except StoreError as failure:
            logger.warning("Usage was lost at exit, as it could not be written: %s", failure)
