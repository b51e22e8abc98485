"""Alembic, as Keysmith uses it: from `store.migrate()` and from the `alembic` command."""

from __future__ import annotations

import threading
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate.api import AutogenContext
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from keysmith.errors import SchemaOutdatedError
from keysmith.models import metadata
from keysmith.stores.schema import VERSION_TABLE, check_schema, scripts_folder

_TABLE_PREFIX = "keysmith_"

# `alembic.op`, which the revisions speak to, is one object for the whole process.
_one_at_a_time = threading.Lock()


def options() -> dict[str, Any]:
    """How Alembic is to be configured: our tables only, our version table, one transaction."""
    return {
        "target_metadata": metadata,
        "version_table": VERSION_TABLE,
        "include_name": _include_name,
        "render_item": _render_item,
        "render_as_batch": True,  # SQLite alters little in place
        "transactional_ddl": True,
        "transaction_per_migration": False,
        "compare_type": True,
    }


def upgrade(connection: sa.Connection) -> None:
    """Runs the missing revisions inside the transaction that the connection is in.

    It does not enter Alembic's environment, so a host may call it from an `env.py` of its own.
    """
    scripts = ScriptDirectory(str(scripts_folder()))

    def missing(revision: Any, context: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)  # noqa: SLF001  Alembic offers no other

    with _one_at_a_time:
        context = MigrationContext.configure(connection, opts={**options(), "fn": missing})
        with Operations.context(context):
            try:
                context.run_migrations()
            except CommandError:
                # Alembic does not know the revision that the database is at.
                check_schema(connection)
                raise SchemaOutdatedError from None


def _include_name(name: str | None, kind: str, parents: Any) -> bool:
    """In a database shared with the host, only Keysmith's own tables are looked at."""
    return kind != "table" or (name or "").startswith(_TABLE_PREFIX)


def _render_item(kind: str, item: Any, context: AutogenContext) -> str | bool:
    """Column types in revisions are SQLAlchemy's own, so that old revisions need no old code."""
    if kind == "type" and isinstance(item, sa.types.TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False
