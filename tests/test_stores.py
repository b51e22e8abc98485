"""The contract of a store, over every kind there is."""

from __future__ import annotations

import itertools
import threading
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Environment,
    Key,
    KeyNotFoundError,
    KeyState,
    NotFoundError,
    Period,
    Policy,
    PolicyInUseError,
    PolicyNotFoundError,
    Rotation,
    RotationNotFoundError,
    RotationReason,
    Scope,
    ScopeNotFoundError,
    SqliteStore,
    Store,
    UsageRecord,
)
from keysmith.ids import IdPrefix, new_id
from tests.conftest import START

MISSING = {prefix: new_id(prefix, START) for prefix in IdPrefix}
_numbers = itertools.count(1)


def a_hash() -> str:
    return f"{next(_numbers):064x}"


def a_key(store: Store, **fields: Any) -> Key:
    return store.keys.create(Key(**{"name": "n", "hint": "abcd", "key_hash": a_hash()} | fields))


def a_rotation(store: Store, key: Key, **fields: Any) -> Rotation:
    return store.rotations.create(
        Rotation(
            **{
                "key_id": key.id,
                "old_key_hash": a_hash(),
                "new_key_hash": a_hash(),
                "grace_ends": START + timedelta(hours=1),
            }
            | fields
        )
    )


def scopes(store: Store, *names: str, **fields: Any) -> list[Scope]:
    return [store.scopes.create(Scope(name=name, **fields)) for name in names]


def usage(key: Key, **fields: Any) -> UsageRecord:
    return UsageRecord(
        **{"key_id": key.id, "endpoint": "/", "method": "GET", "status_code": 200} | fields
    )


def ids(entities: Any) -> list[str]:
    return [entity.id for entity in entities]


def test_sqlite_store_is_a_store(store: SqliteStore) -> None:
    contract: Store = store
    contract.ping()
    contract.migrate()
    assert contract.keys.list() == []


class TestKeys:
    def test_a_key_comes_back_as_it_went_in(self, store: Store) -> None:
        key = a_key(
            store,
            description="two\nlines",
            meta={"a": [1, None, {"b": "ü"}]},
            expires_at=START + timedelta(microseconds=1),
            environment=Environment.STAGING,
            created_by="user_1",
            tenant_id="acme",
            app_id="billing",
        )
        assert store.keys.get(key.id).to_row() == key.to_row()
        assert store.keys.get_by_hash(key.key_hash) == store.keys.get(key.id, for_update=True)

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        missing = MISSING[IdPrefix.KEY]
        for call in (
            lambda: store.keys.get(missing),
            lambda: store.keys.get(""),
            lambda: store.keys.get("\ud800\0'--"),
            lambda: store.keys.get_by_hash("00"),
            lambda: store.keys.get_by_prefix("sk", "zzzz"),
            lambda: store.keys.update(Key(id=missing, name="n", hint="", key_hash=a_hash())),
            lambda: store.keys.update_state(missing, KeyState.REVOKED, now=START),
            lambda: store.keys.update_last_used(missing, START),
            lambda: store.keys.delete(missing),
            lambda: store.scopes.assign_to_key(missing, []),
            lambda: store.scopes.remove_from_key(missing, []),
            lambda: store.usages.record(
                UsageRecord(key_id=missing, endpoint="/", method="GET", status_code=200)
            ),
        ):
            with pytest.raises(KeyNotFoundError):
                call()

    def test_a_hash_is_had_once(self, store: Store) -> None:
        first, second = a_key(store), a_key(store)
        for clash in (
            lambda: a_key(store, key_hash=first.key_hash),
            lambda: store.keys.update(Key(**second.to_row() | {"key_hash": first.key_hash})),
        ):
            with pytest.raises(ConflictError) as refused:
                clash()
            assert first.key_hash not in str(refused.value)
        assert store.keys.count() == 2
        with pytest.raises(ConflictError):
            store.keys.create(Key(**first.to_row() | {"key_hash": a_hash()}))

    def test_the_newest_of_keys_that_look_alike(self, store: Store) -> None:
        a_key(store, prefix="pk", hint="wxyz")
        newest = a_key(store, prefix="pk", hint="wxyz")
        a_key(store, prefix="sk", hint="wxyz")
        assert store.keys.get_by_prefix("pk", "wxyz").id == newest.id

    def test_update_writes_every_field(self, store: Store) -> None:
        key = a_key(store)
        key.name, key.last_used_at = "renamed", START
        store.keys.update(key)
        assert store.keys.get(key.id).to_row() == key.to_row()

    def test_update_state_tells_when(self, store: Store) -> None:
        key = a_key(store)
        store.keys.update_state(key.id, KeyState.SUSPENDED, now=START)
        suspended = store.keys.get(key.id)
        assert (suspended.state, suspended.updated_at, suspended.revoked_at) == (
            KeyState.SUSPENDED,
            START,
            None,
        )
        revoked = store.keys.update_state(key.id, KeyState.REVOKED, now=START + timedelta(days=1))
        assert revoked.revoked_at == revoked.updated_at == START + timedelta(days=1)

    def test_last_used_never_moves_back(self, store: Store) -> None:
        key = a_key(store)
        for seconds, expected in ((5, 5), (3, 5), (9, 9)):
            store.keys.update_last_used(key.id, START + timedelta(seconds=seconds))
            found = store.keys.get(key.id)
            assert found.last_used_at == START + timedelta(seconds=expected)
            assert found.updated_at == key.updated_at
        with pytest.raises(ValidationError):
            store.keys.update_last_used(key.id, START.replace(tzinfo=None))

    def test_delete_takes_everything_of_the_key(self, store: Store) -> None:
        key, other = a_key(store), a_key(store)
        scopes(store, "read")
        for holder in (key, other):
            store.scopes.assign_to_key(holder.id, ["read"])
            a_rotation(store, holder)
            store.usages.record(usage(holder))
        store.keys.delete(key.id)
        assert ids(store.keys.list()) == [other.id]
        assert {rotation.key_id for rotation in store.rotations.list()} == {other.id}
        assert store.usages.count() == 1
        assert {row.key_id for row in store.usages.aggregate()} == {other.id}
        assert [scope.name for scope in store.scopes.list_by_key(other.id)] == ["read"]

    def test_lists_come_newest_first_in_pages(self, store: Store) -> None:
        made = [a_key(store).id for _ in range(7)][::-1]
        assert ids(store.keys.list()) == made
        pages, after = [], None
        while page := store.keys.list(limit=3, after=after):
            pages.append(ids(page))
            after = pages[-1][-1]
        assert pages == [made[:3], made[3:6], made[6:]]
        assert store.keys.list(limit=0) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            {"limit": -1},
            {"limit": 1.5},
            {"after": "1 OR 1"},
            {"after": MISSING[IdPrefix.POLICY]},
            {"state": "asleep"},
            {"tenant_id": "\ud800"},
            {"nickname": "x"},
        ],
    )
    def test_a_page_that_makes_no_sense_is_refused(self, store: Store, arguments: Any) -> None:
        a_key(store)
        with pytest.raises(ValidationError):
            store.keys.list(**arguments)

    def test_filters(self, store: Store) -> None:
        policy = store.policies.create(Policy(name="p"))
        plain = a_key(store)
        wanted = {
            "tenant_id": "acme",
            "app_id": "billing",
            "environment": Environment.TEST,
            "state": KeyState.SUSPENDED,
            "policy_id": policy.id,
            "created_by": "user_1",
        }
        for name, value in wanted.items():
            match = a_key(store, **{name: value})
            assert ids(store.keys.list(**{name: value})) == [match.id]
            assert store.keys.count(**{name: value}) == 1
            store.keys.delete(match.id)
        both = a_key(store, **wanted)
        assert ids(store.keys.list(**wanted)) == [both.id]
        assert ids(store.keys.list(tenant_id=None)) == [both.id, plain.id]
        assert ids(store.keys.list_by_policy(policy.id)) == [both.id]
        assert store.keys.count() == 2

    def test_list_expired_leaves_out_what_is_final(self, store: Store) -> None:
        for state in KeyState:
            a_key(store, state=state, expires_at=START, name=state.value)
        a_key(store, expires_at=START + timedelta(microseconds=1))
        a_key(store)
        expired = store.keys.list_expired(START)
        assert [key.name for key in expired] == ["active", "suspended"]

    def test_delete_by_tenant(self, store: Store) -> None:
        for tenant in ("a", "a", "b"):
            a_key(store, tenant_id=tenant)
        assert store.keys.delete_by_tenant("a") == 2
        assert store.keys.delete_by_tenant("a") == 0
        assert store.keys.count() == 1


class TestPolicies:
    def test_round_trip_update_and_lists(self, store: Store) -> None:
        policy = store.policies.create(
            Policy(
                name="p",
                allowed_ips=["10.0.0.0/8"],
                max_key_lifetime=timedelta(days=1),
                rate_limit_window=timedelta(milliseconds=1500),
                meta={"a": 1},
            )
        )
        assert store.policies.get(policy.id).to_row() == policy.to_row()
        policy.allowed_ips = []
        policy.max_key_lifetime = None
        store.policies.update(policy)
        assert store.policies.get_by_name("default", "p").to_row() == policy.to_row()
        other = store.policies.create(Policy(name="p", tenant_id="acme"))
        assert ids(store.policies.list()) == [other.id, policy.id]
        assert ids(store.policies.list(tenant_id="acme")) == [other.id]
        assert ids(store.policies.list(limit=1, after=other.id)) == [policy.id]
        assert (store.policies.count(), store.policies.count(tenant_id="acme")) == (2, 1)

    def test_names_are_unique_within_a_tenant(self, store: Store) -> None:
        store.policies.create(Policy(name="p"))
        other = store.policies.create(Policy(name="q"))
        with pytest.raises(ConflictError, match="name"):
            store.policies.create(Policy(name="p"))
        other.name = "p"
        with pytest.raises(ConflictError, match="name"):
            store.policies.update(other)

    def test_one_in_use_stays(self, store: Store) -> None:
        policy = store.policies.create(Policy(name="p"))
        key = a_key(store, policy_id=policy.id)
        with pytest.raises(PolicyInUseError):
            store.policies.delete(policy.id)
        store.keys.delete(key.id)
        store.policies.delete(policy.id)
        for call in (
            lambda: store.policies.get(policy.id),
            lambda: store.policies.get_by_name("default", "p"),
            lambda: store.policies.update(policy),
            lambda: store.policies.delete(policy.id),
        ):
            with pytest.raises(PolicyNotFoundError):
                call()
        with pytest.raises(NotFoundError):
            a_key(store, policy_id=policy.id)


class TestScopes:
    def test_lists_come_by_name_in_pages(self, store: Store) -> None:
        scopes(store, "b", "a", "a:b", "c")
        scopes(store, "a", tenant_id="acme")
        names = [scope.name for scope in store.scopes.list(tenant_id="default")]
        assert names == ["a", "a:b", "b", "c"]
        first = store.scopes.list(limit=3)
        rest = store.scopes.list(limit=9, after=first[-1].id)
        assert [scope.name for scope in [*first, *rest]] == ["a", "a", "a:b", "b", "c"]

    def test_crud_and_names_unique_within_a_tenant(self, store: Store) -> None:
        [scope] = scopes(store, "read", meta={"a": 1})
        assert store.scopes.get(scope.id).to_row() == scope.to_row()
        assert store.scopes.get_by_name("default", "read").id == scope.id
        with pytest.raises(ConflictError, match="name"):
            scopes(store, "read")
        scope.description = "reads"
        store.scopes.update(scope)
        assert store.scopes.get(scope.id).description == "reads"
        store.scopes.delete(scope.id)
        for call in (
            lambda: store.scopes.get(scope.id),
            lambda: store.scopes.get_by_name("default", "read"),
            lambda: store.scopes.update(scope),
            lambda: store.scopes.delete(scope.id),
        ):
            with pytest.raises(ScopeNotFoundError):
                call()

    def test_assigning_is_all_or_nothing_and_may_be_repeated(self, store: Store) -> None:
        scopes(store, "read", "write")
        scopes(store, "admin", tenant_id="acme")
        key = a_key(store)
        with pytest.raises(ScopeNotFoundError) as refused:
            store.scopes.assign_to_key(key.id, ["read", "nope", "admin"])
        assert refused.value.names == ("admin", "nope")
        assert store.scopes.list_by_key(key.id) == []
        store.scopes.assign_to_key(key.id, ["write"])
        store.scopes.assign_to_key(key.id, ["read", "write", "read"])
        assert [scope.name for scope in store.scopes.list_by_key(key.id)] == ["read", "write"]
        with pytest.raises(ScopeNotFoundError):
            store.scopes.remove_from_key(key.id, ["read", "nope"])
        store.scopes.remove_from_key(key.id, ["read"])
        store.scopes.remove_from_key(key.id, ["read"])
        assert [scope.name for scope in store.scopes.list_by_key(key.id)] == ["write"]

    def test_deleting_frees_those_below(self, store: Store) -> None:
        [parent] = scopes(store, "parent")
        [child] = scopes(store, "child", parent="parent")
        scopes(store, "child", parent="parent", tenant_id="acme")
        assert [
            scope.name for scope in store.scopes.list(parent="parent", tenant_id="default")
        ] == ["child"]
        key = a_key(store)
        store.scopes.assign_to_key(key.id, ["parent"])
        store.scopes.delete(parent.id)
        assert store.scopes.get(child.id).parent is None
        assert store.scopes.list_by_key(key.id) == []
        assert len(store.scopes.list(parent="parent")) == 1

    def test_below_is_by_name_and_by_parent_at_any_depth(self, store: Store) -> None:
        scopes(store, "a", "a:b", "a:b:c", "ab", "a.b", "a-b:c", "x", "x:y")
        scopes(store, "p", parent="a:b")
        scopes(store, "q", parent="p")
        scopes(store, "a:z", tenant_id="acme")
        below = store.scopes.below
        assert list(below("default", ["a"])) == ["a", "a:b", "a:b:c", "p", "q"]
        assert list(below("default", ["a:b", "x:y"])) == ["a:b", "a:b:c", "p", "q", "x:y"]
        assert list(below("default", ["a-b"])) == ["a-b:c"]
        assert list(below("default", [])) == list(below("default", ["nope"])) == []
        assert list(below("acme", ["a"])) == ["a:z"]

    def test_a_loop_made_by_hand_ends(self, store: Store) -> None:
        [one] = scopes(store, "one")
        scopes(store, "two", parent="one")
        one.parent = "two"
        store.scopes.update(one)
        assert list(store.scopes.below("default", ["two"])) == ["one", "two"]


segments = st.lists(st.sampled_from(["a", "b", "a.", "a-", "b_"]), min_size=1, max_size=3)
names = segments.map(":".join)


@given(
    st.dictionaries(names, st.none() | names, min_size=1, max_size=8),
    st.sets(names, min_size=1, max_size=3),
)
def test_below_agrees_with_a_plain_search(
    memory: SqliteStore, parents: dict[str, str | None], seed: set[str]
) -> None:
    for scope in memory.scopes.list():
        memory.scopes.delete(scope.id)
    for name, parent in parents.items():
        memory.scopes.create(Scope(name=name, parent=parent))
    granted = set(seed)
    while True:
        more = {
            name
            for name, parent in parents.items()
            if parent in granted or any(name.startswith(f"{above}:") for above in granted)
        }
        if more <= granted:
            break
        granted |= more
    assert list(memory.scopes.below("default", seed)) == sorted(granted & parents.keys())


class TestRotations:
    def test_round_trip_and_lists(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme")
        first = a_rotation(store, key, reason=RotationReason.SCHEDULED, rotated_by="cron")
        second = a_rotation(store, key)
        third = a_rotation(store, other, tenant_id="acme")
        assert store.rotations.get(first.id).to_row() == first.to_row()
        assert store.rotations.get_by_old_hash(first.old_key_hash).id == first.id
        assert ids(store.rotations.list()) == [third.id, second.id, first.id]
        assert ids(store.rotations.list(limit=1, after=third.id)) == [second.id]
        assert ids(store.rotations.list(key_id=key.id)) == [second.id, first.id]
        assert ids(store.rotations.list(tenant_id="acme")) == [third.id]
        assert ids(store.rotations.list(reason=RotationReason.SCHEDULED)) == [first.id]
        assert store.rotations.latest_for_key(key.id).id == second.id

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        key = a_key(store)
        rotation = a_rotation(store, key)
        store.keys.delete(key.id)
        for call in (
            lambda: store.rotations.get(rotation.id),
            lambda: store.rotations.get_by_old_hash(rotation.old_key_hash),
            lambda: store.rotations.latest_for_key(key.id),
            lambda: store.rotations.update(rotation),
        ):
            with pytest.raises(RotationNotFoundError):
                call()
        with pytest.raises(NotFoundError):
            a_rotation(store, key)

    def test_an_old_hash_is_rotated_out_once(self, store: Store) -> None:
        key = a_key(store)
        rotation = a_rotation(store, key)
        with pytest.raises(ConflictError):
            a_rotation(store, key, old_key_hash=rotation.old_key_hash)

    def test_grace(self, store: Store) -> None:
        key, other = a_key(store), a_key(store)
        later = a_rotation(store, key, grace_ends=START + timedelta(hours=2))
        sooner = a_rotation(store, key, grace_ends=START + timedelta(hours=1))
        ended = a_rotation(store, key, grace_ends=START)
        theirs = a_rotation(store, other, grace_ends=START + timedelta(hours=3))
        pending = store.rotations.list_pending_grace
        assert ids(pending(START)) == [sooner.id, later.id, theirs.id]
        assert ids(store.rotations.list_ended_grace(START)) == [ended.id]
        ended.grace_closed = True
        store.rotations.update(ended)
        assert store.rotations.list_ended_grace(START) == []
        assert store.rotations.end_grace(key.id, now=START) == 2
        assert ids(pending(START)) == [theirs.id]
        assert ids(store.rotations.list_ended_grace(START)) == [later.id, sooner.id]


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

    def test_query_counts_and_purges_by_time(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme")
        for hours in range(5):
            store.usages.record(usage(key, created_at=START + timedelta(hours=hours)))
        store.usages.record(usage(other, tenant_id="acme", created_at=START))
        window = {"since": START + timedelta(hours=1), "until": START + timedelta(hours=3)}
        found = store.usages.query(key_id=key.id, **window)
        assert [record.created_at.hour for record in found] == [14, 13]
        assert store.usages.count(**window) == 2
        assert len(store.usages.query(tenant_id="acme")) == 1
        assert len(store.usages.query(limit=4)) == 4
        assert store.usages.purge(START + timedelta(hours=2)) == 3
        assert store.usages.count() == 3
        assert store.usages.daily_count(key.id, START.date()) == 5, "aggregates stay"
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


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=300), st.integers(1, 5))
def test_percentiles_are_within_two_percent(
    memory: SqliteStore, latencies: list[float], batches: int
) -> None:
    key = a_key(memory)
    for batch in range(batches):
        memory.usages.record_batch(
            [usage(key, latency_ms=value, created_at=START) for value in latencies[batch::batches]]
        )
    [day] = memory.usages.aggregate(key_id=key.id)
    assert day.request_count == len(latencies)
    assert day.total_latency == pytest.approx(sum(latencies))
    ordered = sorted(latencies)
    for fraction, found in ((0.5, day.p50_latency), (0.99, day.p99_latency)):
        true = ordered[int(fraction * (len(ordered) - 1))]
        assert found == pytest.approx(true, rel=0.02, abs=1e-6)


class TestTransactions:
    def test_all_or_nothing(self, store: Store) -> None:
        with pytest.raises(KeyNotFoundError), store.transaction():
            a_key(store)
            with store.transaction():
                a_key(store)
            assert store.keys.count() == 2
            store.keys.delete(MISSING[IdPrefix.KEY])
        assert store.keys.count() == 0
        with store.transaction():
            a_key(store)
        assert store.keys.count() == 1

    def test_many_threads(self, store: Store) -> None:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(25):
                    key = a_key(store)
                    with store.transaction():
                        key = store.keys.get(key.id, for_update=True)
                        key.name = "renamed"
                        store.keys.update(key)
                    assert store.keys.get(key.id).name == "renamed"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.keys.count() == 200
