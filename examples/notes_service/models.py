"""The table of the service, and what it takes and gives."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ForeignKey
from sqlmodel import Field, SQLModel

import keysmith

KEYS = keysmith.metadata.tables["keysmith_keys"]


class NoteCreate(SQLModel):
    """What a client sends."""

    text: str = Field(min_length=1, max_length=2000)


class Note(NoteCreate, table=True):
    """A note, and the key that it was written with."""

    __tablename__ = "notes"

    id: int | None = Field(default=None, primary_key=True)
    # A column, not its name: names are looked up in this table's own MetaData, where keys are not.
    key_id: str = Field(sa_column_args=[ForeignKey(KEYS.c.id, ondelete="RESTRICT")], index=True)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class NotePublic(NoteCreate):
    """What a client gets."""

    id: int
    written_with: str
    created_at: datetime
