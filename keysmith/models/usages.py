"""Usage: a record for each request, and what they add up to by day and by month."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Self

import sqlalchemy as sa
from pydantic import StringConstraints
from sqlmodel import Field
from sqlmodel._compat import SQLModelConfig

from keysmith.clock import utc_now
from keysmith.ids import IdPrefix, new_id
from keysmith.models.base import (
    Base,
    IdText,
    KeyId,
    Label,
    Name,
    Public,
    ShortText,
    Table,
    Timestamp,
    UsageId,
    UtcDatetime,
    WithMeta,
    enum_column,
)
from keysmith.models.frozen import FrozenDict

ERROR_STATUS = 400
"""A response with this status or a higher one counts as an error."""

MAX_LATENCY_MS = 86_400_000.0

_NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*$"

LongLabel = Annotated[str, StringConstraints(max_length=1024, pattern=_NO_CONTROLS)]
MethodLabel = Annotated[str, StringConstraints(max_length=32, pattern=_NO_CONTROLS)]
AddressLabel = Annotated[str, StringConstraints(max_length=64, pattern=_NO_CONTROLS)]


class Period(StrEnum):
    """The calendar periods of UTC that usage is added up by."""

    DAILY = "daily"
    MONTHLY = "monthly"

    def start(self, at: datetime) -> datetime:
        """Midnight at the beginning of the day, or of the month, in which `at` lies."""
        at = at.astimezone(UTC)
        day = 1 if self is Period.MONTHLY else at.day
        return datetime(at.year, at.month, day, tzinfo=UTC)


class UsageRecordIdentity(Base):
    """Which record it is."""

    id: UsageId = Field(
        default_factory=lambda: new_id(IdPrefix.USAGE, utc_now()),
        primary_key=True,
        sa_type=IdText,
    )


class UsageFields(WithMeta):
    """What is recorded of a request."""

    endpoint: LongLabel = Field(sa_type=sa.String(1024))
    """The route, preferably its template: `/users/{id}` adds up, `/users/17` does not."""
    method: MethodLabel = Field(sa_type=sa.String(32))
    status_code: int = Field(ge=100, le=599, sa_type=sa.SmallInteger)
    ip_address: AddressLabel = Field(default="", sa_type=sa.String(64))
    user_agent: LongLabel = Field(default="", sa_type=sa.String(1024))
    latency_ms: float = Field(default=0.0, ge=0, le=MAX_LATENCY_MS, sa_type=sa.Float)
    """How long the request took, in milliseconds."""


class UsageRecord(UsageFields, UsageRecordIdentity, Table, table=True):
    """A request made with a key."""

    __tablename__: ClassVar[str] = "keysmith_usage"
    __table_args__ = (
        sa.ForeignKeyConstraint(["key_id"], ["keysmith_keys.id"], ondelete="CASCADE"),
        sa.Index(None, "key_id", "created_at"),
        sa.Index(None, "tenant_id", "created_at"),
        sa.Index(None, "created_at"),
    )

    key_id: KeyId = Field(sa_type=IdText)
    tenant_id: Name = Field(default="default", sa_type=ShortText)
    created_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)

    @property
    def failed(self) -> bool:
        """Whether the response was an error: a status of 400 or more."""
        return self.status_code >= ERROR_STATUS


class UsageCreate(UsageFields):
    """A request to be recorded; `created_at` defaults to the engine's present. Immutable."""

    model_config = SQLModelConfig(frozen=True)

    key_id: Label
    created_at: UtcDatetime | None = None

    def checked(self) -> Self:
        """Itself, if it holds what validation leaves; else it is validated again.

        `model_construct`, `model_copy(update=…)` and others make instances that never were. To
        validate all of them costs more than to record them, so what is plain is let through.
        """
        fields = self.__dict__
        try:
            return self if plain(**fields) else type(self).model_validate(fields)
        except TypeError:  # fields are missing, or of types that cannot be compared
            return type(self).model_validate(fields)


def plain(
    key_id: str,
    endpoint: str,
    method: str,
    status_code: int,
    ip_address: str,
    user_agent: str,
    latency_ms: float,
    meta: Mapping[str, object] = FrozenDict(),
    created_at: datetime | None = None,
) -> bool:
    """Whether a `UsageCreate` of them is valid, by conditions that suffice and are quick to see."""
    text = "".join((key_id, endpoint, method, ip_address, user_agent))
    return (
        text.isascii()
        and text.isprintable()
        and len(key_id) <= 255
        and len(endpoint) <= 1024
        and len(method) <= 32
        and len(ip_address) <= 64
        and len(user_agent) <= 1024
        and type(status_code) is int
        and 100 <= status_code <= 599
        and type(latency_ms) is float
        and 0.0 <= latency_ms <= MAX_LATENCY_MS
        and type(meta) in (dict, FrozenDict)
        and not meta
        and (created_at is None or (type(created_at) is datetime and created_at.tzinfo is UTC))
    )


class UsagePublic(UsageFields, UsageRecordIdentity, Public):
    """A record as an API may show it."""

    key_id: KeyId
    tenant_id: Name
    created_at: UtcDatetime


class AggregateFields(Base):
    """What the requests of one key in one period add up to. Latencies are in milliseconds."""

    key_id: KeyId = Field(primary_key=True, sa_type=IdText)
    period: Period = Field(primary_key=True, sa_type=enum_column(Period, "period"))
    period_start: UtcDatetime = Field(primary_key=True, sa_type=Timestamp)
    tenant_id: Name = Field(default="default", sa_type=ShortText)
    request_count: int = Field(default=0, ge=0, sa_type=sa.BigInteger)
    error_count: int = Field(default=0, ge=0, sa_type=sa.BigInteger)
    """Responses with a status of 400 or more."""
    total_latency: float = Field(default=0.0, ge=0, sa_type=sa.Float)
    p50_latency: float = Field(default=0.0, ge=0, sa_type=sa.Float)
    """The median latency, of two in the middle the lower, within 2 %."""
    p99_latency: float = Field(default=0.0, ge=0, sa_type=sa.Float)
    """The least latency that 99 of 100 requests did not exceed, so of fewer than 100 the longest.
    Within 2 %."""


class UsageAggregate(AggregateFields, Table, table=True):
    """A day or a month of a key, as it is stored."""

    __tablename__: ClassVar[str] = "keysmith_usage_agg"
    __table_args__ = (
        sa.ForeignKeyConstraint(["key_id"], ["keysmith_keys.id"], ondelete="CASCADE"),
        sa.Index(None, "tenant_id", "period", "period_start"),
    )

    latency_sketch: bytes = Field(default=b"", sa_type=sa.LargeBinary, repr=False, exclude=True)
    """The distribution of latencies, from which percentiles are read and which can be merged."""


class UsageSummary(Public):
    """What the requests of several keys in one period add up to. Latencies are in milliseconds."""

    period: Period
    period_start: UtcDatetime
    request_count: int
    error_count: int
    """Responses with a status of 400 or more."""
    total_latency: float
    p50_latency: float
    """The median latency, within 2 %."""
    p99_latency: float
    """The least latency that 99 of 100 requests did not exceed, within 2 %."""


class UsageAggregatePublic(AggregateFields, Public):
    """A day or a month of a key, as an API may show it."""
