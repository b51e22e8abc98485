"""`keysmith keys`, continued: validate a raw key, and what happens to a key over its life."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial
from typing import Annotated

import typer
from pydantic import TypeAdapter

from keysmith.cli.keys import IdempotencyKey, KeyId, print_issued, print_key
from keysmith.cli.options import AsJson, DatabaseUrl, RateLimiter, duration_option
from keysmith.cli.output import note, print_fields, print_json, print_line
from keysmith.cli.session import open_engine
from keysmith.engine import ValidationResult
from keysmith.models import RotationReason
from keysmith.raw_keys import MAX_RAW_KEY_LENGTH
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer()

_result: TypeAdapter[ValidationResult] = TypeAdapter(ValidationResult)


@app.command()
def validate(
    *,
    scope: Annotated[list[str] | None, typer.Option(help="A scope needed; repeatable.")] = None,
    ip: Annotated[str | None, typer.Option(help="The address the request comes from.")] = None,
    origin: Annotated[str | None, typer.Option(help="The request's web origin.")] = None,
    method: Annotated[str | None, typer.Option(help="The request's method.")] = None,
    path: Annotated[str | None, typer.Option(help="The request's path.")] = None,
    cost: Annotated[int, typer.Option(min=0, help="What it counts in the quotas.")] = 1,
    rate_limiter: RateLimiter = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Validate a raw key, as a request would. It is read from standard input, or prompted for."""
    with open_engine(database_url, rate_limiter) as engine:
        result = engine.validate_key(
            _read_raw_key(),
            scopes=scope or (),
            ip=ip,
            origin=origin,
            method=method,
            path=path,
            cost=cost,
        )
    document = _result.dump_python(result, mode="json", by_alias=True)
    if as_json:
        print_json(document)
        return
    print_line("The key is valid.", "bold green")
    del document["policy"]  # the key names it
    print_fields({**document.pop("key"), **document}, as_json=False)


@app.command()
def rotate(
    key_id: KeyId,
    *,
    reason: Annotated[
        RotationReason, typer.Option(help="Why; a compromise ends all grace at once.")
    ] = RotationReason.MANUAL,
    grace: Annotated[
        timedelta | None, duration_option("--grace", "How long the old secret goes on working.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who asked for the rotation.")] = "",
    idempotency_key: IdempotencyKey = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret; the old one goes on working for its grace period."""
    with open_engine(database_url) as engine:
        rotate = partial(
            engine.rotate_key,
            key_id,
            reason=reason,
            grace=grace,
            rotated_by=by,
            idempotency_key=idempotency_key,
        )
        print_issued(engine, rotate, as_json=as_json)  # before anything can fail: only once
        if not as_json:
            for rotation in engine.list_rotations(key_id=key_id, limit=1):
                note(f"The old secret works until {rotation.grace_ends.isoformat()}.")


@app.command()
def revoke(
    key_id: KeyId,
    *,
    reason: Annotated[str, typer.Option(help="Why, for those who listen.")] = "",
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Stop a key for good."""
    with open_engine(database_url) as engine:
        key = engine.revoke_key(key_id, reason=reason)
    print_key(key, as_json=as_json)


@app.command()
def suspend(
    key_id: KeyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Stop a key until it is reactivated."""
    with open_engine(database_url) as engine:
        key = engine.suspend_key(key_id)
    print_key(key, as_json=as_json)


@app.command()
def reactivate(
    key_id: KeyId, database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False
) -> None:
    """Let a suspended key work again."""
    with open_engine(database_url) as engine:
        key = engine.reactivate_key(key_id)
    print_key(key, as_json=as_json)


def _read_raw_key() -> str:
    """The raw key from where no history and no list of processes shows it."""
    if sys.stdin.isatty():
        return str(typer.prompt("Raw key", hide_input=True, err=True)).strip()
    # Whatever is longer is no key, and whatever is not text is not one either.
    given = sys.stdin.buffer.read(4 * MAX_RAW_KEY_LENGTH).decode(errors="replace").strip()
    if not given:
        raise typer.BadParameter("Standard input is empty: it is to hold the raw key.")
    return given
