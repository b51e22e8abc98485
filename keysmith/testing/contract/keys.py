"""Keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Environment,
    Key,
    KeyNotFoundError,
    KeyState,
    Policy,
    Store,
    UsageRecord,
)
from keysmith.ids import IdPrefix
from keysmith.testing.contract.samples import (
    MISSING,
    START,
    a_hash,
    a_key,
    a_rotation,
    ids,
    scopes,
    usage,
)


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

    def test_a_request_makes_one_key(self, store: Store) -> None:
        marked, plain = a_key(store, request_token=a_hash()), a_key(store)
        assert (plain.request_token, marked.request_token is None) == (None, False)
        assert store.keys.get_by_request(str(marked.request_token)).id == marked.id
        with pytest.raises(ConflictError):
            a_key(store, request_token=marked.request_token)

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        missing = MISSING[IdPrefix.KEY]
        for call in (
            lambda: store.keys.get(missing),
            lambda: store.keys.get(""),
            lambda: store.keys.get("\ud800\0'--"),
            lambda: store.keys.get_by_hash("00"),
            lambda: store.keys.get_by_prefix("sk", "zzzz"),
            lambda: store.keys.get_by_request(a_hash()),
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
        clashes: tuple[Callable[[], object], ...] = (
            lambda: a_key(store, key_hash=first.key_hash),
            lambda: store.keys.update(Key(**second.to_row() | {"key_hash": first.key_hash})),
        )
        for clash in clashes:
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
        by_value: Any = "revoked"
        assert store.keys.update_state(a_key(store).id, by_value, now=START).revoked_at == START

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
        wanted: dict[str, Any] = {
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

    def test_list_expired_may_be_of_one_tenant_and_of_so_many(self, store: Store) -> None:
        later = a_key(store, expires_at=START)
        sooner = a_key(store, expires_at=START - timedelta(days=1), app_id="shop")
        theirs = a_key(store, expires_at=START - timedelta(hours=1), tenant_id="acme")
        assert ids(store.keys.list_expired(START)) == [sooner.id, theirs.id, later.id]
        assert ids(store.keys.list_expired(START, tenant_id="acme")) == [theirs.id]
        assert ids(store.keys.list_expired(START, tenant_id="default", limit=1)) == [sooner.id]
        assert ids(store.keys.list_expired(START, app_id="shop")) == [sooner.id]

    def test_unused_are_living_keys_that_are_older(self, store: Store) -> None:
        before, after = START - timedelta(microseconds=1), START
        never = a_key(store, created_at=before)
        long_ago = a_key(store, created_at=before, last_used_at=before, tenant_id="acme")
        a_key(store, created_at=before, last_used_at=after)
        a_key(store, created_at=after)
        a_key(store, created_at=before, state=KeyState.REVOKED)
        a_key(store, created_at=before, expires_at=START)
        suspended = a_key(store, created_at=before, state=KeyState.SUSPENDED, app_id="shop")
        found = partial(store.keys.list, unused_since=START)
        assert ids(found()) == [suspended.id, long_ago.id, never.id]
        assert ids(found(tenant_id="acme")) == [long_ago.id]
        assert ids(found(tenant_id="default", app_id="shop")) == [suspended.id]
        assert ids(found(limit=1, after=suspended.id)) == [long_ago.id]
        assert store.keys.count(unused_since=START) == 3

    def test_list_due_for_rotation_goes_by_the_policy(self, store: Store) -> None:
        def policy(days: int | None, tenant_id: str = "default") -> str:
            period = None if days is None else timedelta(days=days)
            made = Policy(name=f"{days}", tenant_id=tenant_id, rotation_period=period)
            return store.policies.create(made).id

        monthly, daily, never = policy(30), policy(1), policy(None)
        theirs = policy(30, "acme")
        old = START - timedelta(days=30)
        due = a_key(store, policy_id=monthly, created_at=old)
        longer = a_key(store, policy_id=daily, created_at=old, app_id="shop")
        other = a_key(store, policy_id=theirs, created_at=old - timedelta(days=1), tenant_id="acme")
        a_key(store, policy_id=monthly, created_at=old + timedelta(microseconds=1))
        a_key(store, policy_id=monthly, created_at=old, rotated_at=START)
        a_key(store, policy_id=monthly, created_at=old, state=KeyState.REVOKED)
        a_key(store, policy_id=never, created_at=old)
        a_key(store, created_at=old)
        found = store.keys.list_due_for_rotation
        assert ids(found(START)) == [longer.id, other.id, due.id]
        assert ids(found(START, tenant_id="acme")) == [other.id]
        assert ids(found(START, tenant_id="default")) == [longer.id, due.id]
        assert ids(found(START, app_id="shop")) == [longer.id]
        assert ids(store.keys.list(rotation_due_by=START)) == [other.id, longer.id, due.id]
        assert ids(store.keys.list(rotation_due_by=START, policy_id=daily)) == [longer.id]

    def test_rotation_due_by_some_moment(self, store: Store) -> None:
        hour, century = timedelta(hours=1), timedelta(days=36500)
        hourly = [Policy(name=f"{n}", rotation_period=hour) for n in range(2)]
        for policy in hourly:
            store.policies.create(policy)
        ages = Policy(name="ages", rotation_period=30 * century)
        store.policies.create(ages)
        due = partial(store.keys.list, rotation_due_by=START + hour)
        assert due() == []
        first, second = (a_key(store, policy_id=p.id, created_at=START) for p in hourly)
        a_key(store, policy_id=ages.id, created_at=START)
        a_key(store, policy_id=hourly[0].id, created_at=START, expires_at=START + hour)
        assert ids(due()) == [second.id, first.id]
        assert ids(due(limit=1)) == [second.id]
        assert ids(due(after=second.id)) == [first.id]
        count = store.keys.count
        assert count(rotation_due_by=START + hour, policy_id=hourly[0].id) == 1
        assert count(rotation_due_by=START + hour - timedelta(microseconds=1)) == 0
        assert ids(due(unused_since=START + hour, expires_by=START + hour)) == []

    def test_no_policy_rotates(self, store: Store) -> None:
        policy = store.policies.create(Policy(name="never"))
        a_key(store, policy_id=policy.id, created_at=START - timedelta(days=1))
        assert store.keys.list(rotation_due_by=START) == []

    def test_expires_by_finds_what_no_state_has_noted(self, store: Store) -> None:
        later = START + timedelta(microseconds=1)
        first, second = (a_key(store, expires_at=at) for at in (START, later))
        a_key(store)
        a_key(store, expires_at=START, state=KeyState.EXPIRED)
        assert ids(store.keys.list(expires_by=START)) == [first.id]
        assert ids(store.keys.list(expires_by=later)) == [second.id, first.id]
        assert store.keys.count(expires_by=later, state=KeyState.ACTIVE) == 2
        with pytest.raises(ValidationError):
            store.keys.list(expires_by=START.replace(tzinfo=None))

    def test_delete_by_tenant(self, store: Store) -> None:
        for tenant in ("a", "a", "b"):
            a_key(store, tenant_id=tenant)
        assert store.keys.delete_by_tenant("a") == 2
        assert store.keys.delete_by_tenant("a") == 0
        assert store.keys.count() == 1
