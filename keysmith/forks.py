"""Fork: what a child process must not share with its parent, and what it does at its own end.

A lock that another thread held at that moment is never released in the child, and an open database
or file would be one for two processes. What has such things renews them in the child. SQLite has
locks of its own that nobody can renew, so no thread may be inside of it while the process forks.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

PATIENCE = 5.0
"""Seconds for which a fork waits for each thing that other threads are at."""


class Renewable(Protocol):
    """What has locks, connections or threads."""

    def renew(self) -> None:
        """Gives up what the parent still uses, in a child that has just been forked."""


class Pausable(Renewable, Protocol):
    """What other threads must not be at while the process forks."""

    def pause(self) -> None:
        """Keeps them out, when they are out; for `PATIENCE` at most."""

    def resume(self) -> None:
        """Lets them in again, in the parent."""


class Gate:
    """Lets any number of threads in, and none while it is closed."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Open, and nobody inside: for a forked child."""
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside = max(0, self._inside - 1)  # in a child that was forked within, it is 0
            if self._closed:
                self._changed.notify_all()

    def close(self, inside: int) -> None:
        """Closes when no more than so many are inside, or after `PATIENCE`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside <= inside, PATIENCE)

    def open(self) -> None:
        """Lets in who waits."""
        with self._changed:
            self._closed = False
            self._changed.notify_all()


_renewables: WeakKeyDictionary[Renewable, None] = WeakKeyDictionary()
_pausables: WeakKeyDictionary[Pausable, None] = WeakKeyDictionary()
_forking = threading.Lock()
_paused: list[Pausable] = []
_last_calls: list[Callable[[], None]] = []
_minds_the_end = False


def renew_after_fork(renewable: Renewable) -> None:
    """Lets `renewable.renew()` be called in every child that is forked while it lives."""
    _renewables[renewable] = None


def pause_for_fork(pausable: Pausable) -> None:
    """As `renew_after_fork`, with nobody at it while the process forks.

    Who pauses it may hold what was registered later, and not what was registered before.
    """
    _pausables[pausable] = None
    renew_after_fork(pausable)


def at_the_end(call: Callable[[], None]) -> Callable[[], None]:
    """A decorator: the call is made when the process ends; the one decorated last comes first."""
    _last_calls.append(call)
    return atexit.register(call)


def mind_the_end() -> None:
    """To be called as soon as there is something to be done `at_the_end`.

    Workers that `multiprocessing` forks end without a look at `atexit`.
    """
    global _minds_the_end  # noqa: PLW0603
    process = sys.modules.get("multiprocessing.process")
    if _minds_the_end or process is None or process.parent_process() is None:
        return
    _minds_the_end = True
    for call in _last_calls:
        sys.modules["multiprocessing.util"].Finalize(None, call, exitpriority=0)


def _pause_all() -> None:
    _forking.acquire()
    for pausable in reversed(list(_pausables)):
        pausable.pause()
        _paused.append(pausable)


def _resume_all() -> None:
    while _paused:
        _paused.pop().resume()
    _forking.release()


def _renew_all() -> None:
    global _forking, _minds_the_end  # noqa: PLW0603
    _forking = threading.Lock()
    _minds_the_end = False
    _paused.clear()
    for renewable in list(_renewables):
        renewable.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_renew_all)
