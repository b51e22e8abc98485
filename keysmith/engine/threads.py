"""Threads that do what an event loop must not wait for."""

from __future__ import annotations

from asyncio import wrap_future
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from keysmith.errors import StoreUnavailableError
from keysmith.forks import renew_after_fork
from keysmith.tracebacks import forget_values

T = TypeVar("T")


class Threads:
    """So many at most, begun when they are needed, and anew in a forked child, which has none."""

    def __init__(self, most: int, name: str) -> None:
        self._begin = partial(_Pool, most, name)
        self._closed = False
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """None yet, in a forked child: what the parent's were given, they do there."""
        self._pool = self._begin()

    async def run(self, call: Callable[[], T]) -> T:
        """What a thread gets from the call, in the caller's context.

        Raises `StoreUnavailableError` where there is no thread to be had; it is not called then.
        """
        done: Future[T] = Future()
        calls: list[Callable[[], T]] = [partial(copy_context().run, call)]
        try:
            self._pool.submit(_fulfil, done, calls)
        except RuntimeError as error:
            # It may be in the queue all the same, for the next thread to find.
            if done.cancel():
                calls.clear()
                raise self._refusal(error) from None
        return await wrap_future(done)

    def close(self) -> None:
        """Lets them end when all that they were given is done, and takes no more."""
        self._closed = True
        self._pool.shutdown(wait=False)

    def _refusal(self, error: RuntimeError) -> StoreUnavailableError:
        if self._closed:
            return StoreUnavailableError("The engine has been closed.")
        return StoreUnavailableError(f"There is no thread for it, and nothing was done: {error}.")


class _Pool(ThreadPoolExecutor):
    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:  # the system gives no more
            if not self._threads:
                raise


def _fulfil(done: Future[T], calls: list[Callable[[], T]]) -> None:
    # Whoever waits empties the frames of an error, but not this one: it may still be running then.
    try:
        if done.set_running_or_notify_cancel():
            done.set_result(_outcome(calls.pop()))
    except BaseException as error:  # noqa: BLE001  whoever waits for it gets it
        done.set_exception(error)
    finally:
        del done  # the error's frames would hold it, and it the error


def _outcome(call: Callable[[], T]) -> T:
    try:
        return call()
    except StopIteration as error:  # no coroutine can be given that: it would wait for ever
        forget_values(error)
        raise RuntimeError("The call raised StopIteration.") from error
