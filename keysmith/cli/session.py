"""The engine that a command works with."""

from __future__ import annotations

from keysmith.engine import Engine
from keysmith.stores import open_store


def open_engine(database_url: str, rate_limiter: str | None = None) -> Engine:
    """An engine on that database, to be closed at the end of a `with` block."""
    return Engine(open_store(database_url), rate_limiter=rate_limiter or None)
