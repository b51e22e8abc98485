"""`keysmith keys`: create keys, look at them, and remove them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import typer

from keysmith.cli.options import (
    After,
    App,
    AsJson,
    DatabaseUrl,
    Description,
    Limit,
    Meta,
    OfApp,
    OfTenant,
    Tenant,
    duration_option,
    given,
    id_option,
    moment_option,
    refuse_both,
    refuse_nothing,
)
from keysmith.cli.output import (
    confirm,
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
from keysmith.engine import CreatedKey, Engine
from keysmith.errors import RequestRepeatedError
from keysmith.ids import IdPrefix
from keysmith.models import Environment, Key, KeyCreate, KeyPublic, KeyState, KeyUpdate
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(
    no_args_is_help=True, help="Issue keys, validate them, rotate them and stop them."
)

COLUMNS = ("id", "name", "state", "environment", "hint", "tenant_id", "expires_at")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's ID: akey_….")]
PolicyId = Annotated[
    str | None, typer.Option("--policy", metavar="ID", help="The policy that it bears: kpol_….")
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="A value of yours; with the same, it is done once."),
]
ExpiresAt = Annotated[
    str | None,
    typer.Option(
        "--expires-at", metavar="ISO8601", help="When it expires, such as 2030-01-31T00:00:00Z."
    ),
]
ExpiresIn = Annotated[
    timedelta | None, duration_option("--expires-in", "How long from now it expires.")
]
OfState = Annotated[KeyState | None, typer.Option("--state", help="Only those in this state.")]
OfEnvironment = Annotated[
    Environment | None, typer.Option("--environment", help="Only those of this environment.")
]
OfPolicy = Annotated[
    str | None, id_option("--policy", IdPrefix.POLICY, "Only those that bear this policy.")
]
CreatedBy = Annotated[
    str | None, typer.Option("--created-by", help="Only those that this one asked for.")
]
ExpiresBy = Annotated[Any, moment_option("--expires-by", "Only those that expire by then.")]
RotationDueBy = Annotated[
    Any, moment_option("--rotation-due-by", "Only those that must be rotated by then.")
]
UnusedSince = Annotated[
    Any, moment_option("--unused-since", "Only older ones that nobody has used since.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call the key.")],
    *,
    tenant: Tenant = None,
    app: App = None,
    scope: Annotated[list[str] | None, typer.Option(help="A scope for it; repeatable.")] = None,
    policy: PolicyId = None,
    environment: Annotated[
        Environment | None, typer.Option(help="What it is for; live if left out.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="How the raw key begins; sk if left out.")
    ] = None,
    description: Description = None,
    expires_at: ExpiresAt = None,
    expires_in: ExpiresIn = None,
    created_by: Annotated[str | None, typer.Option(help="Who asked for it.")] = None,
    meta: Meta = None,
    idempotency_key: IdempotencyKey = None,
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
        create = partial(engine.create_key, data, idempotency_key=idempotency_key)
        print_issued(engine, create, as_json=as_json)


@app.command("list")
def list_keys(
    *,
    tenant: OfTenant = None,
    app: OfApp = None,
    state: OfState = None,
    environment: OfEnvironment = None,
    policy: OfPolicy = None,
    created_by: CreatedBy = None,
    expires_by: ExpiresBy = None,
    rotation_due_by: RotationDueBy = None,
    unused_since: UnusedSince = None,
    limit: Limit = None,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List keys, newest first."""
    with open_engine(database_url) as engine:
        found = engine.list_keys(
            tenant_id=tenant,
            app_id=app,
            state=state,
            environment=environment,
            policy_id=policy,
            created_by=created_by,
            expires_by=expires_by,
            rotation_due_by=rotation_due_by,
            unused_since=unused_since,
            limit=limit,
            after=after,
        )
    keys = [KeyPublic.model_validate(key) for key in found]
    print_objects(keys, COLUMNS, as_json=as_json, empty="There are no such keys.")


@app.command()
def count(
    *,
    tenant: OfTenant = None,
    app: OfApp = None,
    state: OfState = None,
    environment: OfEnvironment = None,
    policy: OfPolicy = None,
    created_by: CreatedBy = None,
    expires_by: ExpiresBy = None,
    rotation_due_by: RotationDueBy = None,
    unused_since: UnusedSince = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Count keys."""
    with open_engine(database_url) as engine:
        found = engine.count_keys(
            tenant_id=tenant,
            app_id=app,
            state=state,
            environment=environment,
            policy_id=policy,
            created_by=created_by,
            expires_by=expires_by,
            rotation_due_by=rotation_due_by,
            unused_since=unused_since,
        )
    print_fields({"count": found}, as_json=as_json)


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
def update(
    key_id: KeyId,
    *,
    name: Annotated[str | None, typer.Option("--name", help="What people call the key.")] = None,
    description: Description = None,
    policy: PolicyId = None,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="Let it bear none.")] = False,
    expires_at: ExpiresAt = None,
    expires_in: ExpiresIn = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="Let it never expire.")] = False,
    meta: Meta = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Change a key. Only what is given changes; the secret stays as it is."""
    refuse_both(policy=policy, no_policy=no_policy)
    refuse_both(expires_at=expires_at, expires_in=expires_in, no_expiry=no_expiry)
    changes = given(
        name=name,
        description=description,
        policy_id=policy,
        expires_at=_expiry(expires_at, expires_in),
        meta=meta,
    )
    if no_policy:
        changes["policy_id"] = None
    if no_expiry:
        changes["expires_at"] = None
    refuse_nothing(changes)
    data = KeyUpdate.model_validate(changes)
    with open_engine(database_url) as engine:
        key = engine.update_key(key_id, data)
    print_key(key, as_json=as_json)


@app.command()
def delete(
    key_id: KeyId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Remove a key with its history and usage. To only stop it, revoke it."""
    if not yes:
        confirm(f"Delete {key_id} for good?")
    with open_engine(database_url) as engine:
        engine.delete_key(key_id)
    print_deleted(key_id, as_json=as_json)


def print_key(key: Key, *, as_json: bool) -> None:
    """Prints a key as an API may show it."""
    print_fields(dump(KeyPublic.model_validate(key)), as_json=as_json)


def print_issued(engine: Engine, issue: Callable[[], CreatedKey], *, as_json: bool) -> None:
    """Prints a key and its raw key, for the only time: if issued before, the key alone."""
    try:
        created = issue()
    except RequestRepeatedError as repeated:
        _print_issued(engine.get_key(repeated.key_id), None, as_json=as_json)
    else:
        _print_issued(created.key, created.raw_key, as_json=as_json)


def _print_issued(issued: Key, raw_key: str | None, *, as_json: bool) -> None:
    key = dump(KeyPublic.model_validate(issued))
    if as_json:
        print_json({"key": key, "raw_key": raw_key})
        return
    print_fields(key, as_json=False)
    if raw_key is None:
        note("This was done before, and the raw key shown then. Rotate the key for another.")
        return
    print_line("")
    print_line(raw_key, "bold green")
    note("Shown once; store it now.")


def _expiry(at: str | None, within: timedelta | None) -> datetime | str | None:
    refuse_both(expires_at=at, expires_in=within)
    if within is None:
        return at
    try:
        return utc_now() + within
    except OverflowError:
        raise typer.BadParameter("--expires-in reaches past the year 9999.") from None
