"""The buffer between requests, which must not wait, and the store, which writes many at once."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from copy import copy
from datetime import datetime
from itertools import islice
from time import monotonic
from weakref import WeakSet

from keysmith.errors import StoreError, StoreUnavailableError
from keysmith.forks import at_the_end, mind_the_end, renew_after_fork
from keysmith.stores.base import RecordedUsage, Store

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds that usage waits at most before it is written, and between two writes of last uses."""

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
        self._dropped: Counter[tuple[str | None, str | None]] = Counter()
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
        """Held by whoever writes; only they take anything out of what waits."""
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def renew(self) -> None:
        """Empty, in a forked child: what the parent recorded, the parent writes."""
        self._begin()

    def dropped(self, tenant_id: str | None, app_id: str | None) -> int:
        """Records dropped because their key had been deleted meanwhile, or was somebody else's.

        Of those that engines of this tenant and app recorded; `None` for all.
        """
        return sum(
            times
            for (tenant, app), times in self._dropped.copy().items()
            if tenant_id in (None, tenant) and app_id in (None, app)
        )

    def touch(self, key_id: str, at: datetime) -> None:
        """Notes that a key was used; of many uses in one interval the last is written."""
        self._last_used[key_id] = at
        if self._thread is None:
            self._start()

    def put(self, usage: RecordedUsage, *, wait: bool = True) -> bool:
        """Adds a record. While the buffer is full, waits, or does not and tells so.

        Raises what the store raised, if it is full because the store cannot be written to, and
        `StoreUnavailableError` once it is closed.
        """
        while not self._add(usage):
            if not wait:
                return False
            self._await_room()
        if self._thread is None:
            self._start()
        return True

    def flush(self) -> None:
        """Writes all that was put or touched before; it is in the store when this returns.

        Raises `StoreError` where that cannot be; what was not written then goes on waiting.
        """
        self._refuse_transaction()
        with self._writing:
            self._write(last_used=self._take_last_used())

    def write_records(self) -> None:
        """As `flush`, leaving last uses to their interval."""
        self._refuse_transaction()
        with self._writing:
            self._write()

    def close(self) -> None:
        """Writes what waits, and takes no more. May be called twice.

        Raises `StoreError` where it cannot be written; it is lost then.
        """
        self._refuse_transaction()
        with self._lock:
            self._closed = True
            self._filled.notify_all()
            self._emptied.notify_all()
        with self._writing:
            try:
                self._write(last_used=self._take_last_used())
            finally:
                self._waiting.clear()
                self._last_used.clear()

    # ------------------------------------------------------------------ adding

    def _add(self, usage: RecordedUsage) -> bool:
        with self._lock:
            if self._closed:
                raise StoreUnavailableError("The engine or its store has been closed.")
            # Whoever is in a transaction would wait for a writer that waits for the transaction.
            if len(self._waiting) >= CAPACITY and not self._store.in_transaction:
                return False
            self._waiting.append(usage)
            if len(self._waiting) >= BATCH:
                self._filled.notify()
            return True

    def _await_room(self) -> None:
        if self._thread is None and not self._start():
            self.flush()  # there is no thread to be had
        with self._lock:
            if self._failure is not None:
                raise copy(self._failure)
            if len(self._waiting) >= CAPACITY and not self._closed:
                self._emptied.wait(INTERVAL)

    # ------------------------------------------------------------------ writing

    def _take_last_used(self) -> dict[str, datetime]:
        """Those noted so far; others may be noting more at the same time."""
        return dict(self._last_used.popitem() for _ in range(len(self._last_used)))

    def _write(self, last_used: Mapping[str, datetime] | None = None) -> None:
        """Writes these last uses, and the records that wait now, batch by batch."""
        last_used = last_used or {}
        left = len(self._waiting)
        while left or last_used:
            batch = list(islice(self._waiting, min(left, BATCH)))
            try:
                dropped = self._store.usages.record_known(batch, last_used)
            except BaseException as error:
                for key_id, at in last_used.items():
                    self._last_used.setdefault(key_id, at)
                self._note(_as_store_error(error), 0)
                raise
            self._dropped.update((usage.tenant_id, usage.app_id) for usage in dropped)
            self._note(None, len(batch))
            left -= len(batch)
            last_used = {}

    def _note(self, failure: StoreError | None, written: int) -> None:
        with self._lock:
            for _ in range(written):
                self._waiting.popleft()
            self._failure = failure
            self._emptied.notify_all()

    def _start(self) -> bool:
        """Whether there is a thread that writes."""
        with self._lock:
            if self._thread is not None or self._closed:
                return True
            self._thread = threading.Thread(target=self._run, name="keysmith-usage", daemon=True)
            thread = self._thread
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending, and flushes at last
            self._thread = None
            return False
        mind_the_end()
        return True

    def _run(self) -> None:
        due = monotonic() + INTERVAL
        while True:
            with self._lock:
                self._filled.wait_for(self._is_urgent, due - monotonic())
            if self._closed:
                return  # whoever closed it writes
            if not self._pending():
                # Whoever adds something now starts another thread, or did so before this look.
                self._thread = None
                if not self._pending():
                    return
                with self._lock:
                    if self._thread is not None:
                        return
                    self._thread = threading.current_thread()
            try:
                if monotonic() < due:
                    self.write_records()
                else:
                    due = monotonic() + INTERVAL
                    self.flush()
            except StoreError as failure:
                logger.warning("Usage waits, as it cannot be written: %s", failure)
            except Exception:
                logger.exception("Usage waits, as it cannot be written")

    def _is_urgent(self) -> bool:
        if self._closed:
            return True
        return len(self._waiting) >= BATCH and self._failure is None

    def _pending(self) -> bool:
        return bool(self._waiting or self._last_used)

    def _refuse_transaction(self) -> None:
        if self._store.in_transaction:
            raise StoreError("Within a transaction usage cannot be written; do so after it.")


def _as_store_error(error: BaseException) -> StoreError:
    """The error without its frames, to be raised to others who wait."""
    if isinstance(error, StoreError):
        return copy(error)
    return StoreError(f"Usage cannot be written ({type(error).__name__}); the log tells more.")


_buffers: WeakSet[UsageBuffer] = WeakSet()


@at_the_end
def _flush_all() -> None:
    for buffer in list(_buffers):
        try:
            buffer.close()
        except StoreError as failure:
            logger.warning("Usage was lost at exit, as it could not be written: %s", failure)
