"""Usage: recorded without waiting, read with all that was recorded before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from keysmith.engine.context import Context
from keysmith.models import Period, UsageAggregate, UsageCreate, UsageRecord, UsageSummary
from keysmith.models.base import moment
from keysmith.stores.base import RecordedUsage


class Usage:
    """The usage of a store's keys, as their tenant sees it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def record(self, data: UsageCreate) -> None:
        created_at = data.created_at
        tenancy = self._context.tenancy
        self._context.usage.put(
            RecordedUsage(
                data,
                self._context.now() if created_at is None else created_at,
                tenancy.tenant_id,
                tenancy.app_id,
            )
        )

    def query(
        self, limit: int | None, after: str | None, filters: dict[str, Any]
    ) -> Sequence[UsageRecord]:
        self._flush()
        narrowed = self._narrowed(filters)
        if narrowed is None:
            return []
        return self._context.store.usages.query(limit=limit, after=after, **narrowed)

    def aggregate(
        self,
        period: Period | str,
        limit: int | None,
        after: tuple[datetime, str] | None,
        filters: dict[str, Any],
    ) -> Sequence[UsageAggregate]:
        self._flush()
        narrowed = self._narrowed(filters)
        if narrowed is None:
            return []
        return self._context.store.usages.aggregate(
            period=Period(period), limit=limit, after=after, **narrowed
        )

    def summarize(self, period: Period | str, filters: dict[str, Any]) -> Sequence[UsageSummary]:
        self._flush()
        narrowed = self._narrowed(filters)
        if narrowed is None:
            return []
        return self._context.store.usages.summarize(period=Period(period), **narrowed)

    def purge(self, before: datetime, progress: Callable[[int], None] | None) -> int:
        self._flush()
        before = moment(before)
        purged = 0
        while step := self._context.store.usages.purge_some(
            before, tenant_id=self._context.tenancy.tenant_id
        ):
            purged += step
            if progress is not None:
                progress(step)
        return purged

    def _flush(self) -> None:
        if not self._context.store.in_transaction:
            self._context.usage.flush()

    def _narrowed(self, filters: dict[str, Any]) -> dict[str, Any] | None:
        return self._context.narrow_by_key(filters)
