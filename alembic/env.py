"""Where the `alembic` command enters: it runs the revisions on the database of the environment."""

import os
from logging.config import fileConfig

from alembic import context
from keysmith.errors import StoreError
from keysmith.stores import DEFAULT_DATABASE_URL, open_store
from keysmith.stores.migrations import options

url = os.environ.get("KEYSMITH_DATABASE_URL") or DEFAULT_DATABASE_URL

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, **options())
    with context.begin_transaction():
        context.run_migrations()
else:
    try:
        with open_store(url) as store, store.migration() as connection:
            context.configure(connection=connection, **options())
            with context.begin_transaction():
                context.run_migrations()
    except StoreError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
