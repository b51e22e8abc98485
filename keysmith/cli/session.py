"""The engine that a command works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from keysmith.cli.output import note
from keysmith.engine import Engine
from keysmith.errors import StoreError
from keysmith.stores import open_store


@contextmanager
def open_engine(database_url: str, rate_limiter: str | None = None) -> Iterator[Engine]:
    """An engine on that database, which is closed at the end of the `with` block.

    A command has done its work by then. That a key was used, a read-only database cannot keep.
    """
    engine = Engine(open_store(database_url), rate_limiter=rate_limiter or None)
    try:
        yield engine
    finally:
        try:
            engine.close()
        except StoreError as error:
            note(f"That the key was used could not be written: {error}")
