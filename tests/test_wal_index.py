"""The header of SQLite's WAL index: that it tells of every commit, and only where it is ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from keysmith.stores import sqlite_wal_index
from keysmith.stores.sqlite_wal_index import HEADER_BYTES, wal_index_header

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is found in /proc")

COMMITS = [
    "INSERT INTO numbers VALUES (1)",
    "UPDATE numbers SET number = number + 1",
    "DELETE FROM numbers",
    "CREATE INDEX by_number ON numbers (number)",
    "PRAGMA user_version = 7",
    "INSERT INTO numbers SELECT value FROM json_each('[1, 2, 3]')",
    "VACUUM",
]

NO_COMMITS = [
    "SELECT * FROM numbers",
    "UPDATE numbers SET number = 2 WHERE number = -1",
    "BEGIN IMMEDIATE; INSERT INTO numbers VALUES (9); ROLLBACK",
]

NAMES = [
    "plain.db",
    "with  spaces.db",
    "schlüssel %20.db",
    "-shm",
    os.fsdecode(b"no \xff utf-8.db"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "numbers.db"


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        yield connection


@pytest.fixture
def reader(path: Path, writer: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def test_it_moves_with_every_commit_as_the_pragma_does_and_with_nothing_else(
    reader: sqlite3.Connection, writer: sqlite3.Connection
) -> None:
    header = wal_index_header(reader)
    assert header is not None
    for statements, expected in ((COMMITS, True), (NO_COMMITS, False)):
        for statement in statements:
            [number], seen = reader.execute("PRAGMA data_version").fetchone(), header.raw
            writer.executescript(statement)
            assert len(header.raw) == HEADER_BYTES
            assert (header.raw != seen) is expected, statement
            [then] = reader.execute("PRAGMA data_version").fetchone()
            assert (then != number) is expected, statement


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_whatever_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    with (
        closing(sqlite3.connect(tmp_path / name, isolation_level=None)) as writer,
        closing(sqlite3.connect(tmp_path / name)) as reader,
    ):
        writer.execute("PRAGMA journal_mode = WAL")
        header = wal_index_header(reader)
        assert header is not None
        seen = header.raw
        writer.execute("CREATE TABLE numbers (number INTEGER)")
        assert header.raw != seen


def test_no_commit_is_missed_while_the_log_is_written_back_and_begun_anew(
    reader: sqlite3.Connection, writer: sqlite3.Connection
) -> None:
    header = wal_index_header(reader)
    assert header is not None
    seen = {header.raw}
    for number in range(60):
        writer.execute("INSERT INTO numbers VALUES (?)", (number,))
        assert header.raw not in seen
        seen.add(header.raw)
        writer.execute(f"PRAGMA wal_checkpoint({('PASSIVE', 'RESTART', 'TRUNCATE')[number % 3]})")
        seen.add(header.raw)


def test_it_tells_of_the_commits_of_other_processes(path: Path, reader: sqlite3.Connection) -> None:
    header = wal_index_header(reader)
    assert header is not None
    writes = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for line in sys.stdin:\n"
        "    connection.execute('INSERT INTO numbers VALUES (1)')\n"
        "    print(flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", writes, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(200):
            seen = header.raw
            print(file=other.stdin, flush=True)
            other.stdout.readline()
            assert header.raw != seen
        other.stdin.close()


def test_it_is_none_where_there_is_no_such_index(tmp_path: Path) -> None:
    for database in (":memory:", "file:/shared?vfs=memdb", tmp_path / "without-wal.db"):
        with closing(sqlite3.connect(database, uri=True)) as connection:
            connection.execute("CREATE TABLE numbers (number INTEGER)")
            assert wal_index_header(connection) is None


def test_it_is_none_where_mappings_cannot_be_read(
    reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_wal_index, "_MAPPINGS", str(tmp_path / "none"))
    assert wal_index_header(reader) is None


def test_it_is_none_in_a_python_without_ctypes(
    reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_wal_index, "ctypes", None)
    assert wal_index_header(reader) is None


def test_it_is_none_where_several_have_mapped_it(
    reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wal_index_header(reader) is not None
    twice = tmp_path / "twice"
    twice.write_bytes(Path("/proc/self/maps").read_bytes() * 2)
    monkeypatch.setattr(sqlite_wal_index, "_MAPPINGS", str(twice))
    assert wal_index_header(reader) is None


def test_it_is_none_where_its_format_is_unknown(
    reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_wal_index, "_FORMAT", 4_000_000)
    assert wal_index_header(reader) is None


def test_it_is_none_once_its_file_was_removed(path: Path, reader: sqlite3.Connection) -> None:
    assert wal_index_header(reader) is not None
    Path(f"{path}-shm").unlink()
    assert wal_index_header(reader) is None


def test_it_is_not_that_of_the_database_that_was_replaced(
    path: Path, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    assert wal_index_header(reader) is not None
    other = tmp_path / "other"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER)")
    other.replace(path)
    Path(f"{path}-wal").unlink()  # and not the other file, which the reader goes on with
    with closing(sqlite3.connect(path)) as connection:
        assert wal_index_header(connection) is None
