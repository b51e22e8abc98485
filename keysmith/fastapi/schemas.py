"""Bodies and queries that are of HTTP alone; all others are the models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from keysmith.ids import ID_LENGTH, ID_PATTERN, IdPrefix
from keysmith.models import (
    Environment,
    KeyPublic,
    KeyState,
    Period,
    PolicyPublic,
    RotationPublic,
    RotationReason,
    Scope,
    ScopePublic,
    UsageAggregate,
    UsageAggregatePublic,
    UsagePublic,
    UsageRecord,
)
from keysmith.models.base import (
    SCOPE_NAME_PATTERN,
    Description,
    Duration,
    KeyId,
    Label,
    PolicyId,
    RotationId,
    ScopeName,
    UtcDatetime,
)
from keysmith.models.keys import MAX_SCOPES

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000

PublicT = TypeVar("PublicT", bound=BaseModel)

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many objects a page has.")]


AggregateCursor = Annotated[
    str, Field(pattern=rf"^[1-9]\d{{5}}\.{IdPrefix.KEY.value}_{ID_PATTERN}$")
]
"""The ordinal of a day, with the six digits that it has until the year 2738, and a key."""

UsageCursor = Annotated[
    str, Field(pattern=rf"^[0-2][0-9]{{17}}\.{IdPrefix.USAGE.value}_{ID_PATTERN}$")
]
"""Microseconds since the year 1, in the digits that suffice until the year 9507, and a record."""

ScopeCursor = Annotated[
    str,
    Field(
        max_length=ID_LENGTH + 1 + 255,
        pattern=rf"^{IdPrefix.SCOPE.value}_{ID_PATTERN}\.{SCOPE_NAME_PATTERN}$",
    ),
]
"""A scope and its name, where the list goes on also when that scope has gone."""

_YEAR_ONE = datetime.min.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Body(BaseModel):
    """What a client sends. Unknown fields are refused, and values never repeated."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class RotateRequest(Body):
    """How a key is to be rotated."""

    reason: RotationReason = RotationReason.MANUAL
    grace: Duration | None = None
    """How long the old secret goes on working; as the policy says, else 24 hours."""


class RevokeRequest(Body):
    """Why a key is revoked."""

    reason: Description = ""


class ScopeNames(Body):
    """Scopes to give to a key, or to take from it."""

    scopes: Annotated[list[ScopeName], Field(max_length=MAX_SCOPES)]


class ValidateRequest(Body):
    """A raw key, and what the request that came with it says of itself."""

    raw_key: str = Field(repr=False)
    ip: Annotated[str, Field(max_length=64)] | None = None
    origin: Annotated[str, Field(max_length=512)] | None = None
    method: Annotated[str, Field(max_length=32)] | None = None
    path: Annotated[str, Field(max_length=8192)] | None = None
    scopes: Annotated[list[Label], Field(max_length=MAX_SCOPES)] = []
    cost: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 1


class IssuedKey(BaseModel):
    """A key and its raw key, which is told once."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    key: KeyPublic
    raw_key: str | None = Field(repr=False)
    """`null` in the answer to a request that was repeated: it was told in the first one."""


class RateLimit(BaseModel):
    """How much of a rate limit is left."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    limit: int
    remaining: int
    resets_at: datetime


class ValidKey(BaseModel):
    """A key that was found valid."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    key: KeyPublic
    scopes: list[str]
    """Every scope that the key is granted, inherited ones included."""
    policy: PolicyPublic | None
    rotated: bool
    """Whether an outgoing secret was used."""
    grace_ends: datetime | None
    """When the outgoing secret stops working."""
    rate_limit: RateLimit | None


class Page(BaseModel, Generic[PublicT]):
    """A part of a list."""

    # No docstring: each kind of page would look for it in the source, which takes long.
    items: list[PublicT]
    next: str | None = Field(description="The `cursor` of the next page; `null` on the last one.")

    @classmethod
    def of(cls, found: Sequence[Any], limit: int) -> Self:
        """The first `limit` of what was found, which is one more if there is a next page."""
        more = len(found) > limit
        following = cls.cursor(found[limit - 1]) if more else None
        return cls.model_validate({"items": found[:limit], "next": following})

    @classmethod
    def cursor(cls, last: Any) -> str:
        """What the next page begins after."""
        return str(last.id)


class KeyPage(Page[KeyPublic]):
    """Keys, newest first."""


class Count(BaseModel):
    """How many there are."""

    count: int


class PolicyPage(Page[PolicyPublic]):
    """Policies, newest first."""


class ScopePage(Page[ScopePublic]):
    """Scopes, by name."""

    @classmethod
    def cursor(cls, last: Scope) -> str:
        """The last scope, and its name."""
        return f"{last.id}.{last.name}"


class RotationPage(Page[RotationPublic]):
    """Rotations, newest first."""


class UsagePage(Page[UsagePublic]):
    """Requests, newest first."""

    @classmethod
    def cursor(cls, last: UsageRecord) -> str:
        """The moment of the last request, and which it was."""
        return f"{(last.created_at - _YEAR_ONE) // _MICROSECOND:018d}.{last.id}"


class AggregatePage(Page[UsageAggregatePublic]):
    """Days or months of keys, newest first."""

    @classmethod
    def cursor(cls, last: UsageAggregate) -> str:
        """The day that the last period begins with, and whose it is."""
        return f"{last.period_start.toordinal()}.{last.key_id}"


class Filter(BaseModel):
    """Which objects. Unknown parameters are refused."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Query(Filter):
    """Which part of a list."""

    limit: Limit = DEFAULT_LIMIT

    def page(self) -> dict[str, Any]:
        """What to ask the engine for: the filters, and one object more than the page has."""
        asked = self.model_dump(exclude_none=True)
        asked["limit"] = self.limit + 1
        if "cursor" in asked:
            asked["after"] = asked.pop("cursor")
        return asked


class TenantFilter(Filter):
    """Whose objects."""

    tenant_id: Label | None = None
    app_id: Label | None = None


class KeyFilter(TenantFilter):
    """Which keys."""

    environment: Environment | None = None
    state: KeyState | None = None
    policy_id: Label | None = None
    created_by: Label | None = None
    expires_by: UtcDatetime | None = None
    rotation_due_by: UtcDatetime | None = None
    unused_since: UtcDatetime | None = None


class KeyQuery(KeyFilter, Query):
    """Which keys, and which part of their list."""

    cursor: KeyId | None = None


class PolicyQuery(TenantFilter, Query):
    """Which policies."""

    cursor: PolicyId | None = None


class ScopeQuery(TenantFilter, Query):
    """Which scopes."""

    cursor: ScopeCursor | None = None
    parent: Label | None = None

    def page(self) -> dict[str, Any]:
        """As for any list, with the cursor as the engine wants it."""
        asked = super().page()
        if self.cursor is not None:
            scope_id, name = self.cursor.split(".", 1)
            asked["after"] = (name, scope_id)
        return asked


class RotationQuery(Query):
    """Which rotations of a key."""

    cursor: RotationId | None = None
    reason: RotationReason | None = None


class TimeQuery(Query):
    """Of which time: from `since`, which belongs to it, to `until`, which does not."""

    since: UtcDatetime | None = None
    until: UtcDatetime | None = None


class UsageQuery(TimeQuery):
    """Which requests of a key."""

    cursor: UsageCursor | None = None

    def page(self) -> dict[str, Any]:
        """As for any list, with the cursor as the engine wants it."""
        asked = super().page()
        if self.cursor is not None:
            moment, usage_id = self.cursor.split(".")
            asked["after"] = (_YEAR_ONE + int(moment) * _MICROSECOND, usage_id)
        return asked


class AggregateQuery(TimeQuery):
    """Which days or months of a key; `since` and `until` speak of their first moment."""

    period: Period = Period.DAILY
    cursor: AggregateCursor | None = None

    def page(self) -> dict[str, Any]:
        """As for any list, with the cursor as the engine wants it."""
        asked = super().page()
        if self.cursor is not None:
            day, key_id = self.cursor.split(".")
            asked["after"] = (datetime.fromordinal(int(day)).replace(tzinfo=UTC), key_id)
        return asked


class TenantAggregateQuery(TenantFilter, AggregateQuery):
    """Which days or months of whose keys."""
