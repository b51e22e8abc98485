"""Usage: records, and what they add up to."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import KeyNotFoundError, NotFoundError, Period, Store
from keysmith.ids import IdPrefix
from keysmith.testing.contract.samples import MISSING, START, a_key, ids, recorded, usage


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

    def test_of_what_engines_recorded_that_of_unknown_keys_is_dropped(self, store: Store) -> None:
        key, other = a_key(store, app_id="shop"), a_key(store, tenant_id="acme")
        unused = a_key(store)
        kept = [
            recorded(key),
            recorded(key, tenant_id="default"),
            recorded(key, tenant_id="default", app_id="shop", status_code=500, latency_ms=9.0),
            recorded(other, meta={"a": [1, None]}, endpoint="/ü"),
        ]
        lost = [
            recorded(key, tenant_id="acme"),
            recorded(key, tenant_id="default", app_id="blog"),
            recorded(other, app_id="shop"),
            recorded(other)._replace(key_id=MISSING[IdPrefix.KEY]),
        ]
        later = START + timedelta(hours=1)
        uses = {key.id: later, MISSING[IdPrefix.KEY]: later}
        assert store.usages.record_known([*lost[:2], *kept, *lost[2:]], uses) == lost
        assert store.usages.record_known([], {key.id: START, unused.id: START}) == []
        assert store.keys.get(key.id).last_used_at == later, "it never moves back"
        assert store.keys.get(unused.id).last_used_at == START
        found = store.usages.query(key_id=other.id)
        assert [(one.tenant_id, one.endpoint, one.meta, one.created_at) for one in found] == [
            ("acme", "/ü", {"a": [1, None]}, START)
        ]
        assert store.usages.count(tenant_id="default") == 3
        [day] = store.usages.aggregate(key_id=key.id)
        assert (day.tenant_id, day.request_count, day.error_count) == ("default", 3, 1)
        assert day.total_latency == 9.0

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

    def test_records_come_by_their_time_whenever_they_were_recorded(self, store: Store) -> None:
        key = a_key(store)
        records = [usage(key, created_at=START - timedelta(hours=ago)) for ago in range(3)]
        store.usages.record_batch(records)
        assert ids(store.usages.query()) == [each.id for each in records]

    def test_pages_lead_on_from_id_to_id_among_records_of_one_moment(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme")
        for number in range(4):
            owner = other if number % 2 else key
            store.usages.record(usage(owner, endpoint=f"/{number}", created_at=START))
        everything = ids(store.usages.query())
        pages, after = [], None
        while page := store.usages.query(limit=3, after=after):
            pages.append(ids(page))
            after = pages[-1][-1]
        assert pages == [everything[:3], everything[3:]]
        newest, oldest = ids(store.usages.query(tenant_id="acme"))
        assert ids(store.usages.query(tenant_id="acme", after=newest)) == [oldest]

    def test_a_page_whose_last_record_has_gone_is_refused_or_told_where_it_was(
        self, store: Store
    ) -> None:
        key, gone = a_key(store), a_key(store, tenant_id="acme")
        records = [
            usage(owner, created_at=START + timedelta(microseconds=number))
            for number, owner in enumerate((key, gone, key))
        ]
        store.usages.record_batch(records)
        [first, last, newest] = records
        with pytest.raises(NotFoundError, match="after"):
            store.usages.query(after=last.id, tenant_id="default")
        store.keys.delete(gone.id)
        with pytest.raises(NotFoundError, match="after"):
            store.usages.query(after=last.id)
        assert ids(store.usages.query(after=(last.created_at, last.id))) == [first.id]
        assert ids(store.usages.query(after=(newest.created_at, newest.id))) == [first.id]
        refused: Any
        for refused in ((START, key.id), (START.replace(tzinfo=None), last.id), (START,)):
            with pytest.raises(ValidationError):
                store.usages.query(after=refused)

    def test_days_of_keys_lead_on_from_page_to_page(self, store: Store) -> None:
        keys = [a_key(store), a_key(store, tenant_id="acme")]
        for key in keys:
            for days in range(3):
                store.usages.record(usage(key, created_at=START + timedelta(days=days)))
        everything = [(row.period_start, row.key_id) for row in store.usages.aggregate()]
        assert len(everything) == 6
        for position, place in enumerate(everything, start=1):
            page = store.usages.aggregate(after=place, limit=2)
            found = [(row.period_start, row.key_id) for row in page]
            assert found == everything[position : position + 2]
        theirs = store.usages.aggregate(tenant_id="acme", after=everything[1])
        assert [(row.period_start.day, row.key_id) for row in theirs] == [
            (2, keys[1].id),
            (1, keys[1].id),
        ]

    def test_summaries_are_of_all_keys_together_oldest_first(self, store: Store) -> None:
        shop, blog = a_key(store, app_id="shop"), a_key(store, app_id="blog")
        theirs = a_key(store, tenant_id="acme")
        tomorrow = START + timedelta(days=1)
        for key, moment, status_code, latency_ms in (
            (shop, START, 200, 10.0),
            (blog, START, 500, 30.0),
            (shop, tomorrow, 200, 20.0),
            (theirs, START, 404, 50.0),
        ):
            fields = {"created_at": moment, "status_code": status_code, "latency_ms": latency_ms}
            store.usages.record(usage(key, **fields))

        def summed(**filters: Any) -> list[tuple[int, int, int, float]]:
            return [
                (each.period_start.day, each.request_count, each.error_count, each.total_latency)
                for each in store.usages.summarize(**filters)
            ]

        assert summed() == [(1, 3, 2, 90.0), (2, 1, 0, 20.0)]
        assert summed(tenant_id="default") == [(1, 2, 1, 40.0), (2, 1, 0, 20.0)]
        assert summed(tenant_id="acme") == [(1, 1, 1, 50.0)]
        assert summed(app_id="blog") == summed(key_id=blog.id) == [(1, 1, 1, 30.0)]
        assert summed(since=tomorrow.replace(hour=0)) == []
        assert summed(until=tomorrow) == summed()
        [month] = store.usages.summarize(period=Period.MONTHLY, tenant_id="default")
        assert month.request_count == 3
        assert month.p50_latency == pytest.approx(20, rel=0.02)
        assert month.p99_latency == pytest.approx(30, rel=0.02)

    def test_some_of_the_old_records_of_a_tenant_are_purged_until_none_is_left(
        self, store: Store
    ) -> None:
        shop, blog = a_key(store, app_id="shop"), a_key(store, app_id="blog")
        theirs = a_key(store, tenant_id="acme")
        for key in (shop, blog, theirs):
            old = [usage(key, created_at=START - timedelta(hours=n)) for n in range(1, 4)]
            store.usages.record_batch([*old, usage(key, created_at=START)])

        def purge(**whose: Any) -> int:
            purged = 0
            while some := store.usages.purge_some(START, **whose):
                purged += some
            return purged

        assert purge(tenant_id="acme") == 3
        assert purge(tenant_id="default", app_id="shop") == 3
        assert [store.usages.count(key_id=key.id) for key in (shop, blog, theirs)] == [1, 4, 1]
        assert purge() == 3
        assert store.usages.count() == 3
        assert store.usages.daily_count(shop.id, START.date()) == 4, "aggregates stay"

    def test_a_batch_is_all_or_nothing(self, store: Store) -> None:
        key = a_key(store)
        lost = usage(key)
        lost.key_id = MISSING[IdPrefix.KEY]
        with pytest.raises(KeyNotFoundError):
            store.usages.record_batch([usage(key), lost])
        store.usages.record_batch([])
        assert store.usages.count() == 0
        assert store.usages.aggregate() == []
