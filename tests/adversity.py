"""What can be taken from a process for a while: privileges, disk, file descriptors."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from keysmith import SqliteStore

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")


@contextmanager
def as_nobody() -> Iterator[None]:
    """This process without any privilege. What root opened before stays open."""
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@contextmanager
def limited(limit: int, most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))


@contextmanager
def read_only(store: SqliteStore) -> Iterator[None]:
    """Connections that refuse every write, once it comes to it."""

    def refuse(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    sa.event.listen(store.db, "connect", refuse)
    store.db.dispose()  # and not before: others may be opening connections
    try:
        yield
    finally:
        sa.event.remove(store.db, "connect", refuse)
        store.db.dispose()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="keysmith-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)
