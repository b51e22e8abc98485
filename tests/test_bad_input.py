"""Wrong input of every kind gives the error that is documented, and changes nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Engine,
    Hasher,
    InvalidKeyError,
    KeyCreate,
    KeyGenerator,
    KeyNotFoundError,
    KeyUpdate,
    PolicyCreate,
    PolicyNotFoundError,
    PolicyUpdate,
    ScopeCreate,
    ScopeLoopError,
    ScopeNotFoundError,
    ScopeUpdate,
    SqliteStore,
)
from tests.conftest import START, TurnableClock

HUGE = "x" * 10_000_000
NAIVE = datetime(2030, 1, 1)
UNKNOWN_KEY = "akey_" + "0" * 26
UNKNOWN_POLICY = "kpol_" + "0" * 26

Call = Callable[[Engine, dict[str, str]], object]

CASES: dict[str, tuple[type[Exception], Call]] = {
    "unknown key": (KeyNotFoundError, lambda e, _: e.revoke_key(UNKNOWN_KEY)),
    "no key ID": (KeyNotFoundError, lambda e, _: e.get_key("1")),
    "an ID of another kind": (KeyNotFoundError, lambda e, ids: e.get_key(ids["policy"])),
    "huge ID": (KeyNotFoundError, lambda e, _: e.delete_key(HUGE)),
    "NUL in an ID": (KeyNotFoundError, lambda e, _: e.get_key("akey_\0")),
    "surrogate in an ID": (KeyNotFoundError, lambda e, _: e.get_key("\ud800")),
    "another tenant's key": (
        KeyNotFoundError,
        lambda e, ids: e.for_tenant("other").revoke_key(ids["key"]),
    ),
    "another tenant's policy": (
        PolicyNotFoundError,
        lambda e, ids: e.create_key(
            KeyCreate(name="n", tenant_id="other", policy_id=ids["policy"])
        ),
    ),
    "unknown policy": (
        PolicyNotFoundError,
        lambda e, ids: e.update_key(ids["key"], KeyUpdate(policy_id=UNKNOWN_POLICY)),
    ),
    "naive expiry": (ValidationError, lambda e, _: KeyCreate(name="n", expires_at=NAIVE)),
    "naive expiry on update": (
        ValidationError,
        lambda e, ids: e.update_key(ids["key"], KeyUpdate(expires_at=NAIVE)),
    ),
    "past expiry": (
        ValidationError,
        lambda e, _: e.create_key(KeyCreate(name="n", expires_at=START - timedelta(seconds=1))),
    ),
    "expiry beyond the calendar": (
        ValidationError,
        lambda e, _: KeyCreate(name="n", expires_at="9999-12-31T23:59:59-12:00"),
    ),
    "huge name": (ValidationError, lambda e, _: e.create_key(KeyCreate(name=HUGE))),
    "empty name": (ValidationError, lambda e, _: e.create_key(KeyCreate(name=""))),
    "NUL in a name": (ValidationError, lambda e, _: e.create_key(KeyCreate(name="a\0b"))),
    "surrogate in a name": (ValidationError, lambda e, _: e.create_key(KeyCreate(name="\ud800"))),
    "a name that is no text": (ValidationError, lambda e, _: KeyCreate(name=7)),
    "huge description": (
        ValidationError,
        lambda e, ids: e.update_key(ids["key"], KeyUpdate(description=HUGE)),
    ),
    "huge metadata": (ValidationError, lambda e, _: KeyCreate(name="n", meta={"a": HUGE})),
    "deep metadata": (ValidationError, lambda e, _: KeyCreate(name="n", meta=deep())),
    "surrogate in metadata": (
        ValidationError,
        lambda e, _: KeyCreate(name="n", meta={"a": "\ud800"}),
    ),
    "huge tenant": (ValidationError, lambda e, _: KeyCreate(name="n", tenant_id=HUGE)),
    "bad prefix": (ValidationError, lambda e, _: KeyCreate(name="n", prefix="Sk-1")),
    "empty prefix": (ValidationError, lambda e, _: KeyCreate(name="n", prefix="")),
    "bad environment": (ValidationError, lambda e, _: KeyCreate(name="n", environment="prod")),
    "unknown field": (ValidationError, lambda e, _: KeyCreate(name="n", nickname="x")),
    "bad JSON": (ValidationError, lambda e, _: KeyCreate.model_validate_json("{")),
    "unknown scope": (
        ScopeNotFoundError,
        lambda e, _: e.create_key(KeyCreate(name="n", scopes=["read", "nope"])),
    ),
    "bad scope": (ValidationError, lambda e, _: KeyCreate(name="n", scopes=["Read It"])),
    "too many scopes": (ValidationError, lambda e, _: KeyCreate(name="n", scopes=["a"] * 1001)),
    "assign an unknown scope": (
        ScopeNotFoundError,
        lambda e, ids: e.assign_scopes(ids["key"], ["read", "nope"]),
    ),
    "assign what is no scope name": (
        ScopeNotFoundError,
        lambda e, ids: e.assign_scopes(ids["key"], ["\0", "\ud800", HUGE]),
    ),
    "second scope of a name": (
        ConflictError,
        lambda e, _: e.create_scope(ScopeCreate(name="read")),
    ),
    "unknown parent": (
        ScopeNotFoundError,
        lambda e, _: e.create_scope(ScopeCreate(name="new", parent="nope")),
    ),
    "loop of parents": (
        ScopeLoopError,
        lambda e, ids: e.update_scope(ids["scope"], ScopeUpdate(parent="read:users")),
    ),
    "second policy of a name": (
        ConflictError,
        lambda e, _: e.create_policy(PolicyCreate(name="policy")),
    ),
    "bad network": (
        ValidationError,
        lambda e, _: PolicyCreate(name="n", allowed_ips=["10.0.0.1/8"]),
    ),
    "bad rate": (
        ValidationError,
        lambda e, ids: e.update_policy(ids["policy"], PolicyUpdate(rate_limit=-1)),
    ),
    "unknown reason": (ValidationError, lambda e, ids: e.rotate_key(ids["key"], reason="whim")),
    "negative grace": (
        ValidationError,
        lambda e, ids: e.rotate_key(ids["key"], grace=-timedelta(seconds=1)),
    ),
    "hash that is none": (
        ValidationError,
        lambda e, _: e.import_key(KeyCreate(name="n"), key_hash="x", hint="abcd"),
    ),
    "huge raw key": (InvalidKeyError, lambda e, _: e.validate_key(HUGE)),
    "raw key that is no text": (InvalidKeyError, lambda e, _: e.validate_key(None)),  # type: ignore[arg-type]
    "bad filter": (ValidationError, lambda e, _: e.list_keys(state="asleep")),  # type: ignore[arg-type]
    "negative limit": (ValidationError, lambda e, _: e.list_keys(limit=-1)),
    "bad cursor": (ValidationError, lambda e, _: e.list_scopes(after="read")),
    "ensure a bad name": (ValidationError, lambda e, _: e.ensure_scopes(["new", "Bad Name"])),
}


def deep() -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(5_000):
        nested = {"a": nested}
    return nested


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_changes_nothing(case: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    clock = TurnableClock(START)
    with SqliteStore(path) as store:
        store.migrate()
        engine = Engine(store, clock=clock)
        engine.ensure_scopes(["read"])
        engine.create_scope(ScopeCreate(name="read:users"))
        policy = engine.create_policy(PolicyCreate(name="policy"))
        ids = {
            "key": engine.create_key(KeyCreate(name="n", scopes=["read"])).key.id,
            "policy": policy.id,
            "scope": store.scopes.get_by_name("default", "read").id,
        }
        before = contents(path)
        error, call = CASES[case]
        with pytest.raises(error) as refused:
            call(engine, ids)
        assert type(refused.value) is error
        assert len(str(refused.value)) < 3000, "an error does not repeat what was too long"
        assert contents(path) == before


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in path.parent.glob("keys.db*")
        if not file.name.endswith("-shm")  # locks, not data
    }


def test_far_future_is_fine(engine: Engine) -> None:
    moment = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert engine.create_key(KeyCreate(name="n", expires_at=moment)).key.expires_at == moment


RAW_KEY = KeyGenerator().generate("sk", "live")
"""In the wrong place."""

ASTRAY: dict[str, Callable[[Engine, str], object]] = {
    "list_keys(state=)": lambda e, _: e.list_keys(state=RAW_KEY),  # type: ignore[arg-type]
    "list_keys(tenant_id=)": lambda e, _: e.list_keys(tenant_id=f"{RAW_KEY}\n"),
    "list_keys(unused_since=)": lambda e, _: e.list_keys(unused_since=RAW_KEY),  # type: ignore[arg-type]
    "list_keys(limit=)": lambda e, _: e.list_keys(limit=RAW_KEY),  # type: ignore[arg-type]
    "list_keys(after=)": lambda e, _: e.list_keys(after=RAW_KEY),
    "list_scopes(after=)": lambda e, _: e.list_scopes(after=(RAW_KEY, RAW_KEY)),
    "list_rotations(reason=)": lambda e, _: e.list_rotations(reason=RAW_KEY),  # type: ignore[arg-type]
    "rotate_key(reason=)": lambda e, key_id: e.rotate_key(key_id, reason=RAW_KEY),  # type: ignore[arg-type]
    "rotate_key(grace=)": lambda e, key_id: e.rotate_key(key_id, grace=RAW_KEY),  # type: ignore[arg-type]
    "rotate_key(idempotency_key=)": lambda e, key_id: e.rotate_key(
        key_id, idempotency_key=20 * RAW_KEY
    ),
    "for_tenant()": lambda e, _: e.for_tenant(f"{RAW_KEY}\n"),
    "validate_key(cost=)": lambda e, _: e.validate_key(RAW_KEY, cost=RAW_KEY),  # type: ignore[arg-type]
    "query_usage(since=)": lambda e, _: e.query_usage(since=RAW_KEY),  # type: ignore[arg-type]
    "query_usage(after=)": lambda e, _: e.query_usage(after=(RAW_KEY, RAW_KEY)),  # type: ignore[arg-type]
    "aggregate_usage(period=)": lambda e, _: e.aggregate_usage(period=RAW_KEY),  # type: ignore[arg-type]
    "aggregate_usage(after=)": lambda e, _: e.aggregate_usage(after=(RAW_KEY, RAW_KEY)),  # type: ignore[arg-type]
    "purge_usage()": lambda e, _: e.purge_usage(RAW_KEY),  # type: ignore[arg-type]
    "maintain(unused_for=)": lambda e, _: e.maintain(unused_for=RAW_KEY),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", ASTRAY)
def test_a_raw_key_in_the_wrong_place_is_not_repeated(engine: Engine, call: str) -> None:
    key_id = engine.import_key(
        KeyCreate(name="n"), key_hash=Hasher().hash(RAW_KEY), hint=RAW_KEY[-4:]
    ).id
    with pytest.raises(ValidationError) as refused:
        ASTRAY[call](engine, key_id)
    shown = str(refused.value) + repr(refused.value)
    assert not [RAW_KEY[at : at + 8] for at in range(8, 50) if RAW_KEY[at : at + 8] in shown]


LOOKUPS: dict[str, Callable[[SqliteStore, str], object]] = {
    "keys.get_by_hash": lambda store, text: store.keys.get_by_hash(text),
    "keys.get_by_prefix": lambda store, text: store.keys.get_by_prefix(text, text),
    "keys.list_by_policy": lambda store, text: store.keys.list_by_policy(text),
    "keys.delete": lambda store, text: store.keys.delete(text),
    "keys.delete_by_tenant": lambda store, text: store.keys.delete_by_tenant(text),
    "policies.get_by_name": lambda store, text: store.policies.get_by_name(text, text),
    "scopes.list_by_key": lambda store, text: store.scopes.list_by_key(text),
    "usages.daily_count": lambda store, text: store.usages.daily_count(text, START.date()),
    "rotations.latest_for_key": lambda store, text: store.rotations.latest_for_key(text),
}


@pytest.mark.parametrize("call", LOOKUPS)
def test_text_that_no_database_can_be_asked_for(engine: Engine, call: str) -> None:
    with pytest.raises(ValidationError, match="surrogate") as refused:
        LOOKUPS[call](engine.store, f"{RAW_KEY}\ud800")  # type: ignore[arg-type]
    error: BaseException | None = refused.value
    while error is not None:
        assert RAW_KEY[8:] not in repr(error)
        error = error.__cause__


def test_a_backslash_in_metadata_is_no_nul(engine: Engine) -> None:
    meta = {r"[\u0000-\u001f]": r"\\u0000"}
    assert engine.create_key(KeyCreate(name="n", meta=meta)).key.meta == meta
    for nul in ("\0", "\\\0", "\\\\\0", "x\0"):
        for value in ({"a": nul}, {nul: "a"}):
            with pytest.raises(ValidationError, match="NUL"):
                KeyCreate(name="n", meta=value)
