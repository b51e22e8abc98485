"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from keysmith.ids import IdPrefix, is_id
from keysmith.models.base import moment

_SHORT_DURATION = re.compile(r"([0-9]+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_iso_duration: TypeAdapter[timedelta] = TypeAdapter(timedelta)


def parse_duration(text: str) -> timedelta:
    """`30s`, `10m`, `24h` and `7d`, or ISO 8601 such as `PT10M`; else `ValueError`."""
    try:
        short = _SHORT_DURATION.fullmatch(text)
        if short:
            return timedelta(**{_UNITS[short[2]]: int(short[1])})
        # Pydantic takes bare numbers and clock times too, of which nobody can tell the unit.
        if text.startswith("P"):
            return _iso_duration.validate_python(text)
    except (ValidationError, OverflowError):
        pass
    raise ValueError("must be a duration such as 30s, 10m, 24h, 7d, or ISO 8601 such as PT10M")


def parse_moment(text: str) -> datetime:
    """`2030-01-31T00:00:00Z` and the like, in UTC; else `ValueError`."""
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        raise ValueError("must be a time with a time zone, such as 2030-01-31T00:00:00Z") from None


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object, else `ValueError`; nothing of the text is in the message."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    raise ValueError('must be a JSON object, such as {"owner": "payments"}')


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that the models decide on the others."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def refuse_both(**options: object) -> None:
    """Raises `BadParameter` if more than one of these options was given."""
    names = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"Give {' or '.join(names)}, not both.")


def refuse_nothing(changes: Mapping[str, Any]) -> None:
    """Raises `BadParameter` if no option says what to change."""
    if not changes:
        raise typer.BadParameter("There is nothing to change: give an option.")


def duration_option(name: str, help: str) -> Any:
    """An option whose value is a duration."""
    return typer.Option(name, parser=parse_duration, metavar="DURATION", help=help)


def moment_option(name: str, help: str) -> Any:
    """An option whose value is a time."""
    return typer.Option(name, parser=parse_moment, metavar="ISO8601", help=help)


def id_option(name: str, prefix: IdPrefix, help: str) -> Any:
    """An option whose value is an ID; a name would be one of nothing, and find nothing."""

    def parse_id(text: str) -> str:
        if is_id(prefix, text):
            return text
        raise ValueError(f"must be an ID: {prefix.value}_ and 26 characters more")

    return typer.Option(name, parser=parse_id, metavar="ID", help=help)


DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="KEYSMITH_DATABASE_URL",
        metavar="URL",
        help="Where the keys are: sqlite:///relative.db or sqlite:////absolute.db.",
    ),
]
RateLimiter = Annotated[
    str | None,
    typer.Option(
        "--rate-limiter",
        envvar="KEYSMITH_RATE_LIMITER_URL",
        metavar="URL",
        help="Where limits are counted with other machines: redis://…; else beside the database.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Tenant = Annotated[
    str | None, typer.Option("--tenant", help="The tenant it belongs to; default if left out.")
]
App = Annotated[
    str | None, typer.Option("--app", help="The tenant's app it belongs to; default if left out.")
]
Description = Annotated[str | None, typer.Option("--description", help="A text for people.")]
Meta = Annotated[
    Any,
    typer.Option(
        "--meta", parser=parse_object, metavar="JSON", help="A JSON object to keep with it."
    ),
]
OfKey = Annotated[str | None, id_option("--key", IdPrefix.KEY, "Only those of this key: akey_….")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only those of this tenant.")]
OfApp = Annotated[str | None, typer.Option("--app", help="Only those of this app.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]
After = Annotated[
    str | None,
    typer.Option("--after", metavar="ID", help="Only those after this ID: the next page."),
]
Since = Annotated[Any, moment_option("--since", "Only those from then on.")]
Until = Annotated[Any, moment_option("--until", "Only those before then.")]
