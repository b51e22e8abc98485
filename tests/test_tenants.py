"""Engines for one tenant, or one app of it: what is others' is not there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from keysmith import (
    ConflictError,
    Engine,
    Hasher,
    InvalidKeyError,
    KeyCreate,
    KeyNotFoundError,
    KeyUpdate,
    PolicyCreate,
    PolicyNotFoundError,
    PolicyUpdate,
    ScopeNotFoundError,
    ScopeUpdate,
    TenantMismatchError,
)
from tests.conftest import TurnableClock, create

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class TestTenants:
    def test_a_bound_engine_makes_its_own(self, engine: Engine) -> None:
        acme = engine.for_tenant("acme", app_id="billing")
        acme.ensure_scopes(["read"])
        policy = acme.create_policy(PolicyCreate(name="p"))
        created = create(acme, scopes=["read"], policy_id=policy.id)
        for entity in (created.key, policy, *acme.list_scopes()):
            assert (entity.tenant_id, entity.app_id) == ("acme", "billing")
        assert acme.validate_key(created.raw_key, scopes=["read"])
        assert engine.validate_key(created.raw_key)
        assert acme.tenant_id == "acme"

    @pytest.mark.parametrize("nobody", [None, "", 7, b"acme", uuid4()])
    def test_what_is_no_tenant_is_not_all_of_them(self, engine: Engine, nobody: Any) -> None:
        with pytest.raises(ValidationError):
            engine.for_tenant(nobody)
        if nobody is not None:
            with pytest.raises(ValidationError):
                engine.for_tenant("acme", app_id=nobody)

    def test_another_tenants_objects_do_not_exist(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        acme, globex = engine.for_tenant("acme"), engine.for_tenant("globex")
        [scope] = acme.ensure_scopes(["read"])
        policy = acme.create_policy(PolicyCreate(name="p"))
        created = create(acme, scopes=["read"], policy_id=policy.id)
        acme.rotate_key(created.key.id, grace=DAY)
        own = create(globex)
        before = engine.store.db.raw_connection().driver_connection
        dump = list(before.iterdump())
        calls: list[tuple[type[Exception], Any]] = [
            (InvalidKeyError, lambda: globex.validate_key(created.raw_key)),
            (KeyNotFoundError, lambda: globex.get_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.update_key(created.key.id, KeyUpdate(name="x"))),
            (KeyNotFoundError, lambda: globex.delete_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.rotate_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.revoke_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.suspend_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.reactivate_key(created.key.id)),
            (KeyNotFoundError, lambda: globex.list_key_scopes(created.key.id)),
            (KeyNotFoundError, lambda: globex.assign_scopes(created.key.id, [])),
            (KeyNotFoundError, lambda: globex.remove_scopes(created.key.id, [])),
            (ScopeNotFoundError, lambda: globex.assign_scopes(own.key.id, ["read"])),
            (ScopeNotFoundError, lambda: globex.get_scope(scope.id)),
            (ScopeNotFoundError, lambda: globex.update_scope(scope.id, ScopeUpdate())),
            (ScopeNotFoundError, lambda: globex.delete_scope(scope.id)),
            (ScopeNotFoundError, lambda: create(globex, scopes=["read"])),
            (PolicyNotFoundError, lambda: globex.get_policy(policy.id)),
            (PolicyNotFoundError, lambda: globex.update_policy(policy.id, PolicyUpdate())),
            (PolicyNotFoundError, lambda: globex.delete_policy(policy.id)),
            (PolicyNotFoundError, lambda: create(globex, policy_id=policy.id)),
            (TenantMismatchError, lambda: create(globex, tenant_id="acme")),
            (TenantMismatchError, lambda: globex.ensure_scopes(["x"], tenant_id="acme")),
            (TenantMismatchError, lambda: globex.for_tenant("acme")),
        ]
        for error, call in calls:
            with pytest.raises(error):
                call()
        for listed in (
            globex.list_keys(tenant_id="acme"),
            globex.list_policies(),
            globex.list_policies(tenant_id="acme"),
            globex.list_scopes(),
            globex.list_scopes(tenant_id="acme"),
            globex.list_rotations(),
            globex.list_rotations(tenant_id="acme"),
            globex.list_rotations(key_id=created.key.id),
        ):
            assert listed == []
        assert [key.id for key in globex.list_keys()] == [own.key.id]
        assert (globex.count_keys(), globex.count_keys(tenant_id="acme")) == (1, 0)
        assert list(before.iterdump()) == dump

    def test_an_import_tells_nothing_of_another_tenants_secret(self, engine: Engine) -> None:
        acme = engine.for_tenant("acme", app_id="billing")
        old = create(acme)
        new = acme.rotate_key(old.key.id)
        others = (engine.for_tenant("globex"), engine.for_tenant("acme", app_id="search"))

        def refusal(importing: Engine, raw_key: str) -> str:
            with pytest.raises(ConflictError) as refused:
                importing.import_key(
                    KeyCreate(name="n"), key_hash=Hasher().hash(raw_key), hint="abcd"
                )
            return str(refused.value)

        told = {refusal(other, created.raw_key) for other in others for created in (old, new)}
        assert told == {"This secret cannot be imported: it is known already."}
        for owner in (engine, engine.for_tenant("acme"), acme):
            assert "rotated out of use" in refusal(owner, old.raw_key)
            assert refusal(owner, new.raw_key) == "Another key has this secret already."

    def test_apps_of_a_tenant_are_apart(self, engine: Engine) -> None:
        billing = engine.for_tenant("acme", app_id="billing")
        search = engine.for_tenant("acme", app_id="search")
        created = create(billing)
        billing.rotate_key(created.key.id)
        with pytest.raises(KeyNotFoundError):
            search.get_key(created.key.id)
        with pytest.raises(InvalidKeyError):
            search.validate_key(created.raw_key)
        with pytest.raises(TenantMismatchError):
            search.for_tenant("acme", app_id="billing")
        assert search.list_keys() == []
        assert search.list_rotations(key_id=created.key.id) == search.list_rotations() == []
        assert len(billing.list_rotations(key_id=created.key.id)) == 1
        assert engine.for_tenant("acme").get_key(created.key.id).app_id == "billing"
