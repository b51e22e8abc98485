"""`keysmith keys rotate-all` and `revoke-all`: what is to be done in the night after a leak."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from keysmith.cli.keys import COLUMNS
from keysmith.cli.new_keys import FORMATS, NewKeysFile
from keysmith.cli.options import (
    AsJson,
    DatabaseUrl,
    OfApp,
    OfTenant,
    duration_option,
    moment_option,
    refuse_both,
)
from keysmith.cli.output import confirm, note, print_objects
from keysmith.cli.session import open_engine
from keysmith.cli.sweep import Sweep
from keysmith.engine import Engine
from keysmith.models import KeyPublic, RotationReason
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer()


AllTenants = Annotated[
    bool, typer.Option("--all-tenants", help="Those of all tenants, root keys too.")
]
Before = Annotated[
    Any,
    moment_option(
        "--before",
        "Only keys with a secret from before then, such as the end of the leak; now if left out.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the keys.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
def rotate_all(
    *,
    tenant: OfTenant = None,
    all_tenants: AllTenants = False,
    app: OfApp = None,
    before: Before = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A new file for the new raw keys: NAME.csv or NAME.jsonl."
        ),
    ] = None,
    reason: Annotated[
        RotationReason | None,
        typer.Option(help="Why; compromise if left out, or manual with --grace."),
    ] = None,
    grace: Annotated[
        timedelta | None,
        duration_option(
            "--grace", "How long the old secrets go on working; they stop if left out."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Who asked for the rotation.")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Give all keys of a tenant new secrets, after a leak. The old ones stop at once."""
    whose = _whose(tenant, all_tenants)
    reason = reason or (RotationReason.COMPROMISE if grace is None else RotationReason.MANUAL)
    if reason is RotationReason.COMPROMISE and grace is not None:
        raise typer.BadParameter("A compromise leaves no grace: give --grace or that reason.")
    path = output or Path()
    if not dry_run and path.suffix not in FORMATS:
        raise typer.BadParameter("must end in .csv or .jsonl", param_hint="'--output'")
    with open_engine(database_url) as engine:
        sweep = Sweep(
            engine,
            before=_past(before, engine),
            ends_grace=reason is RotationReason.COMPROMISE,
            tenant_id=tenant,
            app_id=app,
        )
        if dry_run:
            _list(sweep, as_json=as_json)
            return
        if sweep.key_ids and not yes:
            note(
                "Their old secrets stop at once."
                if grace is None
                else f"Their old secrets go on working for {grace}."
            )
            confirm(f"Rotate {sweep.size} of {whose}?")
        with NewKeysFile(path) as file:

            def rotate(key_id: str) -> None:
                # The transaction ends after that: no secret is in force that is not in the file.
                file.add(
                    engine.rotate_key(
                        key_id, reason=reason, grace=grace or timedelta(0), rotated_by=by
                    )
                )

            sweep.carry_out("rotated", rotate, as_json=as_json, output=path)


@app.command()
def revoke_all(
    *,
    tenant: OfTenant = None,
    all_tenants: AllTenants = False,
    app: OfApp = None,
    before: Before = None,
    reason: Annotated[str, typer.Option(help="Why, for those who listen.")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Stop all keys of a tenant for good, after a leak."""
    whose = _whose(tenant, all_tenants)
    with open_engine(database_url) as engine:
        sweep = Sweep(
            engine,
            before=_past(before, engine),
            ends_grace=True,
            tenant_id=tenant,
            app_id=app,
        )
        if dry_run:
            _list(sweep, as_json=as_json)
            return
        if sweep.key_ids and not yes:
            confirm(f"Revoke {sweep.size} of {whose} for good?")
        sweep.carry_out(
            "revoked", lambda key_id: engine.revoke_key(key_id, reason=reason), as_json=as_json
        )


def _whose(tenant: str | None, all_tenants: bool) -> str:
    refuse_both(tenant=tenant, all_tenants=all_tenants)
    if not (tenant or all_tenants):
        raise typer.BadParameter("Give --tenant, or --all-tenants.")
    return f"the tenant {tenant}" if tenant else "all tenants"


def _past(before: datetime | None, engine: Engine) -> datetime:
    now = engine.now()
    if before is not None and before > now:
        # What is rotated until then would be rotated again by whoever goes on.
        raise typer.BadParameter("must not be in the future", param_hint="'--before'")
    return before or now


def _list(sweep: Sweep, *, as_json: bool) -> None:
    keys = [KeyPublic.model_validate(sweep.engine.get_key(key_id)) for key_id in sweep.key_ids]
    print_objects(keys, COLUMNS, as_json=as_json, empty="There are no such keys.")
