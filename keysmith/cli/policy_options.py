"""The rules of a policy, as options: to create it with, and to change it by."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from keysmith.cli.options import duration_option


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


RateLimit = Annotated[
    int | None, typer.Option("--rate-limit", help="Requests in the window; 0 is no limit.")
]
Window = Annotated[
    timedelta | None, duration_option("--rate-limit-window", "The rate limit's window.")
]
BurstLimit = Annotated[
    int | None, typer.Option("--burst-limit", help="Requests in any second; 0 is no limit.")
]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--allowed-scope", help="A scope that its keys may have; repeatable."),
]
Ips = Annotated[
    list[str] | None,
    typer.Option("--allowed-ip", help="An address or network to come from; repeatable."),
]
Origins = Annotated[
    list[str] | None, typer.Option("--allowed-origin", help="A web origin allowed; repeatable.")
]
Methods = Annotated[
    list[str] | None, typer.Option("--allowed-method", help="A method allowed; repeatable.")
]
Paths = Annotated[
    list[str] | None,
    typer.Option("--allowed-path", help="A path allowed, as a glob; repeatable."),
]
Lifetime = Annotated[
    timedelta | None,
    duration_option("--max-key-lifetime", "How long after its creation a key expires at latest."),
]
RotationPeriod = Annotated[
    timedelta | None,
    duration_option("--rotation-period", "How long until a secret's rotation is due."),
]
GracePeriod = Annotated[
    timedelta | None,
    duration_option("--grace-period", "How long a rotated secret goes on working."),
]
DailyQuota = Annotated[
    int | None, typer.Option("--daily-quota", help="Requests in a day of UTC; 0 is no limit.")
]
MonthlyQuota = Annotated[
    int | None, typer.Option("--monthly-quota", help="Requests in a month of UTC; 0 is no limit.")
]
