"""`keysmith scopes`: declare scopes, and give them to keys."""

from __future__ import annotations

from typing import Annotated

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
    given,
    refuse_both,
    refuse_nothing,
)
from keysmith.cli.output import dump, print_deleted, print_fields, print_objects
from keysmith.cli.session import open_engine
from keysmith.engine import Engine
from keysmith.models import Scope, ScopeCreate, ScopePublic, ScopeUpdate
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(no_args_is_help=True, help="Declare scopes, and give them to keys.")

COLUMNS = ("id", "name", "parent", "tenant_id", "description")

ScopeId = Annotated[str, typer.Argument(metavar="ID", help="The scope's ID: kscp_….")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's ID: akey_….")]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Names of scopes.")]
Parent = Annotated[str | None, typer.Option("--parent", help="The scope it lies below.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, such as read:users.")],
    *,
    parent: Parent = None,
    description: Description = None,
    tenant: Tenant = None,
    app: App = None,
    meta: Meta = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Create a scope."""
    data = ScopeCreate.model_validate(
        given(
            name=name,
            parent=parent,
            description=description,
            tenant_id=tenant,
            app_id=app,
            meta=meta,
        )
    )
    with open_engine(database_url) as engine:
        scope = engine.create_scope(data)
    _print_scope(scope, as_json=as_json)


@app.command("list")
def list_scopes(
    *,
    tenant: OfTenant = None,
    app: OfApp = None,
    parent: Annotated[str | None, typer.Option(help="Only those right below this one.")] = None,
    limit: Limit = None,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List scopes, by name."""
    with open_engine(database_url) as engine:
        found = engine.list_scopes(
            tenant_id=tenant, app_id=app, parent=parent, limit=limit, after=after
        )
    scopes = [ScopePublic.model_validate(scope) for scope in found]
    print_objects(scopes, COLUMNS, as_json=as_json, empty="There are no such scopes.")


@app.command()
def show(
    scope_id: ScopeId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Show a scope."""
    with open_engine(database_url) as engine:
        scope = engine.get_scope(scope_id)
    _print_scope(scope, as_json=as_json)


@app.command()
def update(
    scope_id: ScopeId,
    *,
    parent: Parent = None,
    no_parent: Annotated[bool, typer.Option("--no-parent", help="Let it stand alone.")] = False,
    description: Description = None,
    meta: Meta = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Change a scope's parent, description or metadata; its name is for good."""
    refuse_both(parent=parent, no_parent=no_parent)
    changes = given(parent=parent, description=description, meta=meta)
    if no_parent:
        changes["parent"] = None
    refuse_nothing(changes)
    data = ScopeUpdate.model_validate(changes)
    with open_engine(database_url) as engine:
        scope = engine.update_scope(scope_id, data)
    _print_scope(scope, as_json=as_json)


@app.command()
def delete(
    scope_id: ScopeId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Remove a scope. Keys lose it, and scopes below it stand alone."""
    with open_engine(database_url) as engine:
        engine.delete_scope(scope_id)
    print_deleted(scope_id, as_json=as_json)


@app.command()
def assign(
    key_id: KeyId,
    names: Names,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Give a key scopes, and list those that it holds then."""
    with open_engine(database_url) as engine:
        engine.assign_scopes(key_id, names)
        _print_held(engine, key_id, as_json=as_json)


@app.command()
def remove(
    key_id: KeyId,
    names: Names,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Take scopes from a key, and list those that it still holds."""
    with open_engine(database_url) as engine:
        engine.remove_scopes(key_id, names)
        _print_held(engine, key_id, as_json=as_json)


def _print_scope(scope: Scope, *, as_json: bool) -> None:
    print_fields(dump(ScopePublic.model_validate(scope)), as_json=as_json)


def _print_held(engine: Engine, key_id: str, *, as_json: bool) -> None:
    held = [ScopePublic.model_validate(scope) for scope in engine.list_key_scopes(key_id)]
    print_objects(held, COLUMNS, as_json=as_json, empty="The key holds no scopes.")
