"""How a plugin is told: on a thread of its own, through a queue that makes no call wait."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue
from typing import Any, Protocol
from weakref import WeakSet

from keysmith.forks import at_the_end, mind_the_end

logger = logging.getLogger("keysmith.plugins")

QUEUE_LIMIT = 10_000
"""Events that may wait for one plugin. What comes on top of them is dropped."""

PATIENCE = 5.0
"""Seconds for which flush(), close() and the end of the process wait for plugins, all together."""

Call = tuple[str, Callable[..., None], tuple[Any, ...]]
"""The name of a hook, the plugin's method, and what to tell it."""


class Renewable(Protocol):
    """What has a thread, and therefore has to begin anew in a forked process."""

    def renew(self) -> None:
        """Forgets threads, locks and what waits: they are the parent's."""


_renewables: WeakSet[Renewable] = WeakSet()
_listeners: WeakSet[Listener] = WeakSet()


def renew_after_fork(thing: Renewable) -> None:
    """In each process that is forked from this one, `thing.renew()` is called first of all."""
    _renewables.add(thing)


def call_hook(name: str, hook: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Calls a plugin's hook; what it raises is logged, and goes no further.

    Not even `sys.exit()` does: the caller is owed the key that was just created.
    """
    try:
        hook(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.exception("A plugin failed in %s", name)


class Listener:
    """One plugin's thread and queue. The thread is a daemon, and starts with the first event."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.renew()
        renew_after_fork(self)
        _listeners.add(self)

    def renew(self) -> None:
        """As it was before the first event."""
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0

    def tell(self, name: str, hook: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Has the hook called, after all that was told before. Returns at once."""
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._drop()
        else:
            self._put((name, hook, arguments))

    def mark(self) -> threading.Event:
        """An event that is set when all that was told before has been delivered."""
        reached = threading.Event()
        if self._thread is None and self._queue.empty():
            reached.set()
        elif threading.current_thread() is self._thread:
            reached.set()  # a plugin that waits for itself would wait in vain
        elif self._queue.qsize() < 2 * QUEUE_LIMIT:
            self._put(("", reached.set, ()))
        return reached

    def stop(self, last: Call | None) -> None:
        """Ends the thread after all that was told before, and then this last call."""
        if last is not None:
            self._put(last)
        if self._thread is not None:
            self._queue.put(None)

    def join(self, deadline: float) -> None:
        """Waits for the end of a stopped thread, until this moment of `time.monotonic()`."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            logger.warning(
                "%s does not finish. Its thread is left alone, with %d events waiting and "
                "%d dropped.",
                self._name,
                max(0, self._queue.qsize() - 1),
                self._dropped,
            )

    def _put(self, call: Call) -> None:
        self._queue.put(call)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(
                target=self._run, args=(self._queue,), name=f"keysmith {self._name}", daemon=True
            )
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is ending
                self._thread = None
                logger.warning("%s has no thread to be told on: %s", self._name, error)
            mind_the_end()

    def _run(self, queue: SimpleQueue[Call | None]) -> None:
        while (call := queue.get()) is not None:
            try:
                call_hook(*call)
            except KeyboardInterrupt:  # the hook's own: what is typed reaches the main thread only
                logger.exception("A plugin failed in %s", call[0])
            del call  # what was told is not kept alive until there is something new to tell
            if self._dropped and queue.empty():
                self._caught_up()

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1
            first = self._dropped == 1
        if first:
            logger.warning(
                "%s does not keep up: %d events wait for it. Until it has caught up, "
                "it misses what comes on top.",
                self._name,
                QUEUE_LIMIT,
            )

    def _caught_up(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        logger.warning("%s has caught up; it has missed %d events.", self._name, dropped)


def wait_for(listeners: Iterable[Listener], timeout: float) -> bool:
    """Waits until all of them have heard all that was told before; whether they have in time."""
    deadline = time.monotonic() + timeout
    marks = [listener.mark() for listener in listeners]
    return all(mark.wait(max(0.0, deadline - time.monotonic())) for mark in marks)


def finish(last: Mapping[Listener, Call | None], timeout: float) -> None:
    """Ends the threads of these listeners, each after its last call, if it has one."""
    deadline = time.monotonic() + timeout
    for listener, call in last.items():
        listener.stop(call)
    for listener in last:
        listener.join(deadline)
        _listeners.discard(listener)


def _renew_all() -> None:
    for thing in list(_renewables):
        try:
            thing.renew()
        except Exception:
            logger.exception("A plugin failed in a forked child")


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_all)


@at_the_end
def _finish_all() -> None:
    """What happened in an engine that nobody closed is still told."""
    finish(dict.fromkeys(_listeners), PATIENCE)
