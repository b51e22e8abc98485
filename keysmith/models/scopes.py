"""Scopes: the names of what a key may do, and which key holds which."""

from __future__ import annotations

from typing import ClassVar

import sqlalchemy as sa
from sqlmodel import Field

from keysmith.clock import utc_now
from keysmith.ids import IdPrefix, new_id
from keysmith.models.base import (
    Base,
    Description,
    IdText,
    KeyId,
    Meta,
    Owned,
    Public,
    ScopeId,
    ScopeName,
    ShortText,
    Table,
    Timestamp,
    Update,
    UtcDatetime,
    WithMeta,
)


class ScopeIdentity(Base):
    """Which scope it is."""

    id: ScopeId = Field(
        default_factory=lambda: new_id(IdPrefix.SCOPE, utc_now()),
        primary_key=True,
        sa_type=IdText,
    )


class ScopeFields(WithMeta, Owned):
    """What the creator of a scope decides."""

    name: ScopeName = Field(sa_type=ShortText)
    """Unique within the tenant. Whoever holds `a` is granted every scope named `a:…`."""
    description: Description = Field(default="", sa_type=sa.Text)
    parent: ScopeName | None = Field(default=None, sa_type=ShortText)
    """The name of the scope that this one lies below: whoever is granted that is granted this."""


class ScopeStatus(Base):
    """When a scope was made."""

    created_at: UtcDatetime = Field(default_factory=utc_now, sa_type=Timestamp)


class Scope(ScopeStatus, ScopeFields, ScopeIdentity, Table, table=True):
    """A scope as it is stored."""

    __tablename__: ClassVar[str] = "keysmith_scopes"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "name"),
        sa.Index(None, "tenant_id", "parent"),
    )


class KeyScope(Table, table=True):
    """That a key holds a scope."""

    __tablename__: ClassVar[str] = "keysmith_key_scopes"
    __table_args__ = (
        sa.ForeignKeyConstraint(["key_id"], ["keysmith_keys.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["scope_id"], ["keysmith_scopes.id"], ondelete="CASCADE"),
        sa.Index(None, "scope_id"),
    )

    key_id: KeyId = Field(primary_key=True, sa_type=IdText)
    scope_id: ScopeId = Field(primary_key=True, sa_type=IdText)


class ScopeCreate(ScopeFields):
    """A request for a new scope."""


class ScopeUpdate(Update):
    """A change to a scope; only the fields that are set change. Names are for good."""

    clearable: ClassVar[frozenset[str]] = frozenset({"parent"})

    description: Description | None = None
    parent: ScopeName | None = None
    meta: Meta | None = Field(
        default=None, validation_alias="metadata", serialization_alias="metadata"
    )


class ScopePublic(ScopeStatus, ScopeFields, ScopeIdentity, Public):
    """A scope as an API may show it."""
