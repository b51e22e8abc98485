"""Which revisions of the schema there are, and whether a database stands at the newest.

Nothing here imports Alembic: it costs a tenth of a second, and only migrating needs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import sqlalchemy as sa

from keysmith.errors import SchemaOutdatedError

VERSION_TABLE = "keysmith_alembic_version"
"""Where Alembic counts Keysmith's revisions: apart from those of the host, in the same database."""

TABLE_PREFIX = "keysmith_"

VERSIONS = sa.table(VERSION_TABLE, sa.column("version_num"))


def without_keysmith(name: str | None, kind: str, _parents: object) -> bool:
    """The `include_name` for the Alembic of a host whose tables are in the same database.

    Without it `alembic revision --autogenerate` finds Keysmith's tables, which are not in the
    host's models, and writes a revision that drops them.
    """
    return kind != "table" or not (name or "").startswith(TABLE_PREFIX)


def scripts_folder() -> Path:
    """The folder with `env.py` and the revisions: in the wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "alembic"


@cache
def revisions() -> tuple[str, ...]:
    """The IDs of all revisions, oldest first; file names begin with date and revision."""
    files = sorted((scripts_folder() / "versions").glob("[0-9]*_*_*.py"))
    return tuple(file.name.split("_")[1] for file in files)


def check_schema(connection: sa.Connection) -> None:
    """Raises `SchemaOutdatedError` unless the database stands at the newest revision."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        raise SchemaOutdatedError(
            "This database has no Keysmith tables yet. "
            "Call store.migrate(), or run `keysmith migrate` or `alembic upgrade head`."
        )
    found = connection.scalar(sa.select(VERSIONS.c.version_num))
    if found == revisions()[-1]:
        return
    if found is None or found in revisions():
        raise SchemaOutdatedError(
            f"The schema is at revision {found or 'none'}, older than {revisions()[-1]}, which "
            "this release needs. Call store.migrate(), or run `keysmith migrate` or "
            "`alembic upgrade head`."
        )
    raise SchemaOutdatedError(
        f"The schema is at revision {found}, which is newer than this release of Keysmith knows. "
        "Upgrade the keysmith package; do not downgrade the database."
    )
