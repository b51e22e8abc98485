"""`keysmith keys`: the life of a key."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

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
from keysmith.cli.output import dump, note, print_json, print_line, print_object, print_objects
from keysmith.cli.session import open_engine
from keysmith.clock import utc_now
from keysmith.engine import CreatedKey, ValidationResult
from keysmith.models import Environment, Key, KeyCreate, KeyPublic, KeyState, RotationReason
from keysmith.raw_keys import MAX_RAW_KEY_LENGTH
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(no_args_is_help=True, help="Create keys, look at them, and end them.")

COLUMNS = ("id", "name", "state", "environment", "hint", "tenant_id", "expires_at")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's ID: akey_….")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call the key.")],
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
    _print_issued(created, as_json=as_json)


@app.command("list")
def list_keys(
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
    _print_fields({**_public(key), "scopes": scopes}, as_json=as_json)


@app.command()
def validate(
    scope: Annotated[list[str] | None, typer.Option(help="A scope needed; repeatable.")] = None,
    ip: Annotated[str | None, typer.Option(help="The address the request comes from.")] = None,
    origin: Annotated[str | None, typer.Option(help="The request's web origin.")] = None,
    method: Annotated[str | None, typer.Option(help="The request's method.")] = None,
    path: Annotated[str | None, typer.Option(help="The request's path.")] = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Validate a raw key, as a request would. It is read from standard input, or prompted for."""
    raw_key = _read_raw_key()
    with open_engine(database_url) as engine:
        result = engine.validate_key(
            raw_key, scopes=scope or (), ip=ip, origin=origin, method=method, path=path
        )
    document = TypeAdapter(ValidationResult).dump_python(result, mode="json", by_alias=True)
    if as_json:
        print_json(document)
    else:
        print_line("The key is valid.", "green")
        print_object({**document.pop("key"), **document, "policy": result.policy and result.policy.name})


@app.command()
def rotate(
    key_id: KeyId,
    reason: Annotated[
        RotationReason, typer.Option(help="Why; a compromise ends all grace at once.")
    ] = RotationReason.MANUAL,
    grace: Annotated[
        timedelta | None, duration_option("--grace", "How long the old secret goes on working.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who asked for the rotation.")] = "",
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret; the old one goes on working for its grace period."""
    with open_engine(database_url) as engine:
        rotated = engine.rotate_key(key_id, reason=reason, grace=grace, rotated_by=by)
    _print_issued(rotated, as_json=as_json)


@app.command()
def revoke(
    key_id: KeyId,
    reason: Annotated[str, typer.Option(help="Why, for those who listen.")] = "",
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Stop a key for good."""
    with open_engine(database_url) as engine:
        key = engine.revoke_key(key_id, reason=reason)
    _print_fields(_public(key), as_json=as_json)


@app.command()
def suspend(
    key_id: KeyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Stop a key until it is reactivated."""
    with open_engine(database_url) as engine:
        key = engine.suspend_key(key_id)
    _print_fields(_public(key), as_json=as_json)


@app.command()
def reactivate(
    key_id: KeyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Let a suspended key work again."""
    with open_engine(database_url) as engine:
        key = engine.reactivate_key(key_id)
    _print_fields(_public(key), as_json=as_json)


@app.command()
def delete(
    key_id: KeyId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Remove a key with its history and usage. To only stop it, revoke it."""
