"""Transactions."""

from __future__ import annotations

import threading

import pytest

from keysmith import KeyNotFoundError, Store
from keysmith.ids import IdPrefix
from keysmith.testing.contract.samples import MISSING, a_key


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
