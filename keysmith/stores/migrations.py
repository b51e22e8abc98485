"""Alembic, as Keysmith uses it: from `store.migrate()` and from the `alembic` command."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate.api import AutogenContext
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from keysmith.errors import SchemaOutdatedError
from keysmith.models import metadata
from keysmith.stores.schema import (
    TABLE_PREFIX,
    VERSION_TABLE,
    VERSIONS,
    check_schema,
    scripts_folder,
)

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


def upgrade_sqlite(connection: sa.Connection) -> None:
    """As `upgrade`; of the empty databases of a process, only the first takes Alembic's time.

    What the revisions make of it, SQLite tells as statements, which make the next ones: for tests,
    each of which begins with a database of its own.
    """
    folder, empty = scripts_folder(), not connection.exec_driver_sql(_STATEMENTS).all()
    if not empty or folder not in _new:
        upgrade(connection)
        if empty:
            made = connection.exec_driver_sql(_STATEMENTS).scalars().all()
            _new[folder] = made, connection.scalars(sa.select(VERSIONS.c.version_num)).one()
        return
    statements, version = _new[folder]
    for statement in statements:
        connection.exec_driver_sql(statement)
    connection.execute(sa.insert(VERSIONS).values(version_num=version))


_STATEMENTS = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
_new: dict[Path, tuple[Sequence[str], str]] = {}
"""What makes a new database, and its revision, by the folder of the revisions."""


def _include_name(name: str | None, kind: str, parents: Any) -> bool:
    """In a database shared with the host, only Keysmith's own tables are looked at."""
    return kind != "table" or (name or "").startswith(TABLE_PREFIX)


def _render_item(kind: str, item: Any, context: AutogenContext) -> str | bool:
    """Column types in revisions are SQLAlchemy's own, so that old revisions need no old code."""
    if kind == "type" and isinstance(item, sa.types.TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False
