"""How plugins are told: each of its events once, after the commit, and to nobody's harm."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keysmith import (
    CreatedKey,
    Engine,
    Environment,
    Hasher,
    InvalidKeyError,
    KeyCreate,
    KeyExpiredError,
    KeyGenerator,
    KeyNotFoundError,
    KeyRevokedError,
    KeysmithError,
    KeyState,
    KeyUpdate,
    Plugin,
    PolicyCreate,
    PolicyNotFoundError,
    PolicyUpdate,
    ScopeNotFoundError,
    SqliteStore,
    StoreUnavailableError,
    TenantMismatchError,
)
from keysmith.engine import listeners
from keysmith.engine.hooks import HOOKS, Hooks
from keysmith.engine.keepsakes import keepsake
from keysmith.engine.listeners import Listener, finish
from keysmith.raw_keys import mask
from tests.conftest import START, Recorder, TurnableClock
from tests.plugin_helpers import PROMPT, wait_until


class Scene:
    """An engine on a file, its clock, and a key with a policy to do things with."""

    def __init__(self, path: Path, clock: TurnableClock) -> None:
        self.clock = clock
        self.engine = Engine(SqliteStore(path), clock=clock)
        self.created = self.create()
        self.policy = self.engine.create_policy(PolicyCreate(name="before"))

    @property
    def key_id(self) -> str:
        return self.created.key.id

    def create(self, **fields: Any) -> CreatedKey:
        return self.engine.create_key(KeyCreate(name="n", **fields))

    def validate(self, raw_key: str | None = None) -> None:
        self.engine.validate_key(raw_key or self.created.raw_key)

    def rotate_out(self) -> str:
        """A raw key whose grace period is over."""
        self.engine.rotate_key(self.key_id, grace=timedelta(0))
        return self.created.raw_key

    def expire(self) -> None:
        self.create(expires_at=self.clock.now + timedelta(hours=1))
        self.clock.turn(hours=1)
        assert self.engine.cleanup_expired_keys() == 1


def state(store: SqliteStore, scene: Scene) -> KeyState:
    return store.keys.get(scene.key_id).state


def refused(error: type[Exception], deed: Callable[[Scene], object]) -> Callable[[Scene], None]:
    def call(scene: Scene) -> None:
        with pytest.raises(error):
            deed(scene)

    return call


Deed = Callable[[Scene], object]
Seen = Callable[[SqliteStore, Scene], object]

EVENTS: dict[str, tuple[Deed, Deed, Seen, Deed | None]] = {
    # hook: (what goes before, what fires it, what is to be seen in the store by then,
    #        the same call where it fails; None where there is no such call)
    "on_key_created": (
        lambda _: None,
        lambda s: s.create(),
        lambda store, _: store.keys.count() == 2,
        refused(ScopeNotFoundError, lambda s: s.create(scopes=["nope"])),
    ),
    "on_key_create_failed": (
        lambda _: None,
        refused(PolicyNotFoundError, lambda s: s.create(policy_id="nope")),
        lambda store, _: store.keys.count() == 1,
        None,
    ),
    "on_key_updated": (
        lambda _: None,
        lambda s: s.engine.update_key(s.key_id, KeyUpdate(name="after")),
        lambda store, s: store.keys.get(s.key_id).name == "after",
        refused(
            PolicyNotFoundError,
            lambda s: s.engine.update_key(s.key_id, KeyUpdate(policy_id="nope")),
        ),
    ),
    "on_key_scopes_changed": (
        lambda s: s.engine.ensure_scopes(["a", "b"]),
        lambda s: s.engine.assign_scopes(s.key_id, ["a", "b"]),
        lambda store, s: len(store.scopes.list_by_key(s.key_id)) == 2,
        refused(ScopeNotFoundError, lambda s: s.engine.remove_scopes(s.key_id, ["a", "nope"])),
    ),
    "on_key_deleted": (
        lambda _: None,
        lambda s: s.engine.delete_key(s.key_id),
        lambda store, _: store.keys.count() == 0,
        refused(KeyNotFoundError, lambda s: s.engine.delete_key(s.key_id)),
    ),
    "on_key_validated": (
        lambda _: None,
        lambda s: s.validate(),
        state,
        refused(InvalidKeyError, lambda s: s.validate("nope")),
    ),
    "on_key_validation_failed": (
        lambda _: None,
        refused(InvalidKeyError, lambda s: s.validate("nope")),
        state,
        lambda s: s.validate(),
    ),
    "on_validation_timed": (lambda _: None, lambda s: s.validate(), state, None),
    "on_key_rotated": (
        lambda _: None,
        lambda s: s.engine.rotate_key(s.key_id),
        lambda store, s: store.rotations.latest_for_key(s.key_id),
        refused(ValidationError, lambda s: s.engine.rotate_key(s.key_id, reason="nope")),
    ),
    "on_rotated_key_reused": (
        lambda s: s.rotate_out(),
        refused(KeyRevokedError, lambda s: s.validate()),
        lambda store, s: store.rotations.latest_for_key(s.key_id),
        refused(InvalidKeyError, lambda s: s.validate("nope")),
    ),
    "on_grace_ended": (
        lambda s: s.rotate_out(),
        lambda s: s.engine.cleanup_grace_expired(),
        lambda store, s: store.rotations.latest_for_key(s.key_id).grace_closed,
        lambda s: s.engine.cleanup_grace_expired(),
    ),
    "on_key_revoked": (
        lambda _: None,
        lambda s: s.engine.revoke_key(s.key_id),
        lambda store, s: state(store, s) is KeyState.REVOKED,
        refused(KeysmithError, lambda s: s.engine.revoke_key(s.key_id)),
    ),
    "on_key_suspended": (
        lambda _: None,
        lambda s: s.engine.suspend_key(s.key_id),
        lambda store, s: state(store, s) is KeyState.SUSPENDED,
        refused(KeysmithError, lambda s: s.engine.suspend_key(s.key_id)),
    ),
    "on_key_reactivated": (
        lambda s: s.engine.suspend_key(s.key_id),
        lambda s: s.engine.reactivate_key(s.key_id),
        lambda store, s: state(store, s) is KeyState.ACTIVE,
        refused(KeysmithError, lambda s: s.engine.reactivate_key(s.key_id)),
    ),
    "on_key_expired": (
        lambda _: None,
        lambda s: s.expire(),
        lambda store, _: store.keys.count(state=KeyState.EXPIRED) == 1,
        lambda s: s.engine.cleanup_expired_keys(),
    ),
    "on_policy_created": (
        lambda _: None,
        lambda s: s.engine.create_policy(PolicyCreate(name="p")),
        lambda store, _: store.policies.get_by_name("default", "p"),
        refused(KeysmithError, lambda s: s.engine.create_policy(PolicyCreate(name="p"))),
    ),
    "on_policy_updated": (
        lambda _: None,
        lambda s: s.engine.update_policy(s.policy.id, PolicyUpdate(name="after")),
        lambda store, _: store.policies.get_by_name("default", "after"),
        refused(
            PolicyNotFoundError, lambda s: s.engine.update_policy("nope", PolicyUpdate(name="x"))
        ),
    ),
    "on_policy_deleted": (
        lambda _: None,
        lambda s: s.engine.delete_policy(s.policy.id),
        lambda store, _: store.policies.count() == 0,
        refused(PolicyNotFoundError, lambda s: s.engine.delete_policy(s.policy.id)),
    ),
    "on_shutdown": (
        lambda _: None,
        lambda s: s.engine.close(),
        lambda store, _: store.keys.count() == 1,
        lambda s: s.engine.close(),
    ),
}

ELSEWHERE = {"on_key_rate_limited", "on_key_quota_exceeded"}
"""Hooks of limits, which `test_limited_validation.py` is about."""


def test_the_table_has_every_hook() -> None:
    assert set(EVENTS) | ELSEWHERE == set(HOOKS)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "threaded"])
@pytest.mark.parametrize("hook", EVENTS)
def test_each_fires_once_after_the_commit_and_not_when_the_call_fails(
    hook: str, inline: bool, tmp_path: Path, clock: TurnableClock
) -> None:
    before, deed, seen, failing = EVENTS[hook]
    with SqliteStore(tmp_path / "keys.db") as second:
        second.migrate()
        events: list[object] = []

        def note(_: Plugin, *arguments: object) -> None:
            events.append(seen(second, scene))

        watcher = type("Watcher", (Plugin,), {"inline": inline, hook: note})
        scene = Scene(tmp_path / "keys.db", clock)
        before(scene)
        scene.engine.close()
        scene.engine = Engine(SqliteStore(tmp_path / "keys.db"), clock=clock, plugins=[watcher()])
        deed(scene)
        scene.engine.flush()
        assert len(events) == 1
        assert events[0], "the change could be read elsewhere"
        if failing is not None:
            failing(scene)
            scene.engine.flush()
            assert len(events) == 1
        scene.engine.close()


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


def create(engine: Engine, name: str = "n") -> CreatedKey:
    return engine.create_key(KeyCreate(name=name))


class TestHarm:
    def test_a_plugin_that_hangs_holds_up_nobody(
        self, memory: SqliteStore, hanging: Hanging
    ) -> None:
        other = Notes()
        engine = Engine(memory, plugins=[hanging, other])
        for number in range(20):
            create(engine, str(number))
        wait_until(lambda: len(other.notes) == 20)
        assert hanging.entered.is_set()
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
        class Slow(Notes):
            def on_key_created(self, key: Any) -> None:
                time.sleep(0.05)
                super().on_key_created(key)

        slow, other = Slow(), Notes()
        engine = Engine(memory, plugins=[slow, other])
        for _ in range(10):
            create(engine)
        assert len(slow.notes) < 10
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
        self, hanging: Hanging, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = Notes()
        hooks = Hooks([hanging, other])
        for name in "abc":
            hooks.fire("on_key_created", KeyCreate(name=name))
        began = time.monotonic()
        hooks.close(0.1)
        assert time.monotonic() - began < listeners.PATIENCE
        assert other.notes == ["a", "b", "c", "shutdown"]
        [record] = caplog.records
        assert record.getMessage() == (
            "Hanging does not finish. Its thread is left alone, with 3 events waiting and "
            "0 dropped."
        )
        hanging.let_go.set()
        wait_until(lambda: hanging.notes == ["a", "b", "c", "shutdown"])

    def test_a_plugin_may_flush_and_close_in_a_hook(self, tmp_path: Path) -> None:
        class Meddler(Notes):
            def on_key_created(self, key: Any) -> None:
                engine.flush()
                engine.close()
                self.notes.append("closed")

        store = SqliteStore(tmp_path / "keys.db")
        store.migrate()
        meddler = Meddler()
        engine = Engine(store, plugins=[meddler])
        began = time.monotonic()
        create(engine)
        wait_until(lambda: meddler.notes == ["closed", "shutdown"])
        assert time.monotonic() - began < listeners.PATIENCE
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
            timeout=60,
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


class TestTransactionsOfTheHost:
    def test_changes_are_told_of_when_they_are_committed(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        with engine.store.transaction():
            created = create(engine)
            with engine.store.transaction():
                engine.suspend_key(created.key.id)
            engine.create_policy(PolicyCreate(name="p"))
            assert recorder.events == []
        assert recorder.names() == ["on_key_created", "on_key_suspended", "on_policy_created"]
        assert recorder.events[0][1][0].state is KeyState.ACTIVE  # type: ignore[attr-defined]

    def test_what_was_rolled_back_never_happened(self, engine: Engine, recorder: Recorder) -> None:
        def half() -> None:
            with engine.store.transaction():
                engine.suspend_key(create(engine).key.id)
                engine.get_key("nope")

        with pytest.raises(KeyNotFoundError):
            half()
        assert recorder.events == []
        create(engine)
        assert recorder.names() == ["on_key_created"]

    def test_a_refusal_has_happened_in_any_case(self, engine: Engine, recorder: Recorder) -> None:
        with pytest.raises(InvalidKeyError), engine.store.transaction():
            engine.validate_key("nope")
        assert recorder.names() == ["on_key_validation_failed"]

    def test_within_a_snapshot_there_is_nothing_to_wait_for(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        raw_key = create(engine).raw_key
        with engine.store.snapshot():
            engine.validate_key(raw_key)
            assert recorder.names()[-1] == "on_key_validated"


class TestWhatIsTold:
    def test_entities_are_copies(self, engine: Engine, recorder: Recorder) -> None:
        created = engine.create_key(KeyCreate(name="n", meta={"list": [1]}))
        policy = engine.create_policy(PolicyCreate(name="p", allowed_methods=["GET"]))
        created.key.name = "changed"
        created.key.meta["list"].append(2)  # type: ignore[union-attr]
        policy.allowed_methods.append("POST")
        [(_, (key,)), (_, (told,))] = recorder.events
        assert (key.name, key.meta) == ("n", {"list": [1]})  # type: ignore[attr-defined]
        assert told.allowed_methods == ["GET"]  # type: ignore[attr-defined]
        assert key.to_row() == engine.get_key(created.key.id).to_row()  # type: ignore[attr-defined]

    def test_each_plugin_has_copies_of_its_own(self, memory: SqliteStore) -> None:
        class Vandal(Plugin):
            inline = True

            def on_key_created(self, key: Any) -> None:
                key.meta.clear()
                key.name = "broken"

        recorder = Recorder()
        Engine(memory, plugins=[Vandal(), recorder]).create_key(KeyCreate(name="n", meta={"a": 1}))
        [(_, (key,))] = recorder.events
        assert (key.name, key.meta) == ("n", {"a": 1})  # type: ignore[attr-defined]

    def test_a_request_is_a_copy_in_the_tenant_that_asked(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        data = KeyCreate(name="n", scopes=["nope"])
        with pytest.raises(ScopeNotFoundError):
            engine.for_tenant("acme").create_key(data)
        data.scopes.clear()
        [(_, (told, error))] = recorder.events
        assert (told.scopes, told.tenant_id) == (["nope"], "acme")  # type: ignore[attr-defined]
        assert error.names == ("nope",)  # type: ignore[attr-defined]
        with pytest.raises(TenantMismatchError):
            engine.for_tenant("acme").create_key(KeyCreate(name="n", tenant_id="globex"))
        told = recorder.events[1][1][0]
        assert told.tenant_id == "acme", "globex is not to hear of it"  # type: ignore[attr-defined]

    def test_scopes_are_told_where_they_change(self, engine: Engine, recorder: Recorder) -> None:
        engine.ensure_scopes(["a", "b"])
        key_id = engine.create_key(KeyCreate(name="n", scopes=["b"])).key.id
        recorder.events.clear()
        engine.assign_scopes(key_id, ["b"])
        engine.remove_scopes(key_id, ["a"])
        assert recorder.events == []
        engine.assign_scopes(key_id, ["a"])
        engine.remove_scopes(key_id, ["a", "b"])
        assert [(name, arguments[1]) for name, arguments in recorder.events] == [
            ("on_key_scopes_changed", ("a", "b")),
            ("on_key_scopes_changed", ()),
        ]

    def test_a_scope_that_is_deleted_is_told_of_each_key_that_held_it(
        self, engine: Engine, recorder: Recorder
    ) -> None:
        [scope, *_] = engine.ensure_scopes(["a", "b"])
        holders = [
            engine.create_key(KeyCreate(name=name, scopes=list(name))).key for name in ("a", "ab")
        ]
        engine.create_key(KeyCreate(name="b", scopes=["b"]))
        recorder.events.clear()
        with pytest.raises(LookupError), engine.store.transaction():
            engine.delete_scope(scope.id)
            raise LookupError
        assert recorder.events == []
        engine.delete_scope(scope.id)
        assert sorted(recorder.events, key=lambda event: event[1][1]) == [  # type: ignore[arg-type, return-value]
            ("on_key_scopes_changed", (holders[0], ())),
            ("on_key_scopes_changed", (holders[1], ("b",))),
        ]

    def test_of_more_keys_than_plugins_can_hear_of_the_rest_is_logged(
        self,
        engine: Engine,
        recorder: Recorder,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("keysmith.engine.scopes.MOST_TOLD", 2)
        for holders, heard, logged in ((2, 2, 0), (3, 2, 1)):
            [scope] = engine.ensure_scopes(["a"])
            for _ in range(holders):
                engine.create_key(KeyCreate(name="n", scopes=["a"]))
            recorder.events.clear()
            engine.delete_scope(scope.id)
            assert (len(recorder.events), len(caplog.records)) == (heard, logged)
        assert "More than 2 keys lose the scope a." in caplog.text

    def test_errors_bear_no_frames(self, engine: Engine, recorder: Recorder) -> None:
        raw_key = KeyGenerator().generate("sk", "live")
        with pytest.raises(InvalidKeyError) as raised:
            engine.validate_key(raw_key)
        assert raised.value.__traceback__ is not None
        [(_, (_, error))] = recorder.events
        assert isinstance(error, InvalidKeyError)
        assert str(error) == str(raised.value)
        assert error.__traceback__ is error.__cause__ is error.__context__ is None

    def test_errors_bear_no_input(self, engine: Engine, recorder: Recorder) -> None:
        key_hash = Hasher().hash("x").upper()
        with pytest.raises(ValidationError) as raised:
            engine.import_key(KeyCreate(name="n"), key_hash=key_hash, hint="{}")
        [(_, (_, error))] = recorder.events
        assert isinstance(error, ValidationError)
        [told], [was] = error.errors(), raised.value.errors()
        assert (told["type"], told["loc"], told["msg"]) == (was["type"], was["loc"], was["msg"])
        assert key_hash in repr(was)
        assert key_hash not in f"{error.errors()} {error!r} {error}"

    def test_entities_show_no_hash(self, engine: Engine, recorder: Recorder) -> None:
        created = create(engine)
        engine.rotate_key(created.key.id)
        hashes = {created.key.key_hash, engine.get_key(created.key.id).key_hash}
        for _, arguments in recorder.events:
            for thing in arguments:
                shown = f"{thing!r} {thing} {thing.model_dump()}"  # type: ignore[attr-defined]
                assert not any(key_hash in shown for key_hash in hashes)

    def test_an_error_with_a_constructor_of_its_own(self) -> None:
        class Demanding(KeysmithError):
            code = "demanding"

            def __init__(self, *, needed: int) -> None:
                super().__init__(f"needs {needed}")
                self.needed = needed

        error = Demanding(needed=3)
        copy = keepsake(error)
        assert copy is not error
        assert (str(copy), copy.needed) == ("needs 3", 3)

    def test_how_long_a_validation_took(self, memory: SqliteStore, clock: TurnableClock) -> None:
        timings: list[tuple[str, float]] = []

        class Timer(Plugin):
            inline = True

            def on_validation_timed(self, outcome: str, seconds: float) -> None:
                timings.append((outcome, seconds))

        engine = Engine(memory, plugins=[Timer()], clock=clock)
        created = engine.create_key(KeyCreate(name="n", expires_at=START + timedelta(hours=1)))
        began = time.perf_counter()
        engine.validate_key(created.raw_key)
        took = time.perf_counter() - began
        clock.turn(hours=1)
        for raw_key, error in ((created.raw_key, KeyExpiredError), ("nope", InvalidKeyError)):
            with pytest.raises(error):
                engine.validate_key(raw_key)
        memory.close()
        with pytest.raises(StoreUnavailableError):
            engine.validate_key(created.raw_key)
        assert [outcome for outcome, _ in timings] == [
            "ok",
            "key_expired",
            "invalid_key",
            "store_unavailable",
        ]
        assert 0 < timings[0][1] <= took


@given(
    prefix=st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True),
    environment=st.sampled_from(Environment),
)
def test_a_mask_of_our_keys_shows_prefix_environment_and_hint(
    prefix: str, environment: Environment
) -> None:
    raw_key = KeyGenerator().generate(prefix, environment)
    assert mask(raw_key) == f"{prefix}_{environment}_…{raw_key[-4:]}"


@given(raw_key=st.text(min_size=1, max_size=600))
def test_a_mask_of_anything_else_shows_its_length_at_most(raw_key: str) -> None:
    assert mask(raw_key) in {f"…({len(raw_key)} characters)", "…"}


def test_what_fails_to_validate_is_told_masked(engine: Engine, recorder: Recorder) -> None:
    raw_key = KeyGenerator().generate("sk", "live")
    for text in (raw_key, raw_key[:-1], "hunter2"):
        with pytest.raises(InvalidKeyError):
            engine.validate_key(text)
    assert [arguments[0] for _, arguments in recorder.events] == [
        f"sk_live_…{raw_key[-4:]}",
        f"…({len(raw_key) - 1} characters)",
        "…(7 characters)",
    ]


def test_a_listener_without_events_has_nothing_to_wait_for() -> None:
    assert Listener("idle").mark().is_set()


def test_what_was_told_last_is_not_kept() -> None:
    listener, heard = Listener("idle"), threading.Event()
    told = Recorder()
    kept = weakref.ref(told)
    listener.tell("on_key_created", lambda _: heard.set(), (told,))
    del told
    assert heard.wait(10)
    deadline = time.monotonic() + 10
    while kept() is not None and time.monotonic() < deadline:
        gc.collect()
    assert kept() is None
    finish({listener: None}, 10)
