"""API keys: what is kept of a key, and what may be asked and told of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar

import sqlalchemy as sa
from pydantic import StringConstraints
from sqlmodel import Field

from keysmith.clock import utc_now
from keysmith.ids import IdPrefix, new_id
from keysmith.models.base import (
    Base,
    Description,
    Hash,
    IdText,
    KeyId,
    Label,
    Marked,
    Meta,
    Name,
    Owned,
    Public,
    ScopeName,
    ShortText,
    Table,
    Timestamp,
    Update,
    UtcDatetime,
    WithMeta,
    enum_column,
)
from keysmith.raw_keys import HINT_LENGTH, PREFIX_PATTERN, Environment

MAX_SCOPES = 1000

Prefix = Annotated[str, StringConstraints(pattern=rf"^{PREFIX_PATTERN}$")]
Hint = Annotated[str, StringConstraints(max_length=HINT_LENGTH, pattern=r"^[!-~]*$")]


class KeyState(StrEnum):
    """`active ⇄ suspended`; from either to `revoked` or `expired`, which are final."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether no way leads out of this state."""
        return self in (KeyState.REVOKED, KeyState.EXPIRED)


class KeyIdentity(Base):
    """Which key it is."""

    id: KeyId = Field(
        default_factory=lambda: new_id(IdPrefix.KEY, utc_now()), primary_key=True, sa_type=IdText
    )


class KeyFields(WithMeta, Owned):
    """What the creator of a key decides."""

    name: Name = Field(sa_type=ShortText)
    """What people call the key."""
    description: Description = Field(default="", sa_type=sa.Text)
    prefix: Prefix = Field(default="sk", sa_type=sa.String(20))
    """How the raw key begins: `[a-z][a-z0-9]{0,19}`."""
    environment: Environment = Field(
        default=Environment.LIVE, sa_type=enum_column(Environment, "environment")
    )
    """What the key is for; the second part of the raw key."""
    policy_id: Label | None = Field(default=None, sa_type=IdText)
    """The policy that the key bears, if any."""
    created_by: Label = Field(default="", sa_type=ShortText)
    """Who asked for the key: free text, such as a user's ID."""
    expires_at: UtcDatetime | None = Field(default=None, sa_type=Timestamp)
    """From this moment on the key is expired; `None` for never."""


class KeyStatus(Base):
    """What happens to a key over its life."""

    hint: Hint = Field(sa_type=sa.String(HINT_LENGTH))
    """The raw key's last four characters, for people to recognise it by."""
    state: KeyState = Field(default=KeyState.ACTIVE, sa_type=enum_column(KeyState, "state"))
    last_used_at: UtcDatetime | None = Field(default=None, sa_type=Timestamp)
    rotated_at: UtcDatetime | None = Field(default=None, sa_type=Timestamp)
    revoked_at: UtcDatetime | None = Field(default=None, sa_type=Timestamp)
    created_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)
    updated_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)


class Key(Marked, KeyStatus, KeyFields, KeyIdentity, Table, table=True):
    """An API key as it is stored: everything but the raw key, which is never stored."""

    __tablename__: ClassVar[str] = "keysmith_keys"
    __table_args__ = (
        sa.ForeignKeyConstraint(["policy_id"], ["keysmith_policies.id"], ondelete="RESTRICT"),
        sa.UniqueConstraint("key_hash"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "tenant_id", "state", "id"),
        sa.Index(None, "tenant_id", "environment", "id"),
        sa.Index(None, "policy_id"),
        sa.Index(None, "prefix", "hint"),
        sa.Index(None, "expires_at"),
    )

    key_hash: Hash = Field(sa_type=sa.String(64), repr=False, exclude=True)
    """The hash of the raw key; left out of every dump and repr."""

    def expired_at(self, now: datetime) -> bool:
        """Whether `now` lies at or past the key's expiry."""
        return self.expires_at is not None and self.expires_at <= now


class KeyCreate(KeyFields):
    """A request for a new key."""

    scopes: list[ScopeName] = Field(default_factory=list, max_length=MAX_SCOPES)
    """Names of the scopes that the key is to hold; they must exist in its tenant."""


class KeyUpdate(Update):
    """A change to a key; only the fields that are set change."""

    clearable: ClassVar[frozenset[str]] = frozenset({"policy_id", "expires_at"})

    name: Name | None = None
    description: Description | None = None
    meta: Meta | None = Field(
        default=None, validation_alias="metadata", serialization_alias="metadata"
    )
    policy_id: Label | None = None
    expires_at: UtcDatetime | None = None


class KeyPublic(KeyStatus, KeyFields, KeyIdentity, Public):
    """A key as an API may show it: no hash, and no room for one."""
