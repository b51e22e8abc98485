"""The history of the service's own tables. Keysmith counts its own, in a table of its own."""

from __future__ import annotations

import os

import models  # noqa: F401  so that its tables are known
from sqlmodel import SQLModel

from alembic import context
from keysmith import open_store, without_keysmith

with open_store(os.environ["KEYSMITH_DATABASE_URL"]) as store, store.migration() as connection:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        include_name=without_keysmith,  # `keysmith migrate` looks after those
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
