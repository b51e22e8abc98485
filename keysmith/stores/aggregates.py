"""Days and months of usage: what records add up to, kept as they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cache
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import sqlite

from keysmith.errors import NotFoundError, StoreCorruptError
from keysmith.models import Period, UsageAggregate, UsageSummary
from keysmith.models.base import HIDE_INPUT, KeyId, UtcDatetime
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


Counted = tuple[str, str, datetime, int, float]
"""What counts of a record: key, tenant, when, status and latency."""


class Addition:
    """What some records of one key add to a period."""

    __slots__ = ("bins", "errors", "latency", "tenant_id")

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.bins: list[int | None] = []
        """Where each of the latencies belongs in a sketch."""
        self.errors = 0
        self.latency = 0.0

    def include(self, other: Addition) -> None:
        """Adds what another one adds."""
        self.bins += other.bins
        self.errors += other.errors
        self.latency += other.latency


class SqlAggregates(SqlRepository[UsageAggregate]):
    """Days and months of keys."""

    model = UsageAggregate
    missing = NotFoundError
    filters = UsageFilters
    places = TypeAdapter(tuple[UtcDatetime, KeyId], config=HIDE_INPUT)

    def add(self, connection: sa.Connection, records: Iterable[Counted]) -> None:
        """Adds records to their days and months, in the caller's transaction."""
        additions = _additions(records, stored_moment(connection.dialect))
        found = self._stored(connection, additions)
        rows = [
            _row(identity, found.get(identity, _NOTHING), addition)
            for identity, addition in additions.items()
        ]
        if rows:
            write_rows(connection, _upsert(connection.dialect.name), _COLUMNS, rows)

    def requests(self, key_id: str, period: Period, day: date) -> int:
        """How many requests a key made in the period in which a day lies."""
        start = period.start(_midnight(day))
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
            last_start, last_key = self.places.validate_python(after)
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
                _columns.key_id,
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


def _additions(
    records: Iterable[Counted], stored: Callable[[datetime], Any]
) -> dict[Identity, Addition]:
    """What the records add to the days and the months of their keys."""
    days: dict[tuple[str, date], Addition] = {}
    for key_id, tenant_id, created_at, status_code, latency_ms in records:
        of_day = key_id, created_at.date()
        day = days.get(of_day)
        if day is None:
            day = days[of_day] = Addition(tenant_id)
        day.bins.append(bin_of(latency_ms))
        day.errors += status_code >= ERROR_STATUS
        day.latency += latency_ms
    starts = {
        date_: [(period.value, stored(period.start(_midnight(date_)))) for period in Period]
        for date_ in {date_ for _, date_ in days}
    }
    additions: dict[Identity, Addition] = {}
    for (key_id, date_), day in days.items():
        for period, start in starts[date_]:
            identity = key_id, period, start
            if identity not in additions:
                additions[identity] = Addition(day.tenant_id)
            additions[identity].include(day)
    return additions


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _row(identity: Identity, so_far: Sum, addition: Addition) -> tuple[Any, ...]:
    """The row to write: what there was and what is added, in the order of the columns."""
    requests, errors, latency, stored_sketch = so_far
    sketch = _sketch(identity[0], stored_sketch)
    sketch.add(addition.bins)
    median, slowest = sketch.quantiles(0.50, 0.99)
    return (
        *identity,
        addition.tenant_id,
        requests + len(addition.bins),
        errors + addition.errors,
        latency + addition.latency,
        median,
        slowest,
        sketch.to_bytes(),
    )


def _sketch(key_id: str, stored: bytes) -> LatencySketch:
    try:
        return LatencySketch.from_bytes(stored)
    except ValueError:
        raise StoreCorruptError(
            f"keysmith_usage_agg holds a latency_sketch that Keysmith cannot have written, for "
            f"{key_id}. Restore a backup, or remove that row."
        ) from None


def _summary(period: Period, start: datetime, rows: Iterable[Any]) -> UsageSummary:
    requests, errors, latency, sketch = 0, 0, 0.0, LatencySketch()
    for _, key_id, more_requests, more_errors, more_latency, stored in rows:
        requests += more_requests
        errors += more_errors
        latency += more_latency
        sketch.merge(_sketch(key_id, stored))
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
