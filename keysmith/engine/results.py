"""What the engine answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from keysmith.models import Key, KeyPublic, PolicyPublic


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key and its raw key, which exists here and nowhere else, ever."""

    key: Key
    raw_key: str = field(repr=False)
    """Hand it to its owner over a safe channel, and keep it nowhere."""


@dataclass(frozen=True, slots=True)
class RateLimitStatus:
    """How much of a rate limit is left."""

    limit: int
    """Requests in the policy's window."""
    remaining: int
    """Requests that the rate limit would still let through now; `burst_limit` and quotas apart."""
    resets_at: datetime
    """When `remaining` is back at `limit`, should no more requests come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """A key that was found valid. Immutable, and safe to keep."""

    key: KeyPublic
    """Its `last_used_at` is of when the key was last read: ask `get_key` for the present one."""
    scopes: tuple[str, ...]
    """Every scope that the key is granted, inherited ones included; sorted."""
    policy: PolicyPublic | None = None
    rotated: bool = False
    """Whether an outgoing secret was used: tell the client to switch to the new one."""
    grace_ends: datetime | None = None
    """When the outgoing secret stops working."""
    rate_limit: RateLimitStatus | None = None
    """`None` without a rate limit."""
