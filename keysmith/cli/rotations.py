"""`keysmith rotations`: which secret replaced which, and until when the old one works."""

from __future__ import annotations

from typing import Annotated

import typer

from keysmith.cli.options import After, AsJson, DatabaseUrl, Limit, OfApp, OfKey, OfTenant
from keysmith.cli.output import print_objects
from keysmith.cli.session import open_engine
from keysmith.models import RotationPublic, RotationReason
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(no_args_is_help=True, help="Look back at the rotations of keys.")

COLUMNS = ("id", "key_id", "reason", "created_at", "grace_ends", "rotated_by")


@app.command("list")
def list_rotations(
    *,
    key: OfKey = None,
    tenant: OfTenant = None,
    app: OfApp = None,
    reason: Annotated[
        RotationReason | None, typer.Option("--reason", help="Only those for this reason.")
    ] = None,
    limit: Limit = None,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List rotations, newest first."""
    with open_engine(database_url) as engine:
        found = engine.list_rotations(
            key_id=key,
            tenant_id=tenant,
            app_id=app,
            reason=reason,
            limit=limit,
            after=after,
        )
    rotations = [RotationPublic.model_validate(rotation) for rotation in found]
    print_objects(rotations, COLUMNS, as_json=as_json, empty="There are no such rotations.")
