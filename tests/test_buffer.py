"""The buffer of usage: nothing that waits is lost, whatever becomes of the store."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from keysmith import (
    Engine,
    KeyCreate,
    SqliteStore,
    StoreCorruptError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UsageCreate,
)
from keysmith.engine import buffer
from tests.adversity import read_only
from tests.conftest import START, TurnableClock
from tests.elsewhere import ROOT
from tests.recording import BRIEF, FOREVER, a_key, assert_adds_up, request, wait_until, writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    return tmp_path / "keys.db"


@pytest.fixture(autouse=True)
def soon_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "CAPACITY", 3 * buffer.BATCH)


# ---------------------------------------------------------------------------- last use


def last_used(store: SqliteStore, key_id: str) -> datetime | None:
    return store.keys.get(key_id).last_used_at


@pytest.mark.usefixtures("patient")
def test_last_uses_are_written_once_an_interval_however_busy_it_is(
    memory: SqliteStore, clock: TurnableClock
) -> None:
    engine = Engine(memory, clock=clock)
    created = engine.create_key(KeyCreate(name="production"))
    for number in range(1, 4):
        engine.validate_key(created.raw_key)
        for _ in range(buffer.BATCH):
            engine.record_usage(request(created.key.id))
        wait_until(lambda number=number: memory.usages.count() == number * buffer.BATCH)
        engine.query_usage(limit=1)
        engine.aggregate_usage()
        assert last_used(memory, created.key.id) is None
    engine.flush()
    assert last_used(memory, created.key.id) == START


@pytest.mark.usefixtures("hasty")
def test_a_last_use_is_written_by_itself_and_never_moves_back(
    memory: SqliteStore, clock: TurnableClock
) -> None:
    engine = Engine(memory, clock=clock)
    created = engine.create_key(KeyCreate(name="production"))
    for turn in (0, 5, -60, 70):
        at = clock.turn(seconds=turn)
        engine.validate_key(created.raw_key)
        if turn >= 0:
            wait_until(lambda at=at: last_used(memory, created.key.id) == at)
        else:
            engine.flush()
            assert last_used(memory, created.key.id) == at + timedelta(seconds=60)


@pytest.mark.usefixtures("patient")
def test_a_flush_ends_although_keys_are_being_used_meanwhile(memory: SqliteStore) -> None:
    engine = Engine(memory)
    raw_key = engine.create_key(KeyCreate(name="production")).raw_key
    writes: list[str] = []

    def use(_1: Any, _2: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE keysmith_keys SET last_used_at"):
            writes.append(statement)
            assert len(writes) < 5, "it would never end"
            engine._context.usage.touch("akey_other", START)

    sa.event.listen(memory.db, "before_cursor_execute", use)
    engine.validate_key(raw_key)
    engine.flush()
    assert writes


def test_no_use_is_lost_between_the_writer_and_those_who_use(memory: SqliteStore) -> None:
    usage = Engine(memory)._context.usage
    taken: dict[str, datetime] = {}
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            taken.update(usage._take_last_used())

    taker = threading.Thread(target=take)
    taker.start()
    for number in range(20_000):
        usage._last_used[str(number)] = START
    done.set()
    taker.join()
    taken.update(usage._take_last_used())
    assert len(taken) == 20_000


def test_a_summary_is_of_all_keys_together(store: SqliteStore, clock: TurnableClock) -> None:
    with Engine(store, clock=clock) as engine:
        keys = [engine.create_key(KeyCreate(name=name)).key.id for name in "ab"]
        for number in range(200):
            engine.record_usage(
                UsageCreate(
                    key_id=keys[number % 2],
                    endpoint="/",
                    method="GET",
                    status_code=500 if number % 4 == 0 else 200,
                    latency_ms=number + 1,
                )
            )
        [day] = engine.summarize_usage()
        assert (day.request_count, day.error_count) == (200, 50)
        assert day.total_latency == sum(range(1, 201))
        assert day.p50_latency == pytest.approx(100, rel=0.03)
        assert day.p99_latency == pytest.approx(198, rel=0.03)
        [month] = engine.summarize_usage(period="monthly", key_id=keys[0])
        assert (month.request_count, month.error_count) == (100, 50)
        assert month.total_latency == sum(range(1, 200, 2))
        assert month.period_start.day == 1


# ---------------------------------------------------------------------------- a store in trouble


@pytest.mark.usefixtures("patient")
def test_a_last_use_that_cannot_be_written_is_written_later(
    store: SqliteStore, clock: TurnableClock
) -> None:
    engine = Engine(store, clock=clock)
    created = engine.create_key(KeyCreate(name="production"))
    engine.validate_key(created.raw_key)
    with store.db.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER bad BEFORE UPDATE ON keysmith_keys BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(StoreError):
        engine.flush()
    with store.db.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER bad")
    engine.flush()
    assert last_used(store, created.key.id) == START


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.usefixtures("patient")
def test_a_full_buffer_makes_recording_wait_and_loses_nothing(
    path: Path, clock: TurnableClock
) -> None:
    with Engine(SqliteStore(path, busy_timeout=FOREVER), clock=clock) as engine:
        key_id = a_key(engine)
        usage = engine._context.usage
        with locked(path):
            for _ in range(buffer.CAPACITY):
                engine.record_usage(request(key_id))
            waiting = [
                threading.Thread(target=engine.record_usage, args=(request(key_id),))
                for _ in range(4)
            ]
            for thread in waiting:
                thread.start()
            waiting[0].join(0.1)
            assert all(thread.is_alive() for thread in waiting)
            assert len(usage._waiting) == buffer.CAPACITY
        for thread in waiting:
            thread.join()
        engine.flush()
        assert engine.store.usages.count() == buffer.CAPACITY + 4
        [day] = engine.aggregate_usage()
        assert day.request_count == buffer.CAPACITY + 4


@pytest.mark.parametrize("trouble", ["locked", "read-only"])
@pytest.mark.usefixtures("hasty")
def test_when_the_store_cannot_be_written_to_records_wait_and_arrive_later(
    path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(SqliteStore(path, busy_timeout=BRIEF)) as engine:
        key_id = a_key(engine)
        error = StoreUnavailableError if trouble == "locked" else StoreReadOnlyError
        with locked(path) if trouble == "locked" else read_only(engine.store):  # type: ignore[arg-type]
            for _ in range(buffer.CAPACITY):
                engine.record_usage(request(key_id))
            raised: list[StoreError] = []
            for _ in range(3):
                with pytest.raises(error) as failed:
                    engine.record_usage(request(key_id))
                raised.append(failed.value)
            assert len({id(each) for each in raised}) == 3, "each with frames of its own"
            with pytest.raises(error):
                engine.flush()
            with pytest.raises(error):
                engine.query_usage()
        engine.flush()
        engine.record_usage(request(key_id))
        assert len(engine.query_usage()) == buffer.CAPACITY + 1
        assert "Usage waits" in caplog.text


@pytest.mark.usefixtures("patient")
def test_what_cannot_be_written_is_not_tried_all_the_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(SqliteStore(path, busy_timeout=BRIEF)) as engine:
        key_id = a_key(engine)
        with read_only(engine.store):  # type: ignore[arg-type]
            for _ in range(2 * buffer.BATCH):
                engine.record_usage(request(key_id))
            told = f"Usage waits, as it cannot be written: {path} is read-only"
            wait_until(lambda: told in caplog.text)
            for _ in range(buffer.BATCH // 2):
                engine.record_usage(request(key_id))
            assert caplog.text.count(told) == 1


@pytest.mark.usefixtures("hasty")
def test_a_sum_that_was_damaged_is_named_and_nothing_is_lost(
    path: Path, clock: TurnableClock, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(SqliteStore(path), clock=clock) as engine:
        key_id = a_key(engine)
        engine.record_usage(request(key_id))
        engine.flush()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as direct:
            good = direct.execute("SELECT latency_sketch FROM keysmith_usage_agg").fetchone()
            direct.execute("UPDATE keysmith_usage_agg SET latency_sketch = x'00'")
            with pytest.raises(StoreCorruptError, match=key_id):
                engine.summarize_usage()
            engine.record_usage(request(key_id))
            with pytest.raises(StoreCorruptError, match=key_id):
                engine.flush()
            wait_until(lambda: "Usage waits" in caplog.text)
            direct.execute("UPDATE keysmith_usage_agg SET latency_sketch = ?", good)
        engine.flush()
        assert_adds_up(engine.store)  # type: ignore[arg-type]
        assert engine.store.usages.count() == 2


@pytest.mark.usefixtures("hasty")
def test_an_error_that_nobody_foresaw_does_not_end_the_writing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(SqliteStore(path)) as engine:
        key_id = a_key(engine)

        def fail(*_: Any) -> None:
            raise RuntimeError("unforeseen")

        sa.event.listen(engine.store.db, "begin", fail)
        for _ in range(buffer.CAPACITY):
            engine.record_usage(request(key_id))
        with pytest.raises(StoreError, match="RuntimeError"):
            engine.record_usage(request(key_id))
        wait_until(lambda: "unforeseen" in caplog.text)
        sa.event.remove(engine.store.db, "begin", fail)
        wait_until(lambda: engine.store.usages.count() == buffer.CAPACITY)


@pytest.mark.usefixtures("patient")
def test_without_a_thread_to_be_had_whoever_records_writes(
    memory: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    engine = Engine(memory)
    created = engine.create_key(KeyCreate(name="production"))
    engine.validate_key(created.raw_key)
    for _ in range(buffer.CAPACITY + 1):
        engine.record_usage(request(created.key.id))
    assert memory.usages.count() == buffer.CAPACITY
    engine.flush()
    assert memory.usages.count() == buffer.CAPACITY + 1
    assert last_used(memory, created.key.id) is not None


def test_in_a_transaction_of_ones_own_a_full_buffer_is_not_waited_for(path: Path) -> None:
    with Engine(SqliteStore(path, busy_timeout=BRIEF)) as engine:
        key_id = a_key(engine)
        with engine.store.transaction():
            for _ in range(buffer.CAPACITY + 10):
                engine.record_usage(request(key_id))
        engine.flush()
        assert engine.store.usages.count() == buffer.CAPACITY + 10


# ---------------------------------------------------------------------------- the end


@pytest.mark.parametrize("close", ["engine", "store"])
@pytest.mark.usefixtures("patient")
def test_closing_loses_nothing_and_what_comes_later_is_told(path: Path, close: str) -> None:
    store = SqliteStore(path)
    engines = [Engine(store), Engine(store)]
    created = engines[0].create_key(KeyCreate(name="production"))
    for engine in engines:
        engine.validate_key(created.raw_key)
        for _ in range(2_500):
            engine.record_usage(request(created.key.id))
    for _ in range(2):
        (store if close == "store" else engines[0]).close()
    for engine in engines:
        with pytest.raises(StoreUnavailableError, match="closed"):
            engine.record_usage(request(created.key.id))
        engine.close()
    with SqliteStore(path) as again:
        assert again.usages.count() == 5_000
        assert last_used(again, created.key.id) is not None
        assert_adds_up(again)


@pytest.mark.usefixtures("patient")
def test_what_waits_for_room_while_the_engine_closes_is_told_or_written(path: Path) -> None:
    engine = Engine(SqliteStore(path, busy_timeout=FOREVER))
    key_id = a_key(engine)
    told: list[str] = []
    written: list[str] = []

    def record() -> None:
        try:
            engine.record_usage(request(key_id))
            written.append("")
        except StoreUnavailableError as error:
            told.append(str(error))

    with locked(path):
        for _ in range(buffer.CAPACITY):
            engine.record_usage(request(key_id))
        waiting = [threading.Thread(target=record) for _ in range(8)]
        for thread in waiting:
            thread.start()
        waiting[0].join(0.05)
        closing_ = threading.Thread(target=engine.close)
        closing_.start()
        wait_until(lambda: engine._context.usage._closed)
    for thread in [*waiting, closing_]:
        thread.join()
    assert len(told) + len(written) == 8
    with SqliteStore(path) as store:
        assert store.usages.count() == buffer.CAPACITY + len(written)


def test_recording_against_close_is_written_or_told(path: Path) -> None:
    for _ in range(10):
        engine = Engine(SqliteStore(path))
        key_id = a_key(engine)
        counts: list[int] = []

        def record(engine: Engine = engine, key_id: str = key_id, counts: Any = counts) -> None:
            count = 0
            try:
                while True:
                    engine.record_usage(request(key_id))
                    count += 1
            except StoreUnavailableError:
                counts.append(count)

        threads = [threading.Thread(target=record) for _ in range(3)]
        for thread in threads:
            thread.start()
        closers = [threading.Thread(target=engine.close) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in [*threads, *closers]:
            thread.join()
        with SqliteStore(path) as store:
            assert store.usages.count(key_id=key_id) == sum(counts)


@pytest.mark.usefixtures("patient")
def test_what_cannot_be_written_at_the_end_is_lost_and_said(path: Path) -> None:
    store = SqliteStore(path, busy_timeout=BRIEF)
    engine = Engine(store)
    key_id = a_key(engine)
    engine.record_usage(request(key_id))
    with locked(path):
        with pytest.raises(StoreUnavailableError, match="locked"):
            engine.close()
        engine.close()
        store.close()
    assert engine._context.usage._waiting == buffer.deque()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.keys.count()


@pytest.mark.usefixtures("hasty")
def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(memory: SqliteStore) -> None:
    engine = Engine(memory)
    key_id = a_key(engine)
    assert writer(engine) is None
    for number in range(1, 4):
        engine.record_usage(request(key_id))
        wait_until(lambda number=number: memory.usages.count() == number)
        wait_until(lambda: writer(engine) is None)


@pytest.mark.usefixtures("hasty")
def test_no_use_falls_between_the_end_of_one_thread_and_the_start_of_the_next(
    memory: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "INTERVAL", 0.0)  # it ends as soon as it has written
    engine = Engine(memory)
    key_id = a_key(engine)
    for number in range(1, 301):
        engine.record_usage(request(key_id))
        wait_until(lambda number=number: memory.usages.count() == number)


@pytest.mark.usefixtures("hasty")
def test_an_engine_that_nobody_closed_leaves_no_thread_behind(memory: SqliteStore) -> None:
    engine = Engine(memory)
    key_id = a_key(engine)
    threads: list[threading.Thread] = []
    forgotten = threading.Event()

    def hold(_: object) -> None:
        threads.append(threading.current_thread())
        forgotten.wait(30)

    sa.event.listen(memory.db, "begin", hold)
    engine.record_usage(request(key_id))
    del engine
    forgotten.set()
    wait_until(lambda: threads)
    [thread] = threads
    thread.join(30)
    assert not thread.is_alive()
    assert memory.usages.count() == 1
    Engine(memory)
    assert len(memory._finishers) <= 2, "the store remembers engines that are gone"


AT_EXIT = """
import sys, threading
from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
store = SqliteStore(sys.argv[1])
engine = Engine(store)
created = engine.create_key(KeyCreate(name="production"))
engine.validate_key(created.raw_key)
def record(times):
    for _ in range(times):
        engine.record_usage(UsageCreate(
            key_id=created.key.id, endpoint="/", method="GET", status_code=200))
record(20)
def late():
    threading.main_thread().join()
    record(3)
threading.Thread(target=late).start()
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise RuntimeError('broken')", 1),
        ("sys.exit(7)", 7),
        ("del engine, store; record = None", 0),
        ("store.__enter__(); engine.__enter__().close(); record = lambda _: None", 0),
    ],
)
def test_a_process_that_ends_without_closing_writes_what_it_recorded(
    path: Path, end: str, code: int
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT.format(end=end), str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == code, ended.stderr
    assert "Usage" not in ended.stderr
    with SqliteStore(path) as store:
        assert store.usages.count() == (20 if "record =" in end else 23)
        [key] = store.keys.list()
        assert key.last_used_at is not None


LOST = """
import sqlite3, sys
from datetime import timedelta
from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from keysmith.engine import buffer
buffer.INTERVAL = 3600.0
engine = Engine(SqliteStore(sys.argv[1], busy_timeout=timedelta(milliseconds=10)))
key = engine.create_key(KeyCreate(name="production")).key
engine.record_usage(UsageCreate(key_id=key.id, endpoint="/", method="GET", status_code=200))
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
"""


def test_what_is_lost_at_exit_is_said(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LOST, str(path)], capture_output=True, text=True, check=True
    )
    assert "Usage was lost at exit" in ended.stderr
    assert "locked" in ended.stderr
