"""Rotations: which secret replaced which, why, and until when the old one goes on working."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar

import sqlalchemy as sa
from sqlmodel import Field

from keysmith.clock import utc_now
from keysmith.ids import IdPrefix, new_id
from keysmith.models.base import (
    Base,
    Hash,
    IdText,
    KeyId,
    Label,
    Marked,
    Name,
    Public,
    RotationId,
    ShortText,
    Table,
    Timestamp,
    UtcDatetime,
    enum_column,
)
from keysmith.models.policies import MAX_GRACE


class RotationReason(StrEnum):
    """Why a key was rotated. `compromise` ends every grace period of the key at once."""

    SCHEDULED = "scheduled"
    MANUAL = "manual"
    COMPROMISE = "compromise"
    POLICY = "policy"


class RotationIdentity(Base):
    """Which rotation it is."""

    id: RotationId = Field(
        default_factory=lambda: new_id(IdPrefix.ROTATION, utc_now()),
        primary_key=True,
        sa_type=IdText,
    )


class RotationFields(Base):
    """What is told of a rotation."""

    key_id: KeyId = Field(sa_type=IdText)
    tenant_id: Name = Field(default="default", sa_type=ShortText)
    reason: RotationReason = Field(
        default=RotationReason.MANUAL, sa_type=enum_column(RotationReason, "reason")
    )
    grace_ttl_ms: int = Field(
        default=0, ge=0, le=MAX_GRACE // timedelta(milliseconds=1), sa_type=sa.BigInteger
    )
    """The grace period that was given, in milliseconds."""
    grace_ends: UtcDatetime = Field(sa_type=Timestamp)
    """From this moment on the old secret is refused; earlier than planned after a compromise."""
    rotated_by: Label = Field(default="", sa_type=ShortText)
    """Who asked for the rotation: free text, such as a user's ID."""
    created_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)

    @property
    def cut_short(self) -> bool:
        """Whether there was no grace, or it was ended early: it is over, whatever a clock says."""
        lasted = self.grace_ends - self.created_at
        return lasted <= timedelta(0) or lasted < timedelta(milliseconds=self.grace_ttl_ms)


class Rotation(Marked, RotationFields, RotationIdentity, Table, table=True):
    """A rotation as it is stored. It outlives its grace period, so that reuse can be told."""

    __tablename__: ClassVar[str] = "keysmith_rotations"
    __table_args__ = (
        sa.ForeignKeyConstraint(["key_id"], ["keysmith_keys.id"], ondelete="CASCADE"),
        sa.UniqueConstraint("old_key_hash"),
        sa.Index(None, "key_id", "id"),
        sa.Index(None, "tenant_id", "id"),
        sa.Index(None, "grace_closed", "grace_ends"),
    )

    old_key_hash: Hash = Field(sa_type=sa.String(64), repr=False, exclude=True)
    new_key_hash: Hash = Field(sa_type=sa.String(64), repr=False, exclude=True)
    grace_closed: bool = Field(default=False, repr=False, exclude=True)
    """Whether the end of the grace period has been noted, and reported, which happens once."""

    def in_grace(self, now: datetime) -> bool:
        """Whether the old secret still works at `now`."""
        return now < self.grace_ends


class RotationPublic(RotationFields, RotationIdentity, Public):
    """A rotation as an API may show it: no hash, and no room for one."""
