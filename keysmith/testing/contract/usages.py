"""Usage: records, and what they add up to."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import KeyNotFoundError, Period, Store
from keysmith.ids import IdPrefix
from keysmith.testing.contract.samples import MISSING, START, a_key, usage


class TestUsages:
    def test_records_add_up_by_day_and_month(self, store: Store) -> None:
        key = a_key(store, tenant_id="acme")
        moments = [START, START, START + timedelta(days=1), START + timedelta(days=31)]
        for place, moment in enumerate(moments):
            store.usages.record_batch(
                [
                    usage(
                        key,
                        tenant_id="acme",
                        created_at=moment,
                        status_code=(200, 399, 400, 500)[place],
                        latency_ms=float(place),
                    )
                ]
            )
        days = store.usages.aggregate(key_id=key.id, period=Period.DAILY)
        assert [(row.period_start.day, row.request_count, row.error_count) for row in days] == [
            (1, 1, 1),
            (2, 1, 1),
            (1, 2, 0),
        ]
        months = store.usages.aggregate(period=Period.MONTHLY, tenant_id="acme")
        assert [(m.period_start.month, m.request_count, m.total_latency) for m in months] == [
            (4, 1, 3.0),
            (3, 3, 3.0),
        ]
        assert store.usages.daily_count(key.id, date(2026, 3, 1)) == 2
        assert store.usages.daily_count(key.id, date(2026, 3, 9)) == 0
        assert store.usages.monthly_count(key.id, date(2026, 3, 31)) == 3
        assert store.usages.aggregate(tenant_id="other", period=Period.DAILY) == []

    def test_a_page_after_a_record_of_another_tenant_or_app_is_empty(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme", app_id="shop")
        for hours in (0, 2):
            store.usages.record(usage(key, created_at=START + timedelta(hours=hours)))
        amid = START + timedelta(hours=1)
        store.usages.record(usage(other, tenant_id="acme", created_at=amid))
        newest, between, oldest = store.usages.query()
        assert store.usages.query(tenant_id="default", after=between.id) == []
        assert store.usages.query(app_id="shop", after=newest.id) == []
        [found] = store.usages.query(tenant_id="default", app_id="default", after=newest.id)
        assert found.id == oldest.id

    def test_query_counts_and_purges_by_time(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme", app_id="shop")
        for hours in range(5):
            store.usages.record(usage(key, created_at=START + timedelta(hours=hours)))
        store.usages.record(usage(other, tenant_id="acme", created_at=START))
        window: dict[str, Any] = {
            "since": START + timedelta(hours=1),
            "until": START + timedelta(hours=3),
        }
        found = store.usages.query(key_id=key.id, **window)
        assert [record.created_at.hour for record in found] == [14, 13]
        assert store.usages.count(**window) == 2
        whose: Any
        for whose in ({"tenant_id": "acme"}, {"app_id": "shop"}):
            assert len(store.usages.query(**whose)) == store.usages.count(**whose) == 1
            [day] = store.usages.aggregate(**whose)
            assert day.key_id == other.id
        assert len(store.usages.query(limit=4)) == 4
        assert store.usages.purge(START + timedelta(hours=2)) == 3
        assert store.usages.count() == 3
        assert store.usages.daily_count(key.id, START.date()) == 5, "aggregates stay"
        assert store.usages.daily_count(other.id, START.date()) == 1
        for refused in (
            lambda: store.usages.query(since=START.replace(tzinfo=None)),
            lambda: store.usages.purge(START.replace(tzinfo=None)),
        ):
            with pytest.raises(ValidationError):
                refused()

    def test_a_batch_is_all_or_nothing(self, store: Store) -> None:
        key = a_key(store)
        lost = usage(key)
        lost.key_id = MISSING[IdPrefix.KEY]
        with pytest.raises(KeyNotFoundError):
            store.usages.record_batch([usage(key), lost])
        store.usages.record_batch([])
        assert store.usages.count() == 0
        assert store.usages.aggregate() == []
