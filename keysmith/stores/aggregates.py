"""Days and months of usage: what records add up to, kept as they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import sqlite

from keysmith.errors import NotFoundError
from keysmith.models import Period, UsageAggregate
from keysmith.models.usages import ERROR_STATUS
from keysmith.stores.base import UsageFilters
from keysmith.stores.repository import SqlRepository
from keysmith.stores.sketch import LatencySketch

_table: sa.Table = sa.inspect(UsageAggregate).local_table  # type: ignore[assignment]
_IDENTITY = ("key_id", "period", "period_start")
_columns = _table.c


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
        groups: dict[tuple[str, datetime], list[Counted]] = defaultdict(list)
        days: dict[date, tuple[datetime, datetime]] = {}
        for record in records:
            day = record.created_at.date()
            starts = days.get(day)
            if starts is None:
                starts = days[day] = (
                    Period.DAILY.start(record.created_at),
                    Period.MONTHLY.start(record.created_at),
                )
            groups[record.key_id, starts[0]].append(record)
        sums: dict[tuple[str, Period, datetime], _Sum] = {}
        for (key_id, start), members in groups.items():
            daily = _Sum.of(members)
            sums[key_id, Period.DAILY, start] = daily
            month = (key_id, Period.MONTHLY, days[start.date()][1])
            if month in sums:
                sums[month].merge(daily)
            else:
                sums[month] = daily.copy()
        self._merge_stored(connection, sums)
        self._write(connection, sums)

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
            criteria.append(
                (start < after[0]) | ((start == after[0]) & (_columns.key_id > after[1]))
            )
        return self._page(criteria, limit=limit, order_by=(start.desc(), _columns.key_id))

    def _merge_stored(
        self, connection: sa.Connection, sums: dict[tuple[str, Period, datetime], _Sum]
    ) -> None:
        stored = connection.execute(
            _STORED,
            {
                "key_ids": list({key_id for key_id, _, _ in sums}),
                "starts": list({start for _, _, start in sums}),
            },
        )
        for key_id, period, start, requests, errors, latency, sketch in stored:
            found = sums.get((key_id, period, start))
            if found is not None:
                found.merge(_Sum("", requests, errors, latency, LatencySketch.from_bytes(sketch)))

    def _write(
        self, connection: sa.Connection, sums: dict[tuple[str, Period, datetime], _Sum]
    ) -> None:
        rows = [
            {"key_id": key_id, "period": period, "period_start": start, **each.row()}
            for (key_id, period, start), each in sums.items()
        ]
        if rows:
            connection.execute(_upsert(connection.dialect.name), rows)


class _Sum:
    """What some records of one key add up to."""

    __slots__ = ("_errors", "_latency", "_requests", "_sketch", "_tenant_id")

    def __init__(
        self, tenant_id: str, requests: int, errors: int, latency: float, sketch: LatencySketch
    ) -> None:
        self._tenant_id = tenant_id
        self._requests, self._errors, self._latency = requests, errors, latency
        self._sketch = sketch

    @classmethod
    def of(cls, records: Sequence[Counted]) -> _Sum:
        latencies = [record.latency_ms for record in records]
        errors = sum(record.status_code >= ERROR_STATUS for record in records)
        sketch = LatencySketch()
        sketch.add(latencies)
        return cls(records[0].tenant_id, len(records), errors, sum(latencies), sketch)

    def copy(self) -> _Sum:
        copied = _Sum(self._tenant_id, 0, 0, 0.0, LatencySketch())
        copied.merge(self)
        return copied

    def merge(self, other: _Sum) -> None:
        self._requests += other._requests
        self._errors += other._errors
        self._latency += other._latency
        self._sketch.merge(other._sketch)

    def row(self) -> dict[str, Any]:
        median, slowest = self._sketch.quantiles(0.50, 0.99)
        return {
            "tenant_id": self._tenant_id,
            "request_count": self._requests,
            "error_count": self._errors,
            "total_latency": self._latency,
            "p50_latency": median,
            "p99_latency": slowest,
            "latency_sketch": self._sketch.to_bytes(),
        }


_STORED = sa.select(
    _columns.key_id,
    _columns.period,
    _columns.period_start,
    _columns.request_count,
    _columns.error_count,
    _columns.total_latency,
    _columns.latency_sketch,
).where(
    _columns.key_id.in_(sa.bindparam("key_ids", expanding=True)),
    _columns.period.in_(list(Period)),
    _columns.period_start.in_(sa.bindparam("starts", expanding=True)),
)


@cache
def _upsert(dialect: str) -> Any:
    """The row is written anew where there is one: what it held has been added to it."""
    insert = _dialect_insert(dialect)
    return insert.on_conflict_do_update(
        index_elements=_IDENTITY,
        set_={
            column.name: insert.excluded[column.name]
            for column in _columns
            if column.name not in _IDENTITY
        },
    )


def _dialect_insert(dialect: str) -> Any:
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  most never need it

        return postgresql.insert(_table)
    return sqlite.insert(_table)
