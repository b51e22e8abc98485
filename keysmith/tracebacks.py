"""Tracebacks without values: what shows the variables of frames would show raw keys and hashes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from types import FunctionType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)


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
    def call_guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_values(error)
            raise

    return call_guarded


def guarded(*, besides: Collection[str]) -> Callable[[C], C]:
    """A class decorator: `without_values` for all public methods but those."""

    def guard(cls: C) -> C:
        for name, call in list(vars(cls).items()):
            if isinstance(call, FunctionType) and name[0] != "_" and name not in besides:
                setattr(cls, name, without_values(call))
        return cls

    return guard
