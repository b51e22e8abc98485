"""The repository of usage: records, and what they add up to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter

from keysmith.errors import KeyNotFoundError, NotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, Period, UsageAggregate, UsageRecord
from keysmith.models.base import moment
from keysmith.stores.base import UsageFilters
from keysmith.stores.repository import SqlRepository
from keysmith.stores.sketch import LatencySketch

_records: sa.Table = sa.inspect(UsageRecord).local_table  # type: ignore[assignment]
_keys: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]


class SqlAggregates(SqlRepository[UsageAggregate]):
    """Days and months of keys."""

    model = UsageAggregate
    missing = NotFoundError
    filters = TypeAdapter(UsageFilters)

    def add(self, records: Iterable[UsageRecord]) -> None:
        """Adds records to their days and months; the caller's transaction holds both."""
        groups: dict[tuple[str, Period, datetime], list[UsageRecord]] = defaultdict(list)
        for record in records:
            for period in Period:
                groups[record.key_id, period, period.start(record.created_at)].append(record)
        with self._database.write() as connection:
            for (key_id, period, start), members in groups.items():
                row = self.row(self._sum(key_id, period, start, members))
                connection.execute(sa.delete(self.table).where(*self._is(key_id, period, start)))
                connection.execute(sa.insert(self.table), row)

    def requests(self, key_id: str, period: Period, day: date) -> int:
        start = period.start(datetime(day.year, day.month, day.day, tzinfo=UTC))
        statement = sa.select(self.table.c.request_count).where(*self._is(key_id, period, start))
        with self._database.read() as connection:
            return connection.scalar(statement) or 0

    def select(
        self, period: Period, limit: int | None, filters: UsageFilters
    ) -> Sequence[UsageAggregate]:
        start = self.table.c.period_start
        criteria = [self.table.c.period == period, *self._filtered(filters, time=start)]
        return self._page(criteria, limit=limit, order_by=(start.desc(), self.table.c.key_id))

    def _is(self, key_id: str, period: Period, start: datetime) -> list[sa.ColumnElement[bool]]:
        return self._equal(key_id=key_id, period=period, period_start=start)

    def _sum(
        self, key_id: str, period: Period, start: datetime, records: Sequence[UsageRecord]
    ) -> UsageAggregate:
        found = self._page(
            self._is(key_id, period, start), limit=1, order_by=(self.table.c.key_id,)
        )
        so_far = found[0] if found else None
        sketch = LatencySketch.from_bytes(so_far.latency_sketch if so_far else b"")
        for record in records:
            sketch.add(record.latency_ms)
        return UsageAggregate(
            key_id=key_id,
            period=period,
            period_start=start,
            tenant_id=records[0].tenant_id,
            request_count=(so_far.request_count if so_far else 0) + len(records),
            error_count=(so_far.error_count if so_far else 0) + sum(r.failed for r in records),
            total_latency=(so_far.total_latency if so_far else 0.0)
            + sum(r.latency_ms for r in records),
            p50_latency=sketch.quantile(0.50),
            p99_latency=sketch.quantile(0.99),
            latency_sketch=sketch.to_bytes(),
        )


class SqlUsageRepository(SqlRepository[UsageRecord]):
    """Usage in any SQL database. See `UsageRepository` for what each call means."""

    model = UsageRecord
    missing = NotFoundError
    id_prefix = IdPrefix.USAGE
    filters = TypeAdapter(UsageFilters)

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        self._aggregates = SqlAggregates(database)

    def record(self, record: UsageRecord) -> None:
        self.record_batch([record])

    def record_batch(self, records: Iterable[UsageRecord]) -> None:
        batch = list(records)
        if not batch:
            return
        rows = [self.row(record) for record in batch]
        key_ids = {record.key_id for record in batch}
        with self._database.write() as connection:
            known = connection.scalars(sa.select(_keys.c.id).where(_keys.c.id.in_(key_ids)))
            if key_ids - set(known):
                raise KeyNotFoundError
            connection.execute(sa.insert(_records), rows)
            self._aggregates.add(batch)

    def query(
        self, *, limit: int | None = None, **filters: Unpack[UsageFilters]
    ) -> Sequence[UsageRecord]:
        order = (_records.c.created_at.desc(), _records.c.id.desc())
        criteria = self._filtered(filters, time=_records.c.created_at)
        return self._page(criteria, limit=limit, order_by=order)

    def aggregate(
        self,
        *,
        period: Period = Period.DAILY,
        limit: int | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageAggregate]:
        return self._aggregates.select(Period(period), limit, filters)

    def count(self, **filters: Unpack[UsageFilters]) -> int:
        return self._count(*self._filtered(filters, time=_records.c.created_at))

    def purge(self, before: datetime) -> int:
        with self._database.write() as connection:
            result = connection.execute(
                sa.delete(_records).where(_records.c.created_at < moment(before))
            )
            return result.rowcount

    def daily_count(self, key_id: str, date: date) -> int:
        return self._aggregates.requests(key_id, Period.DAILY, date)

    def monthly_count(self, key_id: str, month: date) -> int:
        return self._aggregates.requests(key_id, Period.MONTHLY, month)
