"""Usage: recorded without waiting, read with all that was recorded before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from time import perf_counter, sleep
from typing import Any

from pydantic import TypeAdapter

from keysmith.engine.context import Context
from keysmith.models import Period, UsageAggregate, UsageCreate, UsageRecord, UsageSummary
from keysmith.models.base import HIDE_INPUT, moment
from keysmith.models.frozen import FrozenDict, freeze
from keysmith.models.usages import plain
from keysmith.stores.base import RecordedUsage

REST = 3
"""How much longer than it writes a purge rests. Those in other processes who wait for the lock look
for it ever more seldom, so they would hardly ever find it free without."""

_period: TypeAdapter[Period] = TypeAdapter(Period, config=HIDE_INPUT)
_NOTHING = FrozenDict()
_values = itemgetter(*RecordedUsage._fields[:9])
"""Those of a `UsageCreate`."""

Request = tuple[str, str, str, int, str, str, float]
"""What is known of a request: key, endpoint, method, status, address, user agent, latency."""


class Usage:
    """The usage of a store's keys, as their tenant sees it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def record(self, data: UsageCreate, *, wait: bool = True) -> bool:
        """Tells whether there was room; there is, in the end, for those who `wait`."""
        if not isinstance(data, UsageCreate):
            data = UsageCreate.model_validate(data)
        return self._put(*_values(data.checked().__dict__), wait=wait)

    def note(self, *request: *Request, wait: bool = True) -> bool:
        """As `record`, of a request of this moment; no `UsageCreate` has to be made of it first."""
        if plain(*request):
            return self._put(*request, wait=wait)
        fields = dict(zip(RecordedUsage._fields, request, strict=False))
        return self.record(UsageCreate.model_validate(fields), wait=wait)

    def _put(
        self,
        key_id: str,
        endpoint: str,
        method: str,
        status_code: int,
        ip_address: str,
        user_agent: str,
        latency_ms: float,
        meta: Mapping[str, object] = _NOTHING,
        created_at: datetime | None = None,
        *,
        wait: bool,
    ) -> bool:
        tenancy = self._context.tenancy
        usage = RecordedUsage(
            key_id,
            endpoint,
            method,
            status_code,
            ip_address,
            user_agent,
            latency_ms,
            freeze(meta) if meta else _NOTHING,
            created_at or self._context.now(),
            tenancy.tenant_id,
            tenancy.app_id,
        )
        return self._context.usage.put(usage, wait=wait)

    def query(
        self, limit: int | None, after: str | tuple[datetime, str] | None, filters: dict[str, Any]
    ) -> Sequence[UsageRecord]:
        self._write()
        narrowed = self._context.tenancy.narrow(filters)
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
        period = _period.validate_python(period)
        self._write()
        narrowed = self._context.tenancy.narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.usages.aggregate(
            period=period, limit=limit, after=after, **narrowed
        )

    def summarize(self, period: Period | str, filters: dict[str, Any]) -> Sequence[UsageSummary]:
        period = _period.validate_python(period)
        self._write()
        narrowed = self._context.tenancy.narrow(filters)
        if narrowed is None:
            return []
        return self._context.store.usages.summarize(period=period, **narrowed)

    def purge(self, before: datetime, progress: Callable[[int], None] | None) -> int:
        before = moment(before)
        self._write()
        store, whose = self._context.store, self._context.tenancy.filters()
        purged, began = 0, perf_counter()
        while step := store.usages.purge_some(before, **whose):
            purged += step
            if progress is not None:
                progress(step)
            if not store.in_transaction:
                sleep((perf_counter() - began) * REST)
            began = perf_counter()
        return purged

    @property
    def dropped(self) -> int:
        tenancy = self._context.tenancy
        return self._context.usage.dropped(tenancy.tenant_id, tenancy.app_id)

    def _write(self) -> None:
        """Lets what was recorded before be seen; within a transaction that has to wait."""
        if not self._context.store.in_transaction:
            self._context.usage.write_records()
