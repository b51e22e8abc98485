"""The rules of a policy, as options: to create it with, and to change it by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer

from keysmith.cli.options import duration_option, given


class Clearable(StrEnum):
    """What an update can empty."""

    ALLOWED_SCOPES = "allowed-scopes"
    ALLOWED_IPS = "allowed-ips"
    ALLOWED_ORIGINS = "allowed-origins"
    ALLOWED_METHODS = "allowed-methods"
    ALLOWED_PATHS = "allowed-paths"
    MAX_KEY_LIFETIME = "max-key-lifetime"
    ROTATION_PERIOD = "rotation-period"

    @property
    def field(self) -> str:
        """The field's name in the model."""
        return self.value.replace("-", "_")

    @property
    def empty(self) -> list[str] | None:
        """What the field holds when it rules nothing."""
        return [] if self.value.startswith("allowed-") else None


RULES: dict[str, Any] = {
    "rate_limit": Annotated[
        int | None, typer.Option("--rate-limit", help="Requests in the window; 0 is no limit.")
    ],
    "rate_limit_window": Annotated[
        timedelta | None, duration_option("--rate-limit-window", "The rate limit's window.")
    ],
    "burst_limit": Annotated[
        int | None, typer.Option("--burst-limit", help="Requests in any second; 0 is no limit.")
    ],
    "allowed_scopes": Annotated[
        list[str] | None,
        typer.Option("--allowed-scope", help="A scope that its keys may have; repeatable."),
    ],
    "allowed_ips": Annotated[
        list[str] | None,
        typer.Option("--allowed-ip", help="An address or network to come from; repeatable."),
    ],
    "allowed_origins": Annotated[
        list[str] | None, typer.Option("--allowed-origin", help="A web origin allowed; repeatable.")
    ],
    "allowed_methods": Annotated[
        list[str] | None, typer.Option("--allowed-method", help="A method allowed; repeatable.")
    ],
    "allowed_paths": Annotated[
        list[str] | None,
        typer.Option("--allowed-path", help="A path allowed, as a glob; repeatable."),
    ],
    "max_key_lifetime": Annotated[
        timedelta | None,
        duration_option(
            "--max-key-lifetime", "How long after its creation a key expires at latest."
        ),
    ],
    "rotation_period": Annotated[
        timedelta | None,
        duration_option("--rotation-period", "How long until a secret's rotation is due."),
    ],
    "grace_period": Annotated[
        timedelta | None,
        duration_option("--grace-period", "How long a rotated secret goes on working."),
    ],
    "daily_quota": Annotated[
        int | None, typer.Option("--daily-quota", help="Requests in a day of UTC; 0 is no limit.")
    ],
    "monthly_quota": Annotated[
        int | None,
        typer.Option("--monthly-quota", help="Requests in a month of UTC; 0 is no limit."),
    ],
}
"""The options, by the names of the fields of a policy."""


def takes_rules(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option for each rule; those that are given it gets as its `rules`."""

    @wraps(command)
    def run(**options: Any) -> None:
        command(rules=given(**{name: options.pop(name) for name in RULES}), **options)

    own = inspect.signature(command, eval_str=True).parameters.values()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in RULES.items()
    ]
    # They stand where `rules` stands.
    parameters = [each for one in own for each in (options if one.name == "rules" else [one])]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
