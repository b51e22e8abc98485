"""Scopes: their tree, and who holds them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Engine,
    InsufficientScopeError,
    KeyUpdate,
    PolicyCreate,
    ScopeCreate,
    ScopeLoopError,
    ScopeNotAllowedError,
    ScopeNotFoundError,
    ScopeUpdate,
)
from keysmith.ids import IdPrefix, new_id
from tests.conftest import START, create

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class TestScopes:
    def test_create_read_update_delete(self, engine: Engine) -> None:
        parent = engine.create_scope(ScopeCreate(name="admin"))
        scope = engine.create_scope(ScopeCreate(name="audit", parent="admin", description="d"))
        assert engine.get_scope(scope.id).to_row() == scope.to_row()
        assert scope.created_at == START
        assert scope.id < new_id(IdPrefix.SCOPE, START + HOUR)
        assert [found.name for found in engine.list_scopes()] == ["admin", "audit"]
        assert [found.name for found in engine.list_scopes(parent="admin")] == ["audit"]
        changed = engine.update_scope(scope.id, ScopeUpdate(description="e", meta={"a": 1}))
        assert (changed.description, changed.parent, changed.meta) == ("e", "admin", {"a": 1})
        with pytest.raises(ConflictError):
            engine.create_scope(ScopeCreate(name="audit"))
        with pytest.raises(ScopeNotFoundError) as refused:
            engine.create_scope(ScopeCreate(name="other", parent="nope"))
        assert refused.value.names == ("nope",)
        engine.delete_scope(parent.id)
        assert engine.get_scope(scope.id).parent is None
        for call in (
            lambda: engine.get_scope(parent.id),
            lambda: engine.delete_scope(parent.id),
            lambda: engine.update_scope(parent.id, ScopeUpdate()),
        ):
            with pytest.raises(ScopeNotFoundError):
                call()

    def test_ensure_is_idempotent_and_all_or_nothing(self, engine: Engine) -> None:
        first = engine.ensure_scopes(["b", "a"])
        again = engine.ensure_scopes(["a", "b", "c", "c"])
        assert [scope.name for scope in again] == ["a", "b", "c", "c"]
        assert {scope.id for scope in first} < {scope.id for scope in again}
        with pytest.raises(ValidationError):
            engine.ensure_scopes(["d", "Not A Scope"])
        assert [scope.name for scope in engine.list_scopes()] == ["a", "b", "c"]
        assert [scope.name for scope in engine.ensure_scopes("a")] == ["a"]

    def test_a_loop_of_parents_is_refused(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "c"])
        b = engine.create_scope(ScopeCreate(name="b", parent="a"))
        engine.update_scope(engine.list_scopes(limit=1)[0].id, ScopeUpdate(parent="c"))
        c = engine.store.scopes.get_by_name("default", "c")
        for parent in ("a", "b", "c"):
            with pytest.raises(ScopeLoopError):
                engine.update_scope(c.id, ScopeUpdate(parent=parent))
        with pytest.raises(ScopeLoopError):
            engine.create_scope(ScopeCreate(name="self", parent="self"))
        engine.ensure_scopes(["x:y"])
        with pytest.raises(ScopeLoopError):
            engine.create_scope(ScopeCreate(name="x", parent="x:y"))
        assert engine.get_scope(b.id).parent == "a"

    def test_what_is_granted(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "a:b", "ab", "c"])
        engine.create_scope(ScopeCreate(name="below", parent="a:b"))
        created = create(engine, scopes=["a"])
        result = engine.validate_key(created.raw_key, scopes=["a:b", "below", "a:undeclared:x"])
        assert result.scopes == ("a", "a:b", "below")
        with pytest.raises(InsufficientScopeError) as refused:
            engine.validate_key(created.raw_key, scopes=["ab", "c", "below:x", "b"])
        assert refused.value.missing == ("ab", "b", "c")

    def test_assign_and_remove(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "b"])
        key_id, raw_key = (created := create(engine)).key.id, created.raw_key
        engine.assign_scopes(key_id, ["a"])
        with pytest.raises(ScopeNotFoundError):
            engine.assign_scopes(key_id, ["b", "nope"])
        with pytest.raises(ScopeNotFoundError):
            engine.remove_scopes(key_id, ["a", "nope"])
        assert engine.validate_key(raw_key).scopes == ("a",)
        engine.assign_scopes(key_id, "b")
        engine.remove_scopes(key_id, ["a"])
        assert engine.validate_key(raw_key).scopes == ("b",)

    def test_a_policy_bounds_what_is_assigned_and_granted(self, engine: Engine) -> None:
        engine.ensure_scopes(["read", "read:users", "read:users:me", "write"])
        engine.create_scope(ScopeCreate(name="export", parent="read:users"))
        policy = engine.create_policy(
            PolicyCreate(name="p", allowed_scopes=["read:users", "later:declared"])
        )
        with pytest.raises(ScopeNotAllowedError) as refused:
            create(engine, policy_id=policy.id, scopes=["read:users", "write", "read"])
        assert refused.value.names == ("read", "write")
        with pytest.raises(ScopeNotFoundError) as unknown:
            create(engine, policy_id=policy.id, scopes=["later:declared", "nope"])
        assert unknown.value.names == ("later:declared", "nope")
        assert engine.list_keys() == []
        bounded = create(engine, policy_id=policy.id, scopes=["read:users:me", "export"])
        with pytest.raises(ScopeNotAllowedError):
            engine.assign_scopes(bounded.key.id, ["write"])
        assert engine.validate_key(bounded.raw_key).scopes == ("export", "read:users:me")
        broad = create(engine, scopes=["read", "write"])
        engine.update_key(broad.key.id, KeyUpdate(policy_id=policy.id))
        result = engine.validate_key(broad.raw_key, scopes=["read:users:anything"])
        assert result.scopes == ("export", "read:users", "read:users:me")
        with pytest.raises(InsufficientScopeError) as lacking:
            engine.validate_key(broad.raw_key, scopes=["write", "read:other"])
        assert lacking.value.missing == ("read:other", "write")
