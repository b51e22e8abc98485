"""Plugins on threads of their own: to nobody's harm, in order, and told before the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keysmith import (
    Engine,
    InvalidKeyError,
    KeyCreate,
    Plugin,
    SqliteStore,
    StoreUnavailableError,
)
from keysmith.engine import listeners
from keysmith.engine.hooks import HOOKS, Hooks
from keysmith.engine.listeners import Listener, finish
from tests.conftest import Recorder, create
from tests.recording import PROMPT, wait_until

pytestmark = pytest.mark.usefixtures("unhurried")


class Notes(Plugin):
    """Notes the names of keys that are created and revoked, and the threads that tell of it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.threads: set[threading.Thread] = set()

    def on_key_created(self, key: Any) -> None:
        self.notes.append(key.name)
        self.threads.add(threading.current_thread())

    def on_shutdown(self) -> None:
        self.notes.append("shutdown")


class Hanging(Notes):
    """Hangs in its first hook, until let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.let_go = threading.Event(), threading.Event()

    def on_key_created(self, key: Any) -> None:
        self.entered.set()
        self.let_go.wait()
        super().on_key_created(key)


class Raising(Notes):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_key_created(self, key: Any) -> None:
        super().on_key_created(key)
        raise self.error


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    plugin = Hanging()
    yield plugin
    plugin.let_go.set()


class TestHarm:
    def test_a_plugin_that_hangs_holds_up_nobody(
        self, memory: SqliteStore, hanging: Hanging
    ) -> None:
        other = Notes()
        engine = Engine(memory, plugins=[hanging, other])
        for number in range(20):
            create(engine, str(number))
        wait_until(lambda: len(other.notes) == 20)
        assert hanging.entered.wait(PROMPT)
        assert hanging.notes == []
        hanging.let_go.set()
        engine.flush()
        assert hanging.notes == other.notes == [str(number) for number in range(20)]

    @pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt()])
    def test_a_plugin_that_raises_goes_on_hearing(
        self, memory: SqliteStore, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        raising, other = Raising(error), Notes()
        engine = Engine(memory, plugins=[raising, other])
        create(engine, "a")
        create(engine, "b")
        engine.flush()
        assert raising.notes == other.notes == ["a", "b"]
        assert len(raising.threads) == 1
        assert [record.getMessage() for record in caplog.records] == [
            "A plugin failed in on_key_created"
        ] * 2
        assert caplog.records[0].exc_info

    @pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3)])
    def test_one_that_raises_inline_harms_neither_call_nor_the_next(
        self,
        memory: SqliteStore,
        error: BaseException,
        recorder: Recorder,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        class Inline(Raising):
            inline = True

        inline = Inline(error)
        assert create(Engine(memory, plugins=[inline, recorder])).raw_key
        assert inline.threads == {threading.current_thread()}
        assert recorder.names() == ["on_key_created"]
        assert "on_key_created" in caplog.text

    def test_an_interrupt_from_the_keyboard_gets_through_inline_ones(
        self, memory: SqliteStore
    ) -> None:
        class Inline(Raising):
            inline = True

        with pytest.raises(KeyboardInterrupt):
            create(Engine(memory, plugins=[Inline(KeyboardInterrupt())]))

    def test_one_that_sleeps_is_waited_for_by_nobody(self, memory: SqliteStore) -> None:
        created = threading.Event()

        class Slow(Notes):
            def on_key_created(self, key: Any) -> None:
                created.wait(PROMPT)  # however slow the calls are
                time.sleep(0.05)
                super().on_key_created(key)

        slow, other = Slow(), Notes()
        engine = Engine(memory, plugins=[slow, other])
        for _ in range(10):
            create(engine)
        assert len(slow.notes) < 10
        created.set()
        wait_until(lambda: len(other.notes) == 10)
        engine.flush()
        assert len(slow.notes) == 10

    def test_a_full_queue_drops_the_newest_and_counts_them(
        self,
        hanging: Hanging,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(listeners, "QUEUE_LIMIT", 10)
        other = Notes()
        hooks = Hooks([hanging, other])
        key = KeyCreate(name="first")
        hooks.fire("on_key_created", key)
        hanging.entered.wait()
        for number in range(25):
            hooks.fire("on_key_created", KeyCreate(name=str(number)))
            wait_until(lambda expected=number + 2: len(other.notes) == expected)
            assert len(caplog.records) == (number >= 10), "told at the first that is dropped"
        [full] = [record.getMessage() for record in caplog.records]
        assert "Hanging does not keep up: 10 events wait" in full
        hanging.let_go.set()
        assert hooks.flush()
        assert hanging.notes == ["first", *map(str, range(10))]
        wait_until(lambda: len(caplog.records) == 2)
        assert caplog.records[1].getMessage() == ("Hanging has caught up; it has missed 15 events.")
        hooks.fire("on_key_created", KeyCreate(name="later"))
        hooks.flush()
        assert hanging.notes[-1] == "later"

    def test_the_limit_is_ten_thousand(self) -> None:
        assert listeners.QUEUE_LIMIT == 10_000

    def test_flush_waits_only_so_long(
        self, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(listeners, "QUEUE_LIMIT", 2)
        hooks = Hooks([hanging, Notes()])
        assert hooks.flush(0), "nothing has happened"
        hooks.fire("on_key_created", KeyCreate(name="n"))
        for _ in range(10):
            assert not hooks.flush(0.01)
        [listener, _] = hooks._listeners
        assert listener._queue.qsize() <= 4, "waiting in vain adds up to nothing"

    def test_close_waits_only_so_long(
        self,
        hanging: Hanging,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        other = Notes()
        hooks = Hooks([hanging, other])
        for name in "abc":
            hooks.fire("on_key_created", KeyCreate(name=name))
        assert hanging.entered.wait(PROMPT)
        [_, of_other] = hooks._listeners
        left: list[float] = []

        def join(listener: Listener, deadline: float) -> None:
            left.append(deadline - time.monotonic())
            if listener is of_other:  # which ends at once, but for a machine that is busy
                assert listener._thread is not None
                listener._thread.join(PROMPT)
            finish_one(listener, deadline)

        finish_one = Listener.join
        monkeypatch.setattr(Listener, "join", join)
        hooks.close(0.1)
        assert len(left) == 2
        assert max(left) < 1
        assert other.notes == ["a", "b", "c", "shutdown"]
        [record] = caplog.records
        assert record.getMessage() == (
            "Hanging does not finish. Its thread is left alone, with 3 events waiting and "
            "0 dropped."
        )
        hanging.let_go.set()
        wait_until(lambda: hanging.notes == ["a", "b", "c", "shutdown"])

    def test_a_plugin_may_flush_and_close_in_a_hook(self, tmp_path: Path) -> None:
        """One that waited for itself would do so for longer than this does."""

        class Meddler(Notes):
            def on_key_created(self, key: Any) -> None:
                engine.flush()
                engine.close()
                self.notes.append("closed")

        store = SqliteStore(tmp_path / "keys.db")
        store.migrate()
        meddler = Meddler()
        engine = Engine(store, plugins=[meddler])
        create(engine)
        wait_until(lambda: meddler.notes == ["closed", "shutdown"])
        with pytest.raises(StoreUnavailableError):
            engine.health()

    def test_no_thread_to_be_had(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        notes = Notes()
        hooks = Hooks([notes])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            hooks.fire("on_key_created", KeyCreate(name="a"))
        assert "can't start new thread" in caplog.text
        hooks.fire("on_key_created", KeyCreate(name="b"))
        assert hooks.flush()
        assert notes.notes == ["a", "b"]


class TestDispatch:
    def test_each_has_one_thread_of_its_own_from_the_first_event_on(
        self, memory: SqliteStore
    ) -> None:
        others = set(threading.enumerate())

        def threads() -> list[threading.Thread]:
            ours = set(threading.enumerate()) - others
            return [thread for thread in ours if thread.name == "keysmith Notes"]

        one, two = Notes(), Notes()
        engine = Engine(memory, plugins=[one, two, Plugin()])
        assert not threads()
        for tenant in ("a", "b"):
            create(engine.for_tenant(tenant))
        engine.flush()
        assert len(threads()) == 2
        assert all(thread.daemon for thread in one.threads | two.threads)
        assert len(one.threads | two.threads) == 2
        engine.close()
        assert not threads()

    def test_many_threads_may_fire_at_once(self) -> None:
        notes = Notes()
        hooks = Hooks([notes])
        together = threading.Barrier(8)

        def fire(thread: int) -> None:
            together.wait()
            for number in range(50):
                hooks.fire("on_key_created", KeyCreate(name=f"{thread}:{number:02}"))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fire, range(8)))
        assert hooks.flush()
        assert len(notes.threads) == 1
        assert len(notes.notes) == 400
        for thread in range(8):
            own = [note for note in notes.notes if note.startswith(f"{thread}:")]
            assert own == [f"{thread}:{number:02}" for number in range(50)]

    def test_inline_ones_hear_in_the_order_given(self, memory: SqliteStore) -> None:
        heard: list[str] = []

        class Inline(Plugin):
            inline = True

            def __init__(self, name: str) -> None:
                self.name = name

            def on_key_created(self, key: Any) -> None:
                heard.append(self.name)

            def on_shutdown(self) -> None:
                heard.append(f"{self.name} ends")

        engine = Engine(memory, plugins=[Inline("a"), Inline("b")])
        create(engine)
        assert heard == ["a", "b"]
        engine.close()
        engine.close()
        assert heard == ["a", "b", "a ends", "b ends"]

    def test_after_the_end_nobody_is_told(self, memory: SqliteStore, recorder: Recorder) -> None:
        notes = Notes()
        engine = Engine(memory, plugins=[notes, recorder])
        engine.close()
        with pytest.raises(StoreUnavailableError):
            create(engine)
        assert notes.notes == ["shutdown"]
        assert recorder.names() == ["on_shutdown"]

    def test_what_nobody_overrides_is_not_even_copied(self) -> None:
        hooks = Hooks([Notes()])
        assert [name for name in HOOKS if hooks.hears(name)] == ["on_key_created", "on_shutdown"]

        class Uncopyable(KeyCreate):
            def model_copy(self, **_: Any) -> Any:
                raise AssertionError

        hooks.fire("on_key_create_failed", Uncopyable(name="n"), InvalidKeyError())

    def test_a_plugin_may_decline_what_it_overrides(self, memory: SqliteStore) -> None:
        class Picky(Notes):
            def hears(self, hook: str) -> bool:
                return hook != "on_key_created" and super().hears(hook)

        picky = Picky()
        engine = Engine(memory, plugins=[picky])
        create(engine)
        engine.close()
        assert picky.notes == ["shutdown"]

    def test_a_thread_ends_with_an_engine_that_nobody_closed(self, memory: SqliteStore) -> None:
        notes = Notes()
        engine = Engine(memory, plugins=[notes])
        create(engine)
        engine.flush()
        [thread] = notes.threads
        del engine
        gc.collect()
        thread.join(PROMPT)
        assert not thread.is_alive()
        assert notes.notes == ["n"]

    @pytest.mark.parametrize("wrong", [Notes, object(), "audit"])
    def test_what_is_no_plugin_is_refused_at_once(self, memory: SqliteStore, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"instances of subclasses of keysmith\.Plugin"):
            Engine(memory, plugins=[wrong])

    def test_coroutines_are_refused_at_once(self, memory: SqliteStore) -> None:
        class Async(Plugin):
            async def on_key_created(self, key: Any) -> None:  # type: ignore[override]
                ...

        with pytest.raises(TypeError, match="coroutine"):
            Engine(memory, plugins=[Async()])


class TestProcesses:
    """In processes of their own, as forking and ending have to be seen from outside."""

    @staticmethod
    def run(script: str, folder: Path) -> str:
        result = subprocess.run(
            [sys.executable, "-c", PRELUDE + script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_a_fork_has_threads_of_its_own(self, tmp_path: Path) -> None:
        shown = self.run(FORKING, tmp_path)
        assert sorted(shown.split()) == ["child:in_child", "parent:in_parent", "parent:pending"]

    def test_what_happened_before_the_end_is_told(self, tmp_path: Path) -> None:
        assert self.run(FORGETFUL + "use()", tmp_path).split() == ["told:a", "told:b"]

    def test_nor_is_it_lost_at_the_end_of_a_worker(self, tmp_path: Path) -> None:
        assert self.run(FORGETFUL + WORKER, tmp_path).split() == ["told:a", "told:b"]

    def test_a_plugin_that_hangs_does_not_hold_up_the_end(self, tmp_path: Path) -> None:
        began = time.monotonic()
        assert self.run(STUCK, tmp_path).split() == ["closed"]
        assert time.monotonic() - began < 30


PRELUDE = """
import os, sys, threading, time
from keysmith import Engine, KeyCreate, Plugin, SqliteStore
from keysmith.engine import listeners

listeners.PATIENCE = 30.0  # of the end of the process

def say(text):
    os.write(1, f"{text}\\n".encode())

def opened(*plugins):
    store = SqliteStore("keys.db")
    store.migrate()
    return Engine(store, plugins=plugins)
"""

FORKING = """
entered, go = threading.Event(), threading.Event()

class Watcher(Plugin):
    def on_key_revoked(self, key, reason):
        entered.set()
        go.wait()

    def on_key_created(self, key):
        say(f"{role}:{key.name}")

role = "parent"
engine = opened(Watcher())
key = engine.create_key(KeyCreate(name="pending")).key
engine.flush()
engine.revoke_key(key.id)
entered.wait()
engine._context.hooks.fire("on_key_created", KeyCreate(name="in_parent"))
child = os.fork()
if child == 0:
    role = "child"
    engine.store.db.dispose(close=False)
    engine.create_key(KeyCreate(name="in_child"))
    engine.flush()
    engine.close()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
go.set()
engine.close()
"""

FORGETFUL = """
class Slow(Plugin):
    def on_key_created(self, key):
        time.sleep(0.05)
        say(f"told:{key.name}")

def use():
    engine = opened(Slow())
    for name in "ab":
        engine.create_key(KeyCreate(name=name))
"""

WORKER = """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=use)
worker.start()
worker.join()
assert worker.exitcode == 0
"""

STUCK = """
class Stuck(Plugin):
    def on_key_created(self, key):
        time.sleep(1000)

engine, forgotten = opened(Stuck()), opened(Stuck())
for each in (engine, forgotten):
    each.create_key(KeyCreate(name="n"))
engine._context.hooks.close(timeout=0.1)
listeners.PATIENCE = 0.1
say("closed")
"""


def test_a_listener_without_events_has_nothing_to_wait_for() -> None:
    assert Listener("idle").mark().is_set()


def test_what_was_told_last_is_not_kept() -> None:
    listener, heard = Listener("idle"), threading.Event()
    told = Recorder()
    kept = weakref.ref(told)
    listener.tell("on_key_created", lambda _: heard.set(), (told,))
    del told
    assert heard.wait(PROMPT)
    deadline = time.monotonic() + PROMPT
    while kept() is not None and time.monotonic() < deadline:
        gc.collect()
    assert kept() is None
    finish({listener: None}, PROMPT)
