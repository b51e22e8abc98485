"""`keysmith keys`: create keys, look at them, and remove them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from keysmith.cli.failures import ExitCode
from keysmith.cli.options import (
    After,
    App,
    AsJson,
    DatabaseUrl,
    Description,
    Limit,
    Meta,
    OfTenant,
    Tenant,
    duration_option,
    given,
)
from keysmith.cli.output import (
    dump,
    note,
    print_deleted,
    print_fields,
    print_json,
    print_line,
    print_objects,
)
from keysmith.cli.session import open_engine
from keysmith.clock import utc_now
from keysmith.engine import CreatedKey
from keysmith.models import Environment, Key, KeyCreate, KeyPublic, KeyState
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(
    no_args_is_help=True, help="Issue keys, validate them, rotate them and stop them."
)

COLUMNS = ("id", "name", "state", "environment", "hint", "tenant_id", "expires_at")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's ID: akey_….")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call the key.")],
    *,
    tenant: Tenant = None,
    app: App = None,
    scope: Annotated[list[str] | None, typer.Option(help="A scope for it; repeatable.")] = None,
    policy: Annotated[str | None, typer.Option(help="The ID of the policy it bears.")] = None,
    environment: Annotated[Environment | None, typer.Option(help="What it is for.")] = None,
    prefix: Annotated[str | None, typer.Option(help="How the raw key begins.")] = None,
    description: Description = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="ISO8601", help="When it expires, with a time zone.")
    ] = None,
    expires_in: Annotated[
        timedelta | None, duration_option("--expires-in", "How long from now it expires.")
    ] = None,
    created_by: Annotated[str | None, typer.Option(help="Who asked for it.")] = None,
    meta: Meta = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its raw key is printed here, and never again."""
    data = KeyCreate.model_validate(
        given(
            name=name,
            tenant_id=tenant,
            app_id=app,
            scopes=scope,
            policy_id=policy,
            environment=environment,
            prefix=prefix,
            description=description,
            expires_at=_expiry(expires_at, expires_in),
            created_by=created_by,
            meta=meta,
        )
    )
    with open_engine(database_url) as engine:
        created = engine.create_key(data)
    print_issued(created, as_json=as_json)


@app.command("list")
def list_keys(
    *,
    tenant: OfTenant = None,
    state: Annotated[KeyState | None, typer.Option(help="Only those in this state.")] = None,
    environment: Annotated[
        Environment | None, typer.Option(help="Only those of this environment.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Only those that bear this policy.")] = None,
    created_by: Annotated[str | None, typer.Option(help="Only those this one asked for.")] = None,
    limit: Limit = None,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List keys, newest first."""
    with open_engine(database_url) as engine:
        found = engine.list_keys(
            tenant_id=tenant,
            state=state,
            environment=environment,
            policy_id=policy,
            created_by=created_by,
            limit=limit,
            after=after,
        )
    keys = [KeyPublic.model_validate(key) for key in found]
    print_objects(keys, COLUMNS, as_json=as_json, empty="There are no such keys.")


@app.command()
def show(
    key_id: KeyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Show a key, with the scopes that it holds."""
    with open_engine(database_url) as engine:
        key = engine.get_key(key_id)
        scopes = [scope.name for scope in engine.list_key_scopes(key_id)]
    print_fields({**dump(KeyPublic.model_validate(key)), "scopes": scopes}, as_json=as_json)


@app.command()
def delete(
    key_id: KeyId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Remove a key with its history and usage. To only stop it, revoke it."""
    if not yes and not typer.confirm(f"Delete {key_id} for good?", err=True):
        note("Nothing was deleted.")
        raise typer.Exit(ExitCode.REFUSED)
    with open_engine(database_url) as engine:
        engine.delete_key(key_id)
    print_deleted(key_id, as_json=as_json)


def print_key(key: Key, *, as_json: bool) -> None:
    """Prints a key as an API may show it."""
    print_fields(dump(KeyPublic.model_validate(key)), as_json=as_json)


def print_issued(created: CreatedKey, *, as_json: bool) -> None:
    """Prints a key and its raw key, for the only time."""
    key = dump(KeyPublic.model_validate(created.key))
    if as_json:
        print_json({"key": key, "raw_key": created.raw_key})
        return
    print_fields(key, as_json=False)
    print_line("")
    print_line(created.raw_key, "bold green")
    note("Shown once; store it now.")


def _expiry(at: str | None, within: timedelta | None) -> datetime | str | None:
    if within is None:
        return at
    if at is not None:
        raise typer.BadParameter("Give --expires-at or --expires-in, not both.")
    try:
        return utc_now() + within
    except OverflowError:
        raise typer.BadParameter("--expires-in reaches past the year 9999.") from None
