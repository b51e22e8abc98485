"""The repository of usage: records, and what they add up to."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from operator import itemgetter
from typing import Any, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter

from keysmith.errors import KeyNotFoundError, NotFoundError
from keysmith.ids import IdPrefix, new_id
from keysmith.models import Key, Period, UsageAggregate, UsageRecord, UsageSummary
from keysmith.models.base import HIDE_INPUT, UsageId, UtcDatetime, moment
from keysmith.stores.aggregates import Counted, SqlAggregates
from keysmith.stores.base import RecordedUsage, TenantFilters, UsageFilters
from keysmith.stores.bulk import stored_moment, write_rows
from keysmith.stores.repository import SqlRepository

_records: sa.Table = sa.inspect(UsageRecord).local_table  # type: ignore[assignment]
_keys: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]

AT_ONCE = 1_000
"""Records that are added in one step."""

PURGED_AT_ONCE = 200
"""Records that are removed in one transaction: others wait for a millisecond or two."""


class SqlUsageRepository(SqlRepository[UsageRecord]):
    """Usage in any SQL database. See `UsageRepository` for what each call means."""

    model = UsageRecord
    missing = NotFoundError
    id_prefix = IdPrefix.USAGE
    filters = UsageFilters
    places = TypeAdapter(tuple[UtcDatetime, UsageId], config=HIDE_INPUT)

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        self._aggregates = SqlAggregates(database)

    def record(self, record: UsageRecord) -> None:
        self.record_batch([record])

    def record_batch(self, records: Iterable[UsageRecord]) -> None:
        rows = [self.row(record) for record in records]
        if rows:
            with self._database.write() as connection:
                for start in range(0, len(rows), AT_ONCE):
                    self._add(connection, rows[start : start + AT_ONCE])

    def record_known(
        self, usages: Sequence[RecordedUsage], last_used: Mapping[str, datetime]
    ) -> Sequence[RecordedUsage]:
        with self._database.write(lax=True) as connection:
            owners = _owners(connection, {usage.key_id for usage in usages})
            known = [usage for usage in usages if _is_known(usage, owners)]
            if known:
                stored = stored_moment(connection.dialect)
                rows = [_row(usage, owners[usage.key_id][0], stored) for usage in known]
                write_rows(connection, _INSERT, _COLUMNS, rows)
                self._aggregates.add(connection, map(_counted, rows, known))
            if last_used:
                used = [{"key_id": key_id, "at": at} for key_id, at in last_used.items()]
                connection.execute(_LAST_USED, used)
        if len(known) == len(usages):
            return []
        return [usage for usage in usages if not _is_known(usage, owners)]

    def query(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageRecord]:
        criteria = self._filtered(filters, time=_records.c.created_at)
        if after is not None:
            place = self._place(after, _records.c.created_at, filters)
            criteria.append(sa.tuple_(_records.c.created_at, _records.c.id) < place)
        order = (_records.c.created_at.desc(), _records.c.id.desc())
        return self._page(criteria, limit=limit, order_by=order)

    def aggregate(
        self,
        *,
        period: Period = Period.DAILY,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageAggregate]:
        return self._aggregates.select(Period(period), limit, after, filters)

    def summarize(
        self, *, period: Period = Period.DAILY, **filters: Unpack[UsageFilters]
    ) -> Sequence[UsageSummary]:
        return self._aggregates.summarize(Period(period), filters)

    def count(self, **filters: Unpack[UsageFilters]) -> int:
        return self._count(*self._filtered(filters, time=_records.c.created_at))

    def purge(self, before: datetime) -> int:
        purged = 0
        while some := self.purge_some(before):
            purged += some
        return purged

    def purge_some(self, before: datetime, **filters: Unpack[TenantFilters]) -> int:
        criteria = [_records.c.created_at < moment(before), *self._equal(**filters)]
        old = sa.select(_records.c.id).where(*criteria).limit(PURGED_AT_ONCE)
        with self._database.write(lax=True) as connection:
            return connection.execute(sa.delete(_records).where(_records.c.id.in_(old))).rowcount

    def _add(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Adds rows to records and aggregates, or raises `KeyNotFoundError`."""
        owners = _owners(connection, {row["key_id"] for row in rows})
        try:
            for row in rows:
                row["tenant_id"], _ = owners[row["key_id"]]
        except KeyError:
            raise KeyNotFoundError from None
        connection.execute(self._insert, rows)
        counted = itemgetter("key_id", "tenant_id", "created_at", "status_code", "latency_ms")
        self._aggregates.add(connection, map(counted, rows))

    def daily_count(self, key_id: str, date: date) -> int:
        return self._aggregates.requests(key_id, Period.DAILY, date)

    def monthly_count(self, key_id: str, month: date) -> int:
        return self._aggregates.requests(key_id, Period.MONTHLY, month)


Owners = Mapping[str, tuple[str, str]]
"""Tenant and app of each key that exists: those of its usage, whatever a record says."""

Row = tuple[Any, ...]

_COLUMNS = (
    "id",
    "key_id",
    "tenant_id",
    "endpoint",
    "method",
    "status_code",
    "ip_address",
    "user_agent",
    "latency_ms",
    "metadata",
    "created_at",
)
_OWNERS = sa.select(_keys.c.id, _keys.c.tenant_id, _keys.c.app_id).where(
    _keys.c.id.in_(sa.bindparam("key_ids", expanding=True))
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The first moment that an ID can tell."""

_INSERT = sa.insert(_records).values({name: sa.bindparam(name) for name in _COLUMNS})
_LAST_USED = (
    sa.update(_keys)
    .where(
        _keys.c.id == sa.bindparam("key_id"),
        _keys.c.last_used_at.is_(None) | (_keys.c.last_used_at < sa.bindparam("at")),
    )
    .values(last_used_at=sa.bindparam("at"))
)


def _owners(connection: sa.Connection, key_ids: Collection[str]) -> Owners:
    if not key_ids:
        return {}
    found = connection.execute(_OWNERS, {"key_ids": list(key_ids)})
    return {key_id: (tenant_id, app_id) for key_id, tenant_id, app_id in found}


def _is_known(usage: RecordedUsage, owners: Owners) -> bool:
    owner = owners.get(usage.key_id)
    return owner is not None and (
        (usage.tenant_id is None and usage.app_id is None)
        or (usage.tenant_id in (None, owner[0]) and usage.app_id in (None, owner[1]))
    )


def _row(usage: RecordedUsage, tenant_id: str, stored: Callable[[datetime], Any]) -> Row:
    """The row to write, in the order of `_COLUMNS`."""
    key_id, endpoint, method, status_code, ip_address, user_agent, latency_ms, meta, at, *_ = usage
    return (
        new_id(IdPrefix.USAGE, max(at, _EPOCH)),
        key_id,
        tenant_id,
        endpoint,
        method,
        status_code,
        ip_address,
        user_agent,
        latency_ms,
        json.dumps(meta) if meta else "{}",
        stored(at),
    )


def _counted(row: Row, usage: RecordedUsage) -> Counted:
    return row[1], row[2], usage.created_at, row[5], row[8]
