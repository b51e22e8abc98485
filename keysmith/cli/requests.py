"""`keysmith requests`: the requests that were made with keys, one by one."""

from __future__ import annotations

from typing import Annotated

import typer

from keysmith.cli.options import (
    After,
    AsJson,
    DatabaseUrl,
    OfApp,
    OfKey,
    OfTenant,
    Since,
    Until,
)
from keysmith.cli.output import print_objects
from keysmith.cli.session import open_engine
from keysmith.models import UsagePublic
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(no_args_is_help=True, help="Look at the requests made with keys, one by one.")

COLUMNS = ("id", "created_at", "method", "endpoint", "status_code", "latency_ms", "ip_address")


@app.command("list")
def list_requests(
    *,
    key: OfKey = None,
    tenant: OfTenant = None,
    app: OfApp = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List the requests that were recorded, newest first."""
    with open_engine(database_url) as engine:
        if key is not None:
            engine.get_key(key)  # an unknown one is an error, and not an empty list
        found = engine.query_usage(
            key_id=key,
            tenant_id=tenant,
            app_id=app,
            since=since,
            until=until,
            limit=limit,
            after=after,
        )
    records = [UsagePublic.model_validate(record) for record in found]
    columns = COLUMNS if key is not None else (*COLUMNS, "key_id")
    print_objects(records, columns, as_json=as_json, empty="There are no such requests.")
