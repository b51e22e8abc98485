"""`keysmith policies`: the rules that keys bear."""

from __future__ import annotations

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
    given,
    refuse_nothing,
)
from keysmith.cli.output import dump, print_deleted, print_fields, print_objects
from keysmith.cli.policy_options import Clearable, takes_rules
from keysmith.cli.session import open_engine
from keysmith.models import Policy, PolicyCreate, PolicyPublic, PolicyUpdate
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(no_args_is_help=True, help="Make the rules that keys bear.")

COLUMNS = ("id", "name", "tenant_id", "rate_limit", "rate_limit_window", "grace_period")


PolicyId = Annotated[str, typer.Argument(metavar="ID", help="The policy's ID: kpol_….")]


@app.command()
@takes_rules
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Unique within the tenant.")],
    *,
    tenant: Tenant = None,
    app: App = None,
    description: Description = None,
    rules: dict[str, Any],
    meta: Meta = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Create a policy. Whatever is left out is not limited."""
    data = PolicyCreate.model_validate(
        given(
            name=name,
            tenant_id=tenant,
            app_id=app,
            description=description,
            **rules,
            meta=meta,
        )
    )
    with open_engine(database_url) as engine:
        policy = engine.create_policy(data)
    _print_policy(policy, as_json=as_json)


@app.command("list")
def list_policies(
    *,
    tenant: OfTenant = None,
    app: OfApp = None,
    limit: Limit = None,
    after: After = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """List policies, newest first."""
    with open_engine(database_url) as engine:
        found = engine.list_policies(tenant_id=tenant, app_id=app, limit=limit, after=after)
    policies = [PolicyPublic.model_validate(policy) for policy in found]
    print_objects(policies, COLUMNS, as_json=as_json, empty="There are no such policies.")


@app.command()
def show(
    policy_id: PolicyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Show a policy."""
    with open_engine(database_url) as engine:
        policy = engine.get_policy(policy_id)
    _print_policy(policy, as_json=as_json)


@app.command()
@takes_rules
def update(
    policy_id: PolicyId,
    *,
    name: Annotated[str | None, typer.Option("--name", help="Unique within the tenant.")] = None,
    description: Description = None,
    rules: dict[str, Any],
    meta: Meta = None,
    clear: Annotated[
        list[Clearable] | None,
        typer.Option(metavar="RULE", help=f"{', '.join(Clearable)}; repeatable."),
    ] = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Change a policy. Only what is given changes; a list that is given replaces the old one."""
    changes = given(
        name=name,
        description=description,
        **rules,
        meta=meta,
    )
    for rule in clear or ():
        if changes.setdefault(rule.field, rule.empty) != rule.empty:
            raise typer.BadParameter(f"{rule.value} is both given and cleared.")
    refuse_nothing(changes)
    data = PolicyUpdate.model_validate(changes)
    with open_engine(database_url) as engine:
        policy = engine.update_policy(policy_id, data)
    _print_policy(policy, as_json=as_json)


@app.command()
def delete(
    policy_id: PolicyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Remove a policy that no key bears."""
    with open_engine(database_url) as engine:
        engine.delete_policy(policy_id)
    print_deleted(policy_id, as_json=as_json)


def _print_policy(policy: Policy, *, as_json: bool) -> None:
    print_fields(dump(PolicyPublic.model_validate(policy)), as_json=as_json)
