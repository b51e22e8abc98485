"""Days and months of usage: what records add up to, kept as they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import sqlite

from keysmith.errors import NotFoundError, StoreCorruptError
from keysmith.models import Period, UsageAggregate, UsageSummary
from keysmith.models.base import moment
from keysmith.models.usages import ERROR_STATUS
from keysmith.stores.base import UsageFilters
from keysmith.stores.bulk import stored_moment, write_rows
from keysmith.stores.repository import SqlRepository
from keysmith.stores.sketch import LatencySketch, bin_of

_table: sa.Table = sa.inspect(UsageAggregate).local_table  # type: ignore[assignment]
_columns = _table.c

_IDENTITY = ("key_id", "period", "period_start")
_ADDED = (
    "tenant_id",
    "request_count",
    "error_count",
    "total_latency",
    "p50_latency",
    "p99_latency",
    "latency_sketch",
)

_COLUMNS = (*_IDENTITY, *_ADDED)

Identity = tuple[str, str, Any]
"""Key, period and its start, as they are stored."""

Sum = tuple[int, int, float, bytes]
"""Requests, errors, latency and sketch of what has been added so far."""

_NOTHING: Sum = (0, 0, 0.0, b"")


class Counted(NamedTuple):
    """What a record adds to its day and its month."""

    key_id: str
    tenant_id: str
    created_at: datetime
    status_code: int
    latency_ms: float


class SqlAggregates(SqlRepository[UsageAggregate]):
    """Days and months of keys."""

    model = UsageAggregate
    missing = NotFoundError
    filters = TypeAdapter(UsageFilters)

    def add(self, connection: sa.Connection, records: Iterable[Counted]) -> None:
        """Adds records to their days and months, in the caller's transaction."""
        stored = stored_moment(connection.dialect)
        periods: dict[date, tuple[Any, Any]] = {}
        groups: dict[Identity, list[tuple[Counted, int | None]]] = defaultdict(list)
        for record in records:
            day = record.created_at.date()
            if day not in periods:
                daily, monthly = (period.start(record.created_at) for period in _PERIODS)
                periods[day] = stored(daily), stored(monthly)
            counted = record, bin_of(record.latency_ms)
            for period, start in zip(_PERIOD_NAMES, periods[day], strict=True):
                groups[record.key_id, period, start].append(counted)
        found = self._stored(connection, groups)
        rows = [
            _row(identity, found.get(identity, _NOTHING), members)
            for identity, members in groups.items()
        ]
        if rows:
            write_rows(connection, _upsert(connection.dialect.name), _COLUMNS, rows)

    def requests(self, key_id: str, period: Period, day: date) -> int:
        """How many requests a key made in the period in which a day lies."""
        start = period.start(datetime(day.year, day.month, day.day, tzinfo=UTC))
        statement = sa.select(_columns.request_count).where(
            *self._equal(key_id=key_id, period=period, period_start=start)
        )
        with self._database.read() as connection:
            return connection.scalar(statement) or 0

    def select(
        self,
        period: Period,
        limit: int | None,
        after: tuple[datetime, str] | None,
        filters: UsageFilters,
    ) -> Sequence[UsageAggregate]:
        """Periods, newest first."""
        start = _columns.period_start
        criteria = [_columns.period == period, *self._filtered(filters, time=start)]
        if after is not None:
            last_start, last_key = moment(after[0]), after[1]
            criteria.append(
                (start < last_start) | ((start == last_start) & (_columns.key_id > last_key))
            )
        return self._page(criteria, limit=limit, order_by=(start.desc(), _columns.key_id))

    def summarize(self, period: Period, filters: UsageFilters) -> list[UsageSummary]:
        """Periods of all keys together, oldest first."""
        start = _columns.period_start
        statement = (
            sa.select(
                start,
                _columns.request_count,
                _columns.error_count,
                _columns.total_latency,
                _columns.latency_sketch,
            )
            .where(_columns.period == period, *self._filtered(filters, time=start))
            .order_by(start)
        )
        with self._database.read() as connection:
            return [
                _summary(period, period_start, rows)
                for period_start, rows in groupby(
                    connection.execute(statement), key=lambda row: row[0]
                )
            ]

    def _stored(
        self, connection: sa.Connection, identities: Iterable[Identity]
    ) -> dict[Identity, Sum]:
        # One lookup for each period, which are few, leads straight to the rows; one for them all
        # would read whatever else these keys have.
        key_ids: dict[tuple[str, Any], list[str]] = defaultdict(list)
        for key_id, period, start in identities:
            key_ids[period, start].append(key_id)
        found: dict[Identity, Sum] = {}
        for (period, start), those in key_ids.items():
            values = {"key_ids": those, "period": period, "start": start}
            for key_id, *added in connection.execute(_STORED, values):
                found[key_id, period, start] = tuple(added)
        return found


def _row(
    identity: Identity, so_far: Sum, members: Sequence[tuple[Counted, int | None]]
) -> tuple[Any, ...]:
    """The row to write: what there was and what is added, in the order of the columns."""
    requests, errors, latency, stored_sketch = so_far
    try:
        sketch = LatencySketch.from_bytes(stored_sketch)
    except ValueError:
        raise StoreCorruptError(
            f"keysmith_usage_agg holds a latency_sketch that Keysmith cannot have written, for "
            f"{identity[0]}. Restore a backup, or remove that row."
        ) from None
    sketch.add([bin_ for _, bin_ in members])
    median, slowest = sketch.quantiles(0.50, 0.99)
    records = [record for record, _ in members]
    return (
        *identity,
        records[0].tenant_id,
        requests + len(records),
        errors + sum(record.status_code >= ERROR_STATUS for record in records),
        latency + sum(record.latency_ms for record in records),
        median,
        slowest,
        sketch.to_bytes(),
    )


def _summary(period: Period, start: datetime, rows: Iterable[Any]) -> UsageSummary:
    requests, errors, latency, sketch = 0, 0, 0.0, LatencySketch()
    for _, more_requests, more_errors, more_latency, stored in rows:
        requests += more_requests
        errors += more_errors
        latency += more_latency
        sketch.merge(LatencySketch.from_bytes(stored))
    median, slowest = sketch.quantiles(0.50, 0.99)
    return UsageSummary(
        period=period,
        period_start=start,
        request_count=requests,
        error_count=errors,
        total_latency=latency,
        p50_latency=median,
        p99_latency=slowest,
    )


_PERIODS = (Period.DAILY, Period.MONTHLY)
_PERIOD_NAMES = tuple(period.value for period in _PERIODS)

_STORED = sa.select(
    _columns.key_id,
    _columns.request_count,
    _columns.error_count,
    _columns.total_latency,
    _columns.latency_sketch,
).where(
    _columns.key_id.in_(sa.bindparam("key_ids", expanding=True)),
    _columns.period == sa.bindparam("period"),
    # As it is handed to the driver, since it has been made ready for that.
    sa.type_coerce(_columns.period_start, sa.types.NullType()) == sa.bindparam("start"),
)


@cache
def _upsert(dialect: str) -> Any:
    """The row is written anew where there is one: what it held has been added to it."""
    insert = _dialect_insert(dialect)
    return insert.on_conflict_do_update(
        index_elements=_IDENTITY, set_={name: insert.excluded[name] for name in _ADDED}
    )


def _dialect_insert(dialect: str) -> Any:
    values: dict[str, Any] = {name: sa.bindparam(name) for name in _COLUMNS}
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  most never need it

        return postgresql.insert(_table).values(values)
    return sqlite.insert(_table).values(values)
