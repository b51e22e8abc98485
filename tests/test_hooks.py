"""What plugins are told: each event once, after the commit, and nothing that is secret."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    ScopeCreate,
    ScopeNotFoundError,
    ScopeUpdate,
    SqliteStore,
    StoreUnavailableError,
    TenantMismatchError,
)
from keysmith.engine.hooks import HOOKS
from keysmith.engine.keepsakes import keepsake
from keysmith.raw_keys import mask
from tests.conftest import START, Recorder, TurnableClock, create

pytestmark = pytest.mark.usefixtures("unhurried")


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

    def declare(self, *names: str) -> None:
        self.scope, *_ = self.engine.ensure_scopes(names)

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
    "on_scope_created": (
        lambda _: None,
        lambda s: s.engine.create_scope(ScopeCreate(name="a")),
        lambda store, _: store.scopes.get_by_name("default", "a"),
        lambda s: s.engine.ensure_scopes(["a"]),
    ),
    "on_scope_updated": (
        lambda s: s.declare("a", "b"),
        lambda s: s.engine.update_scope(s.scope.id, ScopeUpdate(parent="b")),
        lambda store, _: store.scopes.get_by_name("default", "a").parent == "b",
        refused(
            ScopeNotFoundError,
            lambda s: s.engine.update_scope(s.scope.id, ScopeUpdate(parent="nope")),
        ),
    ),
    "on_scope_deleted": (
        lambda s: s.declare("a"),
        lambda s: s.engine.delete_scope(s.scope.id),
        lambda store, _: store.scopes.list() == [],
        refused(ScopeNotFoundError, lambda s: s.engine.delete_scope(s.scope.id)),
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
        gone, *changed = recorder.events
        assert gone == ("on_scope_deleted", (scope,))
        assert sorted(changed, key=lambda event: event[1][1]) == [  # type: ignore[arg-type, return-value]
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
            told = recorder.names().count("on_key_scopes_changed")
            assert (told, len(caplog.records)) == (heard, logged)
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
