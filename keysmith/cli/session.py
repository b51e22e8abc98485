"""The engine that a command works with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from keysmith.cli.output import note
from keysmith.engine import Engine, Plugin
from keysmith.errors import StoreError
from keysmith.stores import open_store

AUDIT_LOG = "KEYSMITH_AUDIT_LOG"
"""The variable that names the file to which is appended what is done."""


@contextmanager
def open_engine(
    database_url: str, rate_limiter: str | None = None, audit_log: str | None = None
) -> Iterator[Engine]:
    """An engine on that database, which is closed at the end of the `with` block.

    A command has done its work by then. That a key was used, a read-only database cannot keep.
    """
    plugins = _plugins(audit_log or os.environ.get(AUDIT_LOG))
    engine = Engine(open_store(database_url), plugins=plugins, rate_limiter=rate_limiter or None)
    try:
        yield engine
    finally:
        try:
            engine.close()
        except StoreError as error:
            note(f"That the key was used could not be written: {error}")


def _plugins(audit_log: str | None) -> list[Plugin]:
    if not audit_log:
        return []
    from keysmith.plugins import AuditLog  # noqa: PLC0415  most commands need not wait for that

    return [AuditLog(audit_log)]
