"""Policies: what keys that bear them may do, how often, from where and for how long."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import AfterValidator, StrictInt, StringConstraints
from sqlmodel import Field

from keysmith.clock import utc_now
from keysmith.ids import IdPrefix, new_id
from keysmith.models.base import (
    Base,
    Description,
    Duration,
    IdText,
    Json,
    Meta,
    Milliseconds,
    Name,
    Owned,
    PolicyId,
    Public,
    ScopeName,
    ShortText,
    Table,
    Timestamp,
    Update,
    UtcDatetime,
    WithMeta,
)

MAX_ENTRIES = 1000
MAX_COUNT = 10**15
DEFAULT_GRACE_PERIOD = timedelta(hours=24)
MAX_GRACE = timedelta(days=3650)
DEFAULT_RATE_LIMIT_WINDOW = timedelta(minutes=1)
DEFAULT_PORTS = {"http": 80, "https": 443}


def _network(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError  # noqa: TRY301  addresses with a zone are never let in
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            "must be an IP address or a network in CIDR notation without host bits, "
            "such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32"
        ) from None


def normal_origin(text: str) -> str:
    """An origin as browsers serialise it (RFC 6454): lower case, and no default port.

    Raises `ValueError` for anything that is not a scheme, a host and perhaps a port. International
    names are to be given as browsers send them, `xn--…`.
    """
    message = "must be an origin such as https://app.example.com or http://localhost:3000"
    if not (text.isascii() and text.isprintable()):
        raise ValueError(message)  # urlsplit() would drop tabs and line ends
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        if "[" in text:
            host = f"[{ipaddress.IPv6Address(host or '')}]"
    except ValueError:
        raise ValueError(message) from None
    if not (parts.scheme and host) or text.count("/") != 2 or set("?#@%*\\ ") & set(text):
        raise ValueError(message)
    default = port is None or DEFAULT_PORTS.get(parts.scheme) == port
    return f"{parts.scheme}://{host}" if default else f"{parts.scheme}://{host}:{port}"


Network = Annotated[str, StringConstraints(max_length=64), AfterValidator(_network)]
Origin = Annotated[
    str, StringConstraints(max_length=512, pattern=r"^[!-~]+$"), AfterValidator(normal_origin)
]
Method = Annotated[
    str, StringConstraints(max_length=32, pattern=r"^[A-Za-z-]+$"), AfterValidator(str.upper)
]
PathGlob = Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[^\x00-\x1f\x7f]*$")]
Count = Annotated[StrictInt, Field(ge=0, le=MAX_COUNT)]
PositiveDuration = Annotated[Duration, Field(gt=timedelta(0))]
NonNegativeDuration = Annotated[Duration, Field(ge=timedelta(0))]
GracePeriod = Annotated[NonNegativeDuration, Field(le=MAX_GRACE)]


class PolicyIdentity(Base):
    """Which policy it is."""

    id: PolicyId = Field(
        default_factory=lambda: new_id(IdPrefix.POLICY, utc_now()),
        primary_key=True,
        sa_type=IdText,
    )


class PolicyFields(WithMeta, Owned):
    """The rules. An empty list allows all; a limit or quota of 0 is none."""

    name: Name = Field(sa_type=ShortText)
    """Unique within the tenant."""
    description: Description = Field(default="", sa_type=sa.Text)
    rate_limit: StrictInt = Field(default=0, ge=0, le=MAX_COUNT, sa_type=sa.BigInteger)
    """Requests in `rate_limit_window`."""
    rate_limit_window: PositiveDuration = Field(
        default=DEFAULT_RATE_LIMIT_WINDOW, sa_type=Milliseconds
    )
    burst_limit: StrictInt = Field(default=0, ge=0, le=MAX_COUNT, sa_type=sa.BigInteger)
    """Requests in any one second."""
    allowed_scopes: list[ScopeName] = Field(
        default_factory=list, max_length=MAX_ENTRIES, sa_type=Json
    )
    """The scopes, with all below them, that its keys may be assigned and granted."""
    allowed_ips: list[Network] = Field(default_factory=list, max_length=MAX_ENTRIES, sa_type=Json)
    """Addresses and CIDR networks, IPv4 and IPv6."""
    allowed_origins: list[Origin] = Field(
        default_factory=list, max_length=MAX_ENTRIES, sa_type=Json
    )
    """Web origins: scheme, host and port."""
    allowed_methods: list[Method] = Field(
        default_factory=list, max_length=MAX_ENTRIES, sa_type=Json
    )
    """Request methods, in any case."""
    allowed_paths: list[PathGlob] = Field(
        default_factory=list, max_length=MAX_ENTRIES, sa_type=Json
    )
    """Globs over the path: `*` stands for one segment, `**` for any number of them."""
    max_key_lifetime: PositiveDuration | None = Field(default=None, sa_type=Milliseconds)
    """How long after its creation a key expires at the latest."""
    rotation_period: PositiveDuration | None = Field(default=None, sa_type=Milliseconds)
    """How long a secret may stay in use before its rotation is due."""
    grace_period: NonNegativeDuration = Field(default=DEFAULT_GRACE_PERIOD, sa_type=Milliseconds)
    """How long a rotated secret goes on working."""
    daily_quota: StrictInt = Field(default=0, ge=0, le=MAX_COUNT, sa_type=sa.BigInteger)
    """Requests in a calendar day of UTC."""
    monthly_quota: StrictInt = Field(default=0, ge=0, le=MAX_COUNT, sa_type=sa.BigInteger)
    """Requests in a calendar month of UTC."""


class PolicyStatus(Base):
    """When a policy was made and last changed."""

    created_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)
    updated_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)


class Policy(PolicyStatus, PolicyFields, PolicyIdentity, Table, table=True):
    """A policy as it is stored."""

    __tablename__: ClassVar[str] = "keysmith_policies"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name"),
        sa.Index(None, "tenant_id", "id"),
    )


class PolicyCreate(PolicyFields):
    """A request for a new policy."""

    grace_period: GracePeriod = DEFAULT_GRACE_PERIOD


class PolicyUpdate(Update):
    """A change to a policy; only the fields that are set change."""

    clearable: ClassVar[frozenset[str]] = frozenset({"max_key_lifetime", "rotation_period"})

    name: Name | None = None
    description: Description | None = None
    rate_limit: Count | None = None
    rate_limit_window: PositiveDuration | None = None
    burst_limit: Count | None = None
    allowed_scopes: list[ScopeName] | None = Field(default=None, max_length=MAX_ENTRIES)
    allowed_ips: list[Network] | None = Field(default=None, max_length=MAX_ENTRIES)
    allowed_origins: list[Origin] | None = Field(default=None, max_length=MAX_ENTRIES)
    allowed_methods: list[Method] | None = Field(default=None, max_length=MAX_ENTRIES)
    allowed_paths: list[PathGlob] | None = Field(default=None, max_length=MAX_ENTRIES)
    max_key_lifetime: PositiveDuration | None = None
    rotation_period: PositiveDuration | None = None
    grace_period: GracePeriod | None = None
    daily_quota: Count | None = None
    monthly_quota: Count | None = None
    meta: Meta | None = Field(
        default=None, validation_alias="metadata", serialization_alias="metadata"
    )


class PolicyPublic(PolicyStatus, PolicyFields, PolicyIdentity, Public):
    """A policy as an API may show it."""
