"""Events: every hook in one form, without anything that is secret."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keysmith import Engine, KeyCreate, KeyRevokedError, SqliteStore
from keysmith.engine.hooks import HOOKS
from keysmith.plugins import Event, EventPlugin
from keysmith.plugins.events import EVENT_TYPES, MAX_REASON, VALIDATIONS
from tests.conftest import TurnableClock
from tests.plugin_helpers import HAPPENED, everything_happens


class Collector(EventPlugin):
    inline = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def of(self, type: str) -> list[Event]:
        return [event for event in self.events if event.type == type]


def test_every_hook_has_a_type_of_its_own() -> None:
    assert set(EVENT_TYPES) == set(HOOKS) - {"on_shutdown", "on_validation_timed"}
    assert len(set(EVENT_TYPES.values())) == len(EVENT_TYPES)
    assert set(EVENT_TYPES.values()) == set(HAPPENED), "the tests let every one of them happen"
    assert set(EVENT_TYPES.values()) > VALIDATIONS


def test_everything_is_heard_in_order(memory: SqliteStore, clock: TurnableClock) -> None:
    collector = Collector()
    everything_happens(Engine(memory, plugins=[collector], clock=clock), clock)
    assert [event.type for event in collector.events] == HAPPENED


def test_what_events_say(memory: SqliteStore, clock: TurnableClock) -> None:
    collector = Collector()
    everything_happens(Engine(memory, plugins=[collector], clock=clock), clock)
    seen = {
        (e.type, e.severity.value, e.refused, e.who, e.reason, e.code) for e in collector.events
    }
    unknown = "Unknown in this tenant: nope. Declare scopes with ensure_scopes() before using them."
    gone = "The API key has been revoked, or replaced by a newer secret."
    assert seen == {
        ("policy.created", "info", False, None, None, None),
        ("policy.updated", "info", False, None, None, None),
        ("policy.deleted", "warning", False, None, None, None),
        ("key.created", "info", False, "alice", None, None),
        ("key.created", "info", False, None, None, None),
        ("key.create_failed", "warning", True, "bob", unknown, "scope_not_found"),
        ("key.validated", "info", False, None, None, None),
        ("key.rotated", "info", False, "carol", "manual", None),
        ("key.rotated", "error", False, None, "compromise", None),
        (
            "key.reused",
            "error",
            True,
            None,
            "A secret was used after its grace period.",
            "key_revoked",
        ),
        ("key.validation_failed", "warning", True, None, gone, "key_revoked"),
        (
            "key.validation_failed",
            "warning",
            True,
            None,
            "The API key is not valid.",
            "invalid_key",
        ),
        ("key.grace_ended", "info", False, None, None, None),
        ("key.suspended", "warning", False, None, None, None),
        ("key.reactivated", "info", False, None, None, None),
        ("key.updated", "info", False, None, None, None),
        ("scope.created", "info", False, None, "It lies below: no other", None),
        ("scope.updated", "info", False, None, "It lies below: write", None),
        ("scope.deleted", "warning", False, None, "It lies below: write", None),
        ("key.scopes_changed", "info", False, None, "It holds: read, write", None),
        ("key.scopes_changed", "info", False, None, "It holds: none", None),
        ("key.deleted", "warning", False, None, None, None),
        ("key.rate_limited", "warning", True, None, None, "rate_limited"),
        ("key.quota_exceeded", "warning", True, None, None, "quota_exceeded"),
        ("key.revoked", "warning", False, None, "leaked\nin a log", None),
        ("key.expired", "info", False, None, None, None),
    }


def test_which_key_which_policy_whose(memory: SqliteStore, clock: TurnableClock) -> None:
    collector = Collector()
    engine = Engine(memory, plugins=[collector], clock=clock)
    everything_happens(engine, clock)
    key_ids = {key.id for key in engine.list_keys()}
    key_ids |= {event.key.id for event in collector.of("key.deleted") if event.key}
    for event in collector.events:
        unknown = event.type == "policy.deleted" or event.code == "invalid_key"
        assert event.tenant_id == (None if unknown else "acme"), event.type
        named = [event.key, event.masked_key, event.policy_id, event.scope]
        named.append(event.type == "key.create_failed")
        assert sum(map(bool, named)) == 1
        if event.key or event.policy_id or event.scope:
            whose = event.key or event.scope
            assert event.about == (whose.id if whose else event.policy_id)
        assert event.key is None or event.key.id in key_ids
        rotation = event.type in {"key.rotated", "key.reused", "key.grace_ended"}
        assert (event.rotation is not None) == rotation
    first = collector.of("key.created")[0].key
    assert first is not None
    assert [event.masked_key for event in collector.of("key.validation_failed")] == [
        f"sk_live_…{first.hint}",
        "…(56 characters)",
    ]
    assert [event.key_id for event in collector.of("key.validation_failed")] == [first.id, None]


def test_nothing_secret_is_in_them(memory: SqliteStore, clock: TurnableClock) -> None:
    collector = Collector()
    secrets = everything_happens(Engine(memory, plugins=[collector], clock=clock), clock)
    shown = [text for e in collector.events for text in (repr(e), json.dumps(e.data()))]
    assert len(secrets) == 8
    for secret in secrets:
        assert not any(secret.split("_")[-1] in text for text in shown)


def test_data_is_public_fields_and_leaves_out_what_is_unknown(
    memory: SqliteStore, clock: TurnableClock
) -> None:
    collector = Collector()
    everything_happens(Engine(memory, plugins=[collector], clock=clock), clock)
    [revoked] = collector.of("key.revoked")
    data = revoked.data()
    assert set(data) == {"key", "tenant_id", "reason"}
    assert data["key"]["state"] == "revoked"
    assert data["key"]["metadata"] == {}
    assert set(collector.of("key.rotated")[0].data()) == {
        *("key", "rotation", "tenant_id", "who", "reason")
    }
    assert [event.data()["scopes"] for event in collector.of("key.scopes_changed")] == [
        ("read", "write"),
        (),
    ]
    assert set(collector.of("policy.created")[0].data()) == {"policy", "policy_id", "tenant_id"}
    known, unknown = (event.data() for event in collector.of("key.validation_failed"))
    assert set(unknown) == {"masked_key", "reason", "code"}
    assert set(known) == {*unknown, "key_id", "tenant_id"}


def test_reasons_are_bounded(memory: SqliteStore) -> None:
    collector = Collector()
    engine = Engine(memory, plugins=[collector])
    for length in (MAX_REASON, MAX_REASON + 1):
        key = engine.create_key(KeyCreate(name="n")).key
        engine.revoke_key(key.id, reason="x" * length)
    exact, cut = (event.reason or "" for event in collector.of("key.revoked"))
    assert exact == "x" * MAX_REASON
    assert cut == "x" * (MAX_REASON - 1) + "…"


def test_what_pydantic_refuses_has_a_code(memory: SqliteStore) -> None:
    collector = Collector()
    with pytest.raises(ValueError, match="key_hash"):
        Engine(memory, plugins=[collector]).import_key(
            KeyCreate(name="n"), key_hash="F" * 64, hint=""
        )
    [event] = collector.events
    assert event.code == "invalid_input"
    assert "F" * 64 not in repr(event)


def test_only_wanted_types_are_told(memory: SqliteStore) -> None:
    class Picky(Collector):
        def wants(self, type: str) -> bool:
            return type == "key.revoked"

        def on_shutdown(self) -> None:
            ended.append(True)

    ended: list[bool] = []
    picky: Any = Picky()
    engine = Engine(memory, plugins=[picky])
    created = engine.create_key(KeyCreate(name="n"))
    engine.validate_key(created.raw_key)
    engine.revoke_key(created.key.id)
    with pytest.raises(KeyRevokedError):
        engine.validate_key(created.raw_key)
    assert [event.type for event in picky.events] == ["key.revoked"]
    assert not engine._context.hooks.hears("on_key_validated")
    engine.close()
    assert ended == [True]


def test_by_itself_it_does_nothing(engine: Engine) -> None:
    plugin = EventPlugin()
    assert plugin.on_event(Event(type="key.created")) is None
    assert not plugin.hears("on_shutdown")
    assert not plugin.hears("on_validation_timed")


def test_a_raw_key_in_a_reason_is_masked(memory: SqliteStore) -> None:
    collector = Collector()
    engine = Engine(memory, plugins=[collector])
    created = engine.create_key(KeyCreate(name="n"))
    engine.revoke_key(created.key.id, reason=f"{created.raw_key} stood in a log")
    engine.flush()
    [revoked] = collector.of("key.revoked")
    assert revoked.reason == f"sk_live_…{created.key.hint} stood in a log"
