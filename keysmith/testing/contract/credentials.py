"""What validation and limits stand on: credentials, their version, and counters."""

from __future__ import annotations

import threading
from array import array
from datetime import timedelta

import pytest

from keysmith import KeyNotFoundError, KeyPublic, Policy, PolicyPublic, RotationPublic, Store
from keysmith.testing.contract.samples import START, a_hash, a_key, a_rotation, scopes


class TestCredentials:
    def test_an_unknown_hash_is_not_found(self, store: Store) -> None:
        with pytest.raises(KeyNotFoundError):
            store.credentials.find(a_hash())

    def test_a_key_comes_with_its_policy_and_its_scopes(self, store: Store) -> None:
        policy = store.policies.create(
            Policy(name="p", allowed_scopes=["a", "c"], grace_period=timedelta(milliseconds=7))
        )
        key = a_key(
            store,
            policy_id=policy.id,
            meta={"a": [{"b": None}]},
            expires_at=START,
            last_used_at=START,
        )
        scopes(store, "a", "a:b", "b", "c")
        scopes(store, "below", parent="a:b")
        store.scopes.assign_to_key(key.id, ["a", "b"])
        found = store.credentials.find(key.key_hash)
        assert found.key == KeyPublic.model_validate(store.keys.get(key.id))
        assert found.policy == PolicyPublic.model_validate(store.policies.get(policy.id))
        assert found.rotation is None
        assert found.granted == frozenset({"a", "a:b", "b", "below"})
        assert found.allowed == frozenset({"a", "a:b", "below", "c"})

    def test_a_key_may_have_neither(self, store: Store) -> None:
        found = store.credentials.find(a_key(store).key_hash)
        assert (found.policy, found.granted, found.allowed) == (None, frozenset(), None)

    def test_an_outgoing_secret_stands_for_its_key(self, store: Store) -> None:
        key = a_key(store)
        rotation = a_rotation(store, key)
        found = store.credentials.find(rotation.old_key_hash)
        assert found.key.id == key.id
        assert found.rotation == RotationPublic.model_validate(store.rotations.get(rotation.id))
        assert not found.grace_closed
        rotation.grace_closed = True
        store.rotations.update(rotation)
        assert store.credentials.find(rotation.old_key_hash).grace_closed

    def test_the_version_moves_with_every_commit(self, store: Store) -> None:
        seen = {store.credentials.version()}
        if seen == {None}:
            pytest.skip("this store cannot tell whether it has changed, and need not")
        assert store.credentials.version() in seen
        for _ in range(3):
            a_key(store)
            version = store.credentials.version()
            assert version not in seen
            assert store.credentials.version() == version
            seen.add(version)

    def test_within_a_transaction_nothing_earlier_counts(self, store: Store) -> None:
        key = a_key(store)
        with store.transaction():
            assert store.in_transaction
            assert store.credentials.version() is None
            key.name = "renamed"
            store.keys.update(key)
            assert store.credentials.find(key.key_hash).key.name == "renamed"
        with store.snapshot():
            assert store.in_transaction
            assert store.credentials.version() is None
        assert not store.in_transaction


class TestCounters:
    def test_they_begin_as_zeros_and_are_kept(self, store: Store) -> None:
        def add(cells: array[int]) -> int:
            cells[0] += 1
            cells[-1] -= 2**62
            return len(cells)

        assert store.counters.update("a", add) == 80
        store.counters.update("b", lambda cells: cells.__setitem__(0, 9))
        assert store.counters.update("a", list) == [1, *[0] * 78, -(2**62)]

    def test_what_raises_changes_nothing(self, store: Store) -> None:
        def fail(cells: array[int]) -> None:
            cells[0] = 1
            raise LookupError

        with pytest.raises(LookupError):
            store.counters.update("a", fail)
        assert store.counters.update("a", sum) == 0

    def test_many_threads_count_together(self, store: Store) -> None:
        def add(cells: array[int]) -> None:
            cells[5] += 1

        def work() -> None:
            for _ in range(200):
                store.counters.update("a", add)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.counters.update("a", lambda cells: cells[5]) == 1600
