"""Transactions."""

from __future__ import annotations

import threading
import weakref
from functools import partial

import pytest

from keysmith import KeyNotFoundError, Store, StoreUnavailableError
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

    def test_callbacks_wait_for_the_outermost_commit(self, store: Store) -> None:
        called: list[str] = []

        def call(name: str) -> None:
            store.after_commit(lambda: called.append(f"{name}, {store.keys.count()} keys"))

        call("at once")
        assert called == ["at once, 0 keys"]
        with store.transaction():
            call("first")
            with pytest.raises(LookupError), store.transaction():
                call("undone")
                raise LookupError
            with store.transaction():
                a_key(store)
                call("second")
            assert len(called) == 1
        assert called[1:] == ["first, 1 keys", "second, 1 keys"]
        with pytest.raises(LookupError), store.transaction():
            call("undone")
            raise LookupError
        with store.transaction():
            a_key(store)
        with store.snapshot():
            call("reading")
        assert called[3:] == ["reading, 2 keys"]

    def test_callbacks_in_order_come_in_the_order_of_the_commits(self, store: Store) -> None:
        called: list[int] = []

        def work() -> None:
            for _ in range(10):
                with store.transaction():
                    a_key(store)
                    number = store.keys.count()
                    store.after_commit(partial(called.append, number), in_order=True)

        def let_others_work() -> None:
            others = [threading.Thread(target=work) for _ in range(4)]
            for other in others:
                other.start()
            for other in others:
                other.join()

        with store.transaction():
            a_key(store)
            store.after_commit(let_others_work)
            store.after_commit(partial(called.append, 1), in_order=True)
        assert called == list(range(1, 42))

    def test_closing_lets_others_finish_first(self, store: Store) -> None:
        class Finisher:
            def __init__(self, error: Exception | None = None) -> None:
                self.error = error
                self.written = ""

            def finish(self) -> None:
                self.written = a_key(store).id
                if self.error is not None:
                    raise self.error

        gone, *finishers = Finisher(), Finisher(LookupError()), Finisher(OSError()), Finisher()
        for finisher in (gone, *finishers):
            store.before_close(finisher.finish)
        forgotten = weakref.ref(gone)
        del gone, finisher
        assert forgotten() is None, "whoever is gone need not finish"
        with pytest.raises(LookupError):
            store.close()
        assert all(finisher.written for finisher in finishers)
        store.close()
        with pytest.raises(StoreUnavailableError):
            store.keys.count()
