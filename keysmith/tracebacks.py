"""Tracebacks without values: what shows the variables of frames would show raw keys and hashes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def forget_values(error: BaseException) -> None:
    """Empties the frames that an error came through of their variables; files and lines stay.

    To be called where it leaves Keysmith. The frame that catches it is the first, still running,
    and deletes its own. What was suppressed by `from None` goes as a whole: it has frames, too.
    """
    if error.__suppress_context__:
        error.__context__ = None
    trace = error.__traceback__
    while trace is not None and (trace := trace.tb_next) is not None:
        try:  # noqa: SIM105  `suppress` costs as much as all the rest
            trace.tb_frame.clear()
        except RuntimeError:  # one of another thread, which is still running
            pass


def without_values(call: Callable[P, T]) -> Callable[P, T]:
    """The same call, whose errors come without the values that it was given and worked with."""

    @wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_values(error)
            raise

    return guarded
