"""Notes, for whoever holds a key: a service whose own table refers to Keysmith's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Security
from models import Note, NoteCreate, NotePublic
from sqlmodel import Session, col, select

from keysmith import Engine, Key, ValidationResult, open_store
from keysmith.fastapi import APIKeyAuth, install_problem_handlers

store = open_store(os.environ["KEYSMITH_DATABASE_URL"])
engine = Engine(store)
auth = APIKeyAuth(engine)

Reader = Annotated[ValidationResult, Security(auth, scopes=["notes:read"])]
Writer = Annotated[ValidationResult, Security(auth, scopes=["notes:write"])]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    with engine:
        yield


app = FastAPI(title="Notes", lifespan=lifespan)
install_problem_handlers(app)


@app.post("/notes", status_code=201)
def write(note: NoteCreate, caller: Writer) -> NotePublic:
    with Session(store.db) as session:
        written = Note(text=note.text, key_id=caller.key.id)
        session.add(written)
        session.commit()
        return _public(written, caller.key.name)


@app.get("/notes")
def read(caller: Reader) -> list[NotePublic]:
    """The notes of the caller's tenant, newest first."""
    notes = (
        select(Note, Key.name)
        .join(Key, col(Note.key_id) == Key.id)
        .where(Key.tenant_id == caller.key.tenant_id)
        .order_by(col(Note.id).desc())
    )
    with Session(store.db) as session:
        return [_public(note, name) for note, name in session.exec(notes)]


def _public(note: Note, written_with: str) -> NotePublic:
    return NotePublic.model_validate(note, update={"written_with": written_with})
