"""Scopes, and which key holds which."""

from __future__ import annotations

import pytest

from keysmith import ConflictError, ScopeNotFoundError, Store
from keysmith.testing.contract.samples import a_key, scopes


class TestScopes:
    def test_lists_come_by_name_in_pages(self, store: Store) -> None:
        scopes(store, "b", "a", "a:b", "c")
        scopes(store, "a", tenant_id="acme")
        names = [scope.name for scope in store.scopes.list(tenant_id="default")]
        assert names == ["a", "a:b", "b", "c"]
        first = store.scopes.list(limit=3)
        rest = store.scopes.list(limit=9, after=first[-1].id)
        assert [scope.name for scope in [*first, *rest]] == ["a", "a", "a:b", "b", "c"]

    def test_a_page_after_a_scope_of_another_tenant_or_app_is_empty(self, store: Store) -> None:
        [other] = scopes(store, "a", tenant_id="acme")
        [own, rest] = scopes(store, "b", "c", app_id="billing")
        assert store.scopes.list(tenant_id="default", after=other.id) == []
        assert store.scopes.list(app_id="search", after=own.id) == []
        [found] = store.scopes.list(tenant_id="default", app_id="billing", after=own.id)
        assert found.id == rest.id

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
