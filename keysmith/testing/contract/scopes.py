"""Scopes, and which key holds which."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import ConflictError, ScopeNotFoundError, Store
from keysmith.testing.contract.samples import a_key, ids, scopes


class TestScopes:
    def test_lists_come_by_name_in_pages(self, store: Store) -> None:
        scopes(store, "b", "a", "a:b", "c")
        scopes(store, "a", tenant_id="acme")
        names = [scope.name for scope in store.scopes.list(tenant_id="default")]
        assert names == ["a", "a:b", "b", "c"]
        first = store.scopes.list(limit=3)
        rest = store.scopes.list(limit=9, after=first[-1].id)
        assert [scope.name for scope in [*first, *rest]] == ["a", "a", "a:b", "b", "c"]

    def test_a_page_whose_last_scope_has_gone_is_refused_or_told_where_it_was(
        self, store: Store
    ) -> None:
        _, last, _ = scopes(store, "a", "b", "c")
        [theirs] = scopes(store, "b", tenant_id="acme")
        store.scopes.delete(last.id)
        with pytest.raises(ScopeNotFoundError, match="after"):
            store.scopes.list(after=last.id)
        with pytest.raises(ScopeNotFoundError, match="after"):
            store.scopes.list(after=theirs.id, tenant_id="default")
        for tenant_id, names in ((None, ["c"]), ("default", ["c"]), ("acme", [])):
            found = store.scopes.list(after=(theirs.name, theirs.id), tenant_id=tenant_id)
            assert [scope.name for scope in found] == names
        assert len(store.scopes.list(after=(last.name, last.id))) == 2
        refused: Any
        for refused in (("b", theirs.name), ("B", theirs.id), ("b",)):
            with pytest.raises(ValidationError):
                store.scopes.list(after=refused)

    def test_crud_and_names_unique_within_a_tenant(self, store: Store) -> None:
        [scope] = scopes(store, "read", meta={"a": 1})
        assert store.scopes.get(scope.id).to_row() == scope.to_row()
        assert store.scopes.get_by_name("default", "read").id == scope.id
        with pytest.raises(ConflictError, match="name"):
            scopes(store, "read")
        scope.description = "reads"
        store.scopes.update(scope)
        assert store.scopes.get(scope.id).description == "reads"
        store.scopes.delete(scope.id)
        for call in (
            lambda: store.scopes.get(scope.id),
            lambda: store.scopes.get_by_name("default", "read"),
            lambda: store.scopes.update(scope),
            lambda: store.scopes.delete(scope.id),
        ):
            with pytest.raises(ScopeNotFoundError):
                call()

    def test_assigning_is_all_or_nothing_and_may_be_repeated(self, store: Store) -> None:
        scopes(store, "read", "write")
        scopes(store, "admin", tenant_id="acme")
        key = a_key(store)
        with pytest.raises(ScopeNotFoundError) as refused:
            store.scopes.assign_to_key(key.id, ["read", "nope", "admin"])
        assert refused.value.names == ("admin", "nope")
        assert store.scopes.list_by_key(key.id) == []
        store.scopes.assign_to_key(key.id, ["write"])
        store.scopes.assign_to_key(key.id, ["read", "write", "read"])
        assert [scope.name for scope in store.scopes.list_by_key(key.id)] == ["read", "write"]
        with pytest.raises(ScopeNotFoundError):
            store.scopes.remove_from_key(key.id, ["read", "nope"])
        store.scopes.remove_from_key(key.id, ["read"])
        store.scopes.remove_from_key(key.id, ["read"])
        assert [scope.name for scope in store.scopes.list_by_key(key.id)] == ["write"]

    def test_deleting_frees_those_below(self, store: Store) -> None:
        [parent] = scopes(store, "parent")
        [child] = scopes(store, "child", parent="parent")
        scopes(store, "child", parent="parent", tenant_id="acme")
        assert [
            scope.name for scope in store.scopes.list(parent="parent", tenant_id="default")
        ] == ["child"]
        key = a_key(store)
        store.scopes.assign_to_key(key.id, ["parent"])
        store.scopes.delete(parent.id)
        assert store.scopes.get(child.id).parent is None
        assert store.scopes.list_by_key(key.id) == []
        assert len(store.scopes.list(parent="parent")) == 1

    def test_who_holds_a_scope_and_what_else(self, store: Store) -> None:
        [read, *_] = scopes(store, "read", "write", "audit")
        [theirs] = scopes(store, "read", tenant_id="acme")
        both, one, none = (a_key(store) for _ in range(3))
        other = a_key(store, tenant_id="acme")
        store.scopes.assign_to_key(both.id, ["write", "read"])
        store.scopes.assign_to_key(one.id, ["read"])
        store.scopes.assign_to_key(none.id, ["audit"])
        store.scopes.assign_to_key(other.id, ["read"])
        assert ids(store.keys.list_by_scope(read.id)) == [one.id, both.id]
        assert ids(store.keys.list_by_scope(read.id, limit=1)) == [one.id]
        assert ids(store.keys.list_by_scope(theirs.id)) == [other.id]
        store.scopes.remove_from_key(one.id, ["read"])
        held = store.scopes.names_by_key(key.id for key in (both, one, other))
        assert {key_id: list(names) for key_id, names in held.items()} == {
            both.id: ["read", "write"],
            other.id: ["read"],
        }
        assert not store.scopes.names_by_key([])

    def test_below_is_by_name_and_by_parent_at_any_depth(self, store: Store) -> None:
        scopes(store, "a", "a:b", "a:b:c", "ab", "a.b", "a-b:c", "x", "x:y")
        scopes(store, "p", parent="a:b")
        scopes(store, "q", parent="p")
        scopes(store, "a:z", tenant_id="acme")
        below = store.scopes.below
        assert list(below("default", ["a"])) == ["a", "a:b", "a:b:c", "p", "q"]
        assert list(below("default", ["a:b", "x:y"])) == ["a:b", "a:b:c", "p", "q", "x:y"]
        assert list(below("default", ["a-b"])) == ["a-b:c"]
        assert list(below("default", [])) == list(below("default", ["nope"])) == []
        assert list(below("acme", ["a"])) == ["a:z"]

    def test_a_loop_made_by_hand_ends(self, store: Store) -> None:
        [one] = scopes(store, "one")
        scopes(store, "two", parent="one")
        one.parent = "two"
        store.scopes.update(one)
        assert list(store.scopes.below("default", ["two"])) == ["one", "two"]
