"""What there is to see for whoever turns every log on, and shows the variables of an error."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.traceback import Traceback

LOGGERS = ("", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "alembic", "keysmith")


def variables(error: BaseException) -> Iterator[str]:
    """The variables of every frame as rich shows them, in full; to colour the source takes long."""
    trace = Traceback.extract(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_length=None,  # type: ignore[arg-type]
        locals_max_string=None,  # type: ignore[arg-type]
        locals_hide_dunder=False,
    )
    for stack in trace.stacks:
        for frame in stack.frames:
            yield f"{frame.filename}:{frame.lineno}, in {frame.name}"
            yield from (f"{name} = {node}" for name, node in (frame.locals or {}).items())


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """Every logger at DEBUG, into one text."""
    text = io.StringIO()
    handler, levels = logging.StreamHandler(text), {}
    logging.getLogger().addHandler(handler)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        levels[logger] = logger.level
        logger.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)
