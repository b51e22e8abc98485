"""Usage: what is read is what was recorded, and no rubbish gets in."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from keysmith import (
    Engine,
    KeyCreate,
    KeyNotFoundError,
    KeyUpdate,
    Period,
    SqliteStore,
    StoreError,
    UsageCreate,
    UsageRecord,
)
from keysmith.models.usages import MAX_LATENCY_MS
from tests.conftest import START
from tests.recording import a_key, assert_adds_up, request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    return tmp_path / "keys.db"


# ---------------------------------------------------------------------------- reading


@pytest.mark.usefixtures("patient")
class TestWhatReadsSee:
    def test_what_was_recorded_before(self, store: SqliteStore) -> None:
        with Engine(store) as engine:
            key_id = a_key(engine, tenant_id="acme")
            acme = engine.for_tenant("acme")
            for number in range(1, 4):
                engine.record_usage(request(key_id, status_code=200 + 100 * number))
                assert len(engine.query_usage()) == number
                assert [day.request_count for day in acme.aggregate_usage()] == [number]
            [month] = acme.aggregate_usage(period="monthly")
            assert (month.request_count, month.error_count) == (3, 2)
            [*_, first] = acme.query_usage(key_id=key_id)
            assert (first.status_code, first.tenant_id) == (300, "acme")

    def test_of_an_app(self, engine: Engine) -> None:
        shop, blog = (engine.for_tenant("acme", app_id=app_id) for app_id in ("shop", "blog"))
        sold, read = a_key(shop), a_key(blog)
        for key_id in (sold, sold, read):
            engine.record_usage(request(key_id))
        assert [record.key_id for record in shop.query_usage()] == [sold, sold]
        assert [day.key_id for day in blog.aggregate_usage()] == [read]
        assert [day.request_count for day in shop.summarize_usage()] == [2]
        assert [day.request_count for day in engine.summarize_usage(app_id="blog")] == [1]
        assert shop.query_usage(key_id=read) == shop.query_usage(app_id="blog") == []
        assert len(engine.for_tenant("acme").query_usage()) == 3

    def test_within_a_transaction_what_was_written_before_it(self, memory: SqliteStore) -> None:
        engine = Engine(memory)
        key_id = a_key(engine)
        with memory.transaction():
            engine.record_usage(request(key_id))
            assert engine.query_usage() == []
            for write in (engine.flush, engine._context.usage.close):
                with pytest.raises(StoreError, match="after it"):
                    write()
        assert len(engine.query_usage()) == 1

    def test_every_field_comes_back(self, engine: Engine) -> None:
        key_id = a_key(engine)
        data = request(
            key_id,
            endpoint="/users/{id}",
            method="PATCH",
            status_code=409,
            ip_address="2001:db8::1",
            user_agent="curl/8 ünïcode",
            latency_ms=12.5,
            meta={"plan": {"seats": [1, 2]}},
            created_at=START,
        )
        engine.record_usage(data)
        [found] = engine.query_usage()
        for name in UsageCreate.model_fields:
            assert getattr(found, name) == getattr(data, name), name

    @pytest.mark.parametrize(
        "call",
        [
            lambda engine: engine.aggregate_usage(period="weekly"),
            lambda engine: engine.aggregate_usage(after=(datetime(2026, 1, 1), "akey_x")),
            lambda engine: engine.query_usage(since=datetime(2026, 1, 1)),
            lambda engine: engine.query_usage(after="x"),
            lambda engine: engine.query_usage(limit=-1),
            lambda engine: engine.purge_usage(datetime(2026, 1, 1)),
        ],
    )
    def test_questions_that_make_no_sense(self, engine: Engine, call: Any) -> None:
        with pytest.raises(ValidationError):
            call(engine)

    @settings(max_examples=25)
    @given(
        st.lists(st.sampled_from([0, 1, 2, 999, 1000, 86_400_000]), max_size=30),
        st.integers(1, 7),
    )
    def test_pages_are_complete_and_without_repetition(self, after: list[int], size: int) -> None:
        with SqliteStore(":memory:") as store:
            store.migrate()
            engine = Engine(store)
            key_ids = [a_key(engine), a_key(engine)]
            for number, microseconds in enumerate(after):
                at = START + timedelta(microseconds=microseconds)
                engine.record_usage(request(key_ids[number % 2], created_at=at))
            everything = list(engine.query_usage())
            assert len(everything) == len(after)
            times = [record.created_at for record in everything]
            assert times == sorted(times, reverse=True)
            pages: list[UsageRecord] = []
            while page := engine.query_usage(limit=size, after=pages[-1].id if pages else None):
                assert len(page) <= size
                pages += page
            assert pages == everything

            days = list(engine.aggregate_usage())
            found = list(engine.aggregate_usage(limit=1))
            while page := engine.aggregate_usage(
                limit=1, after=(found[-1].period_start, found[-1].key_id) if found else None
            ):
                found += page
            assert found == days


# ---------------------------------------------------------------------------- adding up


moments = st.datetimes(
    min_value=datetime(2023, 12, 30), max_value=datetime(2024, 3, 2), timezones=st.just(UTC)
)
uses = st.tuples(
    st.integers(0, 2),
    moments,
    st.sampled_from([200, 204, 399, 400, 404, 500]),
    st.floats(0, MAX_LATENCY_MS),
)


@settings(max_examples=30)
@given(st.lists(st.lists(uses, max_size=12), max_size=5))
def test_days_and_months_are_what_the_records_say(batches: list[list[Any]]) -> None:
    with SqliteStore(":memory:") as store:
        store.migrate()
        engines = [Engine(store), Engine(store)]
        tenants = ["acme", "globex", "acme"]
        key_ids = [a_key(engines[0], tenant_id=tenant) for tenant in tenants]
        for number, batch in enumerate(batches):
            for key, at, status, latency in batch:
                data = request(key_ids[key], created_at=at, status_code=status, latency_ms=latency)
                if number % 3 == 2:
                    store.usages.record(UsageRecord(**data.model_dump()))
                else:
                    engines[number % 2].record_usage(data)
            engines[number % 2].flush()
        for engine in engines:
            engine.flush()
        assert store.usages.count() == sum(map(len, batches))
        assert_adds_up(store)


RECORDING = """
import sys
from datetime import UTC, datetime, timedelta
from keysmith import Engine, SqliteStore, UsageCreate
path, key_id, times = sys.argv[1:]
engine = Engine(SqliteStore(path))
print("ready", flush=True)
sys.stdin.readline()
start = datetime(2024, 1, 31, 23, 0, tzinfo=UTC)
for number in range(int(times)):
    engine.record_usage(UsageCreate(
        key_id=key_id, endpoint="/", method="GET", status_code=200 + 300 * (number % 2),
        latency_ms=number, created_at=start + timedelta(minutes=number % 120),
    ))
    if number % 100 == 0:
        engine.flush()
engine.close()
"""


def test_two_processes_count_the_same_days_of_a_key_at_once(path: Path) -> None:
    with Engine(SqliteStore(path)) as engine:
        key_id = a_key(engine)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RECORDING, str(path), key_id, "1500"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n", timeout=120)
            assert process.returncode == 0
        assert engine.store.usages.count() == 3000
        assert engine.store.usages.monthly_count(key_id, date(2024, 1, 9)) == 1500 + 60
        assert_adds_up(engine.store)


@pytest.mark.parametrize(
    ("created_at", "day", "month"),
    [
        (
            datetime(2019, 2, 28, 23, 59, 59, 999999, tzinfo=UTC),
            date(2019, 2, 28),
            date(2019, 2, 1),
        ),
        (datetime(2087, 12, 31, tzinfo=UTC), date(2087, 12, 31), date(2087, 12, 1)),
        (datetime(1969, 7, 20, tzinfo=UTC), date(1969, 7, 20), date(1969, 7, 1)),
        (datetime(1, 1, 1, tzinfo=UTC), date(1, 1, 1), date(1, 1, 1)),
        (datetime(9999, 12, 31, 23, tzinfo=UTC), date(9999, 12, 31), date(9999, 12, 1)),
        (
            datetime(2024, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
            date(2024, 2, 29),
            date(2024, 2, 1),
        ),
        (
            datetime(2023, 12, 31, 20, tzinfo=timezone(timedelta(hours=-7))),
            date(2024, 1, 1),
            date(2024, 1, 1),
        ),
        (None, START.date(), START.date().replace(day=1)),
    ],
)
def test_whenever_it_was_it_counts_in_its_own_day_of_utc(
    engine: Engine, created_at: datetime | None, day: date, month: date
) -> None:
    key_id = a_key(engine)
    engine.record_usage(request(key_id, created_at=created_at))
    [found] = engine.query_usage()
    assert found.created_at == (created_at or START)
    assert found.created_at.tzinfo is UTC
    [daily] = engine.aggregate_usage()
    [monthly] = engine.aggregate_usage(period=Period.MONTHLY)
    assert daily.period_start == datetime(day.year, day.month, day.day, tzinfo=UTC)
    assert monthly.period_start == datetime(month.year, month.month, 1, tzinfo=UTC)
    assert engine.store.usages.daily_count(key_id, day) == 1
    assert engine.store.usages.monthly_count(key_id, day) == 1


def test_a_record_belongs_to_the_tenant_of_its_key(engine: Engine) -> None:
    key_id = a_key(engine, tenant_id="acme")
    engine.store.usages.record(UsageRecord(**request(key_id).model_dump(exclude={"created_at"})))
    assert [record.tenant_id for record in engine.query_usage()] == ["acme"]
    assert_adds_up(engine.store)  # type: ignore[arg-type]


def test_a_batch_of_any_size_is_all_or_nothing(memory: SqliteStore) -> None:
    key_id = a_key(Engine(memory))
    fields = request(key_id).model_dump(exclude={"created_at"})
    many = [UsageRecord(**fields) for _ in range(1_500)]
    unknown = UsageRecord(**{**fields, "key_id": key_id[:-5] + "00000"})
    with pytest.raises(KeyNotFoundError):
        memory.usages.record_batch([*many, unknown])
    assert memory.usages.count() == 0
    assert memory.usages.aggregate() == []
    memory.usages.record_batch(iter(many))
    memory.usages.record_batch([])
    assert memory.usages.count() == 1_500


@pytest.mark.usefixtures("patient")
def test_purging_goes_in_steps_and_leaves_aggregates(engine: Engine) -> None:
    store = engine.store
    key_ids = [a_key(engine, tenant_id=tenant) for tenant in ("acme", "globex")]
    for key_id in key_ids:
        for hours in range(1_200):
            engine.record_usage(request(key_id, created_at=START - timedelta(hours=hours)))
    days = engine.aggregate_usage()
    steps: list[int] = []
    before = START - timedelta(hours=50)
    assert engine.for_tenant("acme").purge_usage(before, progress=steps.append) == 1_149
    assert sum(steps) == 1_149
    assert max(steps) <= 1_000
    assert store.usages.count(tenant_id="acme") == 51
    assert store.usages.count(tenant_id="globex") == 1_200
    assert engine.purge_usage(before) == 1_149
    assert engine.purge_usage(before) == 0
    assert min(record.created_at for record in engine.query_usage()) == before
    assert engine.aggregate_usage() == days
    engine.record_usage(request(key_ids[0], created_at=before - timedelta(hours=1)))
    with store.transaction():
        assert engine.purge_usage(before) == 0, "it was not written before the transaction"
    assert engine.purge_usage(before) == 1


def test_changing_a_key_costs_no_look_at_its_usage(path: Path) -> None:
    """SQLite looks for every row that refers to a key whose ID is written, even if it stays."""
    with Engine(SqliteStore(path)) as engine:
        created = engine.create_key(KeyCreate(name="production"))
        looked: list[str] = []

        def trace(connection: sqlite3.Connection, _record: object) -> None:
            connection.set_authorizer(note)

        def note(action: int, table: str | None, *_: Any) -> int:
            if action == sqlite3.SQLITE_READ and table is not None:
                looked.append(table)
            return sqlite3.SQLITE_OK

        engine.store.db.dispose()
        sa.event.listen(engine.store.db, "connect", trace)
        engine.update_key(created.key.id, KeyUpdate(description="new"))
        engine.suspend_key(created.key.id)
        engine.reactivate_key(created.key.id)
        engine.rotate_key(created.key.id)
        assert "keysmith_usage" not in looked
        engine.delete_key(created.key.id)
        assert "keysmith_usage" in looked, "else this shows nothing"


# ---------------------------------------------------------------------------- what gets in


def rubbish(key_id: str) -> Iterator[Any]:
    good = request(key_id)
    for name, value in [
        ("status_code", 99),
        ("status_code", 600),
        ("status_code", "abc"),
        ("status_code", None),
        ("latency_ms", -1.0),
        ("latency_ms", math.nan),
        ("latency_ms", math.inf),
        ("latency_ms", "x"),
        ("endpoint", b"\xff"),
        ("endpoint", "x" * 1025),
        ("endpoint", "a\nb"),
        ("endpoint", "\ud800"),
        ("method", "x" * 33),
        ("ip_address", "x" * 65),
        ("user_agent", "\x00"),
        ("user_agent", ["x"]),
        ("key_id", "x" * 256),
        ("key_id", 7),
        ("meta", None),
        ("meta", []),
        ("meta", {"x": object()}),
        ("meta", {"x": math.nan}),
        ("meta", {1: 2}),
        ("created_at", datetime(2026, 1, 1)),
        ("created_at", "yesterday"),
    ]:
        fields = {**good.__dict__, name: value}
        yield UsageCreate.model_construct(**fields)
        if name not in ("key_id", "created_at"):
            yield good.model_copy(update={name: value})
    forged = request(key_id)
    forged.__dict__["status_code"] = "'; DROP TABLE keysmith_usage; --"
    yield forged
    yield UsageCreate.model_construct()
    yield UsageCreate.model_construct(key_id=key_id)
    yield None
    yield "usage"
    yield {"key_id": key_id}


def test_nothing_unvalidated_is_recorded(memory: SqliteStore) -> None:
    engine = Engine(memory)
    key_id = a_key(engine)
    for data in rubbish(key_id):
        with pytest.raises(ValidationError):
            engine.record_usage(data)
    engine.flush()
    assert memory.usages.count() == 0
    assert engine.dropped_usage == 0


def test_what_is_valid_all_the_same_is_recorded_as_validation_leaves_it(
    memory: SqliteStore,
) -> None:
    engine = Engine(memory)
    key_id = a_key(engine)
    good = request(key_id)
    engine.record_usage(good.model_copy(update={"latency_ms": 5, "status_code": "201"}))
    local = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    engine.record_usage(UsageCreate.model_construct(**{**good.__dict__, "created_at": local}))
    engine.record_usage(good.model_dump(exclude={"created_at"}))  # type: ignore[arg-type]
    found = {record.status_code: record for record in engine.query_usage()}
    assert found[201].latency_ms == 5
    times = [record.created_at for record in engine.query_usage()]
    assert datetime(2025, 12, 31, 23, tzinfo=UTC) in times
    assert engine.store.usages.count() == 3


def test_what_the_caller_does_to_it_later_changes_nothing(memory: SqliteStore) -> None:
    engine = Engine(memory)
    key_id = a_key(engine)
    meta: dict[str, Any] = {"plan": {"seats": [1]}}
    data = request(key_id, meta=meta)
    engine.record_usage(data)
    data.meta["plan"]["seats"].append(object())  # type: ignore[index,call-overload,union-attr]
    data.__dict__["status_code"] = "rubbish"
    with pytest.raises(ValidationError):
        data.status_code = 500  # type: ignore[misc]
    [found] = engine.query_usage()
    assert found.meta == {"plan": {"seats": [1]}}
    assert found.status_code == 200


texts = st.text(max_size=40) | st.sampled_from(["x" * 32, "x" * 33, "x" * 64, "x" * 1024, "a\x7f"])
anything = st.one_of(
    texts,
    st.none(),
    st.integers(-5, 700),
    st.booleans(),
    st.floats(),
    st.binary(max_size=3),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dictionaries(texts, st.integers(), max_size=1),
    st.lists(st.integers(), max_size=1),
)


@settings(max_examples=100)
@given(
    st.fixed_dictionaries(
        {
            "key_id": texts,
            "endpoint": texts,
            "method": texts,
            "status_code": st.integers(90, 610),
            "latency_ms": st.floats(),
            "ip_address": texts,
            "user_agent": texts,
            "meta": st.just({}),
            "created_at": st.none() | st.datetimes(timezones=st.sampled_from([UTC, None])),
        }
    ),
    st.dictionaries(st.sampled_from(sorted(UsageCreate.model_fields)), anything, max_size=2),
)
def test_what_is_let_through_unvalidated_is_what_validation_would_leave(
    fields: dict[str, Any], other: dict[str, Any]
) -> None:
    data = UsageCreate.model_construct(**{**fields, **other})
    try:
        checked = data.checked()
    except ValidationError:
        with pytest.raises(ValidationError):
            UsageCreate.model_validate(data.__dict__)
    else:
        validated = UsageCreate.model_validate(data.__dict__)
        for name in UsageCreate.model_fields:
            left, right = getattr(checked, name), getattr(validated, name)
            assert (type(left), left) == (type(right), right)


def test_records_of_keys_that_are_gone_or_somebody_elses_are_dropped_and_counted(
    engine: Engine,
) -> None:
    mine = a_key(engine, tenant_id="acme", app_id="shop")
    other_app = a_key(engine, tenant_id="acme", app_id="blog")
    theirs = a_key(engine, tenant_id="globex")
    gone = a_key(engine, tenant_id="acme")
    engine.delete_key(gone)
    shop = engine.for_tenant("acme", app_id="shop")
    for key_id in (mine, other_app, theirs, gone, "akey_unknown", ""):
        shop.record_usage(request(key_id))
    engine.flush()
    assert engine.dropped_usage == shop.dropped_usage == 5
    assert engine.for_tenant("acme").dropped_usage == 5
    assert engine.for_tenant("acme", app_id="shop").dropped_usage == 5
    assert engine.for_tenant("acme", app_id="blog").dropped_usage == 0
    assert engine.for_tenant("globex").dropped_usage == 0, "that is acme's alone"
    assert [record.key_id for record in engine.query_usage()] == [mine]
    for key_id in (mine, other_app, theirs, gone):
        engine.record_usage(request(key_id))
    engine.flush()
    assert (engine.dropped_usage, shop.dropped_usage) == (6, 5)
    assert engine.store.usages.count() == 4
    assert_adds_up(engine.store)  # type: ignore[arg-type]
