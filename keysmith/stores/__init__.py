"""Where keys are kept: a repository a subsystem, composed into a store."""

from __future__ import annotations

import sqlalchemy as sa

from keysmith.errors import StoreUnavailableError
from keysmith.stores.base import (
    KeyRepository,
    PolicyRepository,
    RotationRepository,
    ScopeRepository,
    Store,
    UsageRepository,
)
from keysmith.stores.schema import without_keysmith
from keysmith.stores.sqlite import MEMORY, SqliteStore

DEFAULT_DATABASE_URL = "sqlite:///keysmith.db"

__all__ = [
    "DEFAULT_DATABASE_URL",
    "KeyRepository",
    "PolicyRepository",
    "RotationRepository",
    "ScopeRepository",
    "SqliteStore",
    "Store",
    "UsageRepository",
    "open_store",
    "without_keysmith",
]


def open_store(url: str = DEFAULT_DATABASE_URL) -> SqliteStore:
    """The store for a database URL: `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://`.

    Raises `StoreUnavailableError` for anything else.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() != "sqlite" or parsed.host:
        raise StoreUnavailableError(
            "The database URL must be of the form sqlite:///keysmith.db (a relative path) or "
            "sqlite:////var/lib/keysmith.db (an absolute one)."
        )
    return SqliteStore(parsed.database or MEMORY)
