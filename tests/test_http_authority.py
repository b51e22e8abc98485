"""Who may do what over HTTP: every route, every kind of caller, and the ways around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request

from keysmith import Engine, Key, KeyCreate, KeyUpdate, PolicyCreate, ScopeCreate, SqliteStore
from keysmith.fastapi import Authority, management_router
from keysmith.fastapi.authority import SCOPES
from keysmith.plugins import Metrics
from keysmith.server import Settings, create_app, prepare
from tests.serving import client, is_problem, serving

HTTP_MD = (Path(__file__).parent.parent / "docs" / "http.md").read_text()
ROUTES = [
    (method, path, scope)
    for method, path, scope in re.findall(
        r"^\| `([A-Z]+) (/\S+)` \| `([a-z:]+)` \|", HTTP_MD, re.MULTILINE
    )
]
MANAGEMENT = [route for route in ROUTES if route[1].startswith("/v1/")]
WITH_ID = [route for route in MANAGEMENT if "{" in route[1]]
FINE = [scope for scope in SCOPES if scope.count(":") == 2]

BODIES = {
    ("POST", "/v1/keys"): {"name": "n"},
    ("POST", "/v1/keys/validate"): {"raw_key": "x"},
    ("POST", "/v1/keys/{key_id}/scopes"): {"scopes": []},
    ("DELETE", "/v1/keys/{key_id}/scopes"): {"scopes": []},
    ("POST", "/v1/policies"): {"name": "p"},
    ("PUT", "/v1/policies/{policy_id}"): {"name": "q"},
    ("PATCH", "/v1/policies/{policy_id}"): {},
    ("PATCH", "/v1/keys/{key_id}"): {},
    ("POST", "/v1/scopes"): {"name": "s"},
    ("PATCH", "/v1/scopes/{scope_id}"): {},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(SqliteStore(tmp_path_factory.mktemp("authority") / "keys.db")) as engine:
        engine.store.migrate()
        for tenant in ("acme", "other", "keysmith"):
            engine.ensure_scopes([*SCOPES, "users"], tenant_id=tenant)
        yield engine


@pytest.fixture(scope="module")
def root_key(engine: Engine) -> str:
    found = prepare(engine)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def url(engine: Engine, root_key: str) -> Iterator[str]:
    with serving(create_app(engine, Settings(), Metrics())) as address:
        yield address


@pytest.fixture(scope="module")
def root(url: str, root_key: str) -> Iterator[httpx.Client]:
    with client(url, root_key) as opened:
        yield opened


def issue(engine: Engine, *scopes: str, tenant: str = "acme", **fields: Any) -> str:
    data = KeyCreate(name="caller", tenant_id=tenant, scopes=list(scopes), **fields)
    return engine.create_key(data).raw_key


def objects(engine: Engine, tenant: str) -> dict[str, str]:
    """New objects of a tenant, by the names that the routes give to their IDs."""
    new_id = engine.create_key(KeyCreate(name="k", tenant_id=tenant)).key.id
    return {
        "key_id": new_id,
        "policy_id": engine.create_policy(PolicyCreate(name=new_id, tenant_id=tenant)).id,
        "scope_id": engine.create_scope(ScopeCreate(name=new_id, tenant_id=tenant)).id,
    }


def call(
    url: str, raw_key: str | None, method: str, path: str, ids: dict[str, str] | None = None
) -> httpx.Response:
    body = BODIES.get((method, path))
    with client(url, raw_key) as caller:
        return caller.request(
            method, path.format(**(ids or {})), **({} if body is None else {"json": body})
        )


def let_through(answer: httpx.Response) -> bool:
    """Whether the caller was, whatever came of it: a key to reactivate is active already."""
    if answer.status_code in {200, 201, 204, 409}:
        return True
    return answer.status_code == 401 and answer.json()["errors"][0]["field"] == "raw_key"


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
class TestEveryRoute:
    def test_asks_for_a_key(self, url: str, method: str, path: str, scope: str) -> None:
        ids = dict.fromkeys(("key_id", "policy_id", "scope_id"), "x")
        is_problem(call(url, None, method, path, ids), 401, "missing_key")
        is_problem(call(url, "wrong", method, path, ids), 401, "invalid_key")

    def test_asks_for_its_scope(
        self, engine: Engine, url: str, method: str, path: str, scope: str
    ) -> None:
        ids = objects(engine, "acme")
        all_others = issue(engine, *(each for each in FINE if each != scope), tenant="acme")
        problem = is_problem(call(url, all_others, method, path, ids), 403, "insufficient_scope")
        assert scope in problem["detail"]
        tenant = "acme" if path.startswith("/v1/") else "keysmith"
        answer = call(url, issue(engine, scope, tenant=tenant), method, path, ids)
        assert let_through(answer), answer.text


@pytest.mark.parametrize(("method", "path", "scope"), WITH_ID)
def test_another_tenants_objects_are_not_there(
    engine: Engine, url: str, method: str, path: str, scope: str
) -> None:
    admin, foreign = issue(engine, "keysmith:tenant"), objects(engine, "other")
    refused = call(url, admin, method, path, foreign)
    assert refused.status_code == 404
    missing = {name: value[:5] + "0" * 26 for name, value in foreign.items()}
    assert refused.content == call(url, admin, method, path, missing).content


def test_a_tenants_key_gets_only_what_is_its_tenants(engine: Engine, url: str) -> None:
    for tenant in ("acme", "other"):
        objects(engine, tenant)
    with client(url, issue(engine, "keysmith:tenant")) as admin:
        for what in ("keys", "policies", "scopes"):
            found = admin.get(f"/v1/{what}").json()["items"]
            assert {each["tenant_id"] for each in found} == {"acme"}, what
            of_others = admin.get(f"/v1/{what}", params={"tenant_id": "other"}).json()
            assert of_others == {"items": [], "next": None}
        assert admin.get("/v1/usage", params={"tenant_id": "other"}).json()["items"] == []
        assert admin.post("/v1/keys", json={"name": "n"}).json()["key"]["tenant_id"] == "acme"
        for tenant in ("other", "keysmith"):
            for what in ("keys", "policies", "scopes"):
                there = admin.post(f"/v1/{what}", json={"name": "n", "tenant_id": tenant})
                assert there.status_code == 403, there.text
        foreign = issue(engine, tenant="other")
        is_problem(admin.post("/v1/keys/validate", json={"raw_key": foreign}), 401, "invalid_key")
        is_problem(admin.get("/metrics"), 403, "insufficient_scope")


def test_a_root_key_acts_on_every_tenant(engine: Engine, url: str, root: httpx.Client) -> None:
    for method, path, _ in MANAGEMENT:
        if "{" in path:
            answer = root.request(
                method,
                path.format(**objects(engine, "other")),
                **({"json": BODIES[method, path]} if (method, path) in BODIES else {}),
            )
            assert let_through(answer), (method, path, answer.text)
    assert "keysmith_validation_seconds" in root.get("/metrics").text


def test_the_scope_of_the_root_in_another_tenant_is_that_tenants(engine: Engine, url: str) -> None:
    with client(url, issue(engine, "keysmith", tenant="acme")) as pretender:
        found = pretender.get("/v1/keys").json()["items"]
        assert {each["tenant_id"] for each in found} == {"acme"}
        is_problem(pretender.get("/metrics"), 403, "insufficient_scope")


class TestNobodyHandsOutMoreThanTheyHave:
    """By `keysmith:keys:write` and the like alone, nothing more can be had."""

    @pytest.fixture
    def writer(self, engine: Engine, url: str) -> Iterator[httpx.Client]:
        """Of the tenant, with the right to write all there is, and nothing else."""
        scopes = [each for each in FINE if each.endswith("write")]
        with client(url, issue(engine, *scopes)) as opened:
            yield opened

    @pytest.fixture
    def stronger(self, engine: Engine) -> str:
        """The ID of a key that can do more."""
        data = KeyCreate(name="admin", tenant_id="acme", scopes=["keysmith:tenant"])
        return engine.create_key(data).key.id

    def refused(self, answer: httpx.Response, missing: str = "keysmith:tenant") -> None:
        detail = is_problem(answer, 403, "insufficient_scope")["detail"]
        assert re.search(rf"{missing}\b", detail), detail

    def test_in_a_new_key(self, writer: httpx.Client) -> None:
        for scope in ("keysmith", "keysmith:tenant", "keysmith:usage:read"):
            body = {"name": "n", "scopes": ["users", scope]}
            self.refused(writer.post("/v1/keys", json=body), scope)
        has = {"name": "n", "scopes": ["users", "keysmith:keys:write"]}
        assert writer.post("/v1/keys", json=has).status_code == 201

    def test_in_scopes_assigned(self, engine: Engine, writer: httpx.Client) -> None:
        key_id = objects(engine, "acme")["key_id"]
        more = {"scopes": ["keysmith:tenant"]}
        self.refused(writer.post(f"/v1/keys/{key_id}/scopes", json=more))

    def test_with_another_keys_secret(self, writer: httpx.Client, stronger: str) -> None:
        path = f"/v1/keys/{stronger}"
        for deed in ("rotate", "revoke", "suspend", "reactivate"):
            self.refused(writer.post(f"{path}/{deed}"))
        self.refused(writer.patch(path, json={"policy_id": None}))
        self.refused(writer.delete(path))
        self.refused(writer.request("DELETE", f"{path}/scopes", json={"scopes": []}))

    def test_by_what_a_scope_stands_below(self, engine: Engine, writer: httpx.Client) -> None:
        below = {"name": "keysmith:more", "parent": "users"}
        self.refused(writer.post("/v1/scopes", json=below), "keysmith:more")
        engine.create_scope(
            ScopeCreate(name="keysmith:tenant:more", tenant_id="acme", parent="users")
        )
        self.refused(writer.post("/v1/keys", json={"name": "n", "scopes": ["users"]}))
        [scope] = [
            s for s in engine.list_scopes(tenant_id="acme") if s.name == "keysmith:tenant:more"
        ]
        for parent in (None, "keysmith:scopes:write"):
            self.refused(writer.patch(f"/v1/scopes/{scope.id}", json={"parent": parent}))
        self.refused(writer.delete(f"/v1/scopes/{scope.id}"))
        engine.delete_scope(scope.id)

    def test_by_what_a_policy_allows(self, engine: Engine, url: str) -> None:
        narrow = PolicyCreate(
            name="narrow", tenant_id="acme", allowed_scopes=["keysmith:policies", "users"]
        )
        policy = engine.create_policy(narrow)
        held = ["keysmith:tenant", "keysmith:policies:write"]
        path = f"/v1/policies/{policy.id}"
        raw_key = issue(engine, *held)
        key_id = engine.validate_key(raw_key).key.id
        engine.update_key(key_id, KeyUpdate(policy_id=policy.id))
        with client(url, raw_key) as bound:
            for wider in ([], ["keysmith"], ["keysmith:tenant", "users"], ["keysmith:keys"]):
                self.refused(bound.patch(path, json={"allowed_scopes": wider}), "keysmith")
                self.refused(
                    bound.put(path, json={"name": "narrow", "allowed_scopes": wider}), "keysmith"
                )
            narrower = {"allowed_scopes": ["keysmith:policies:write"]}
            assert bound.patch(path, json=narrower).status_code == 200
            assert bound.patch(path, json={"daily_quota": 5}).status_code == 200
        with client(url, issue(engine, "keysmith:tenant")) as admin:
            assert admin.patch(path, json={"allowed_scopes": []}).status_code == 200
            assert admin.patch(path, json={"allowed_scopes": ["users"]}).status_code == 200

    def test_an_admin_may_make_another(self, engine: Engine, url: str, stronger: str) -> None:
        with client(url, issue(engine, "keysmith:tenant")) as admin:
            another = {"name": "n", "scopes": ["keysmith:tenant", "keysmith:keys:read"]}
            assert admin.post("/v1/keys", json=another).status_code == 201
            assert admin.post(f"/v1/keys/{stronger}/rotate").status_code == 200
            self.refused(
                admin.post("/v1/keys", json={"name": "n", "scopes": ["keysmith"]}), "keysmith"
            )

    def test_the_tenant_of_root_keys_is_roots_alone(
        self, engine: Engine, url: str, root: httpx.Client
    ) -> None:
        writes = [scope for scope in FINE if scope.endswith("write")]
        mine = objects(engine, "keysmith")
        [root_key] = [key for key in engine.list_keys(tenant_id="keysmith") if key.name == "root"]
        with client(url, issue(engine, *writes, tenant="keysmith")) as operator:
            for tenant in ("acme", "other"):
                assert (
                    operator.post("/v1/keys", json={"name": "n", "tenant_id": tenant}).status_code
                    == 201
                )
                admin = {"name": "n", "tenant_id": tenant, "scopes": ["keysmith:tenant"]}
                self.refused(operator.post("/v1/keys", json=admin))
            for what in ("keys", "policies", "scopes"):
                there = {"name": "n", "tenant_id": "keysmith"}
                self.refused(operator.post(f"/v1/{what}", json=there), "keysmith")
            self.refused(operator.post(f"/v1/keys/{root_key.id}/rotate"), "keysmith")
            self.refused(operator.delete(f"/v1/keys/{mine['key_id']}"), "keysmith")
            self.refused(operator.patch(f"/v1/policies/{mine['policy_id']}", json={}), "keysmith")
            self.refused(operator.delete(f"/v1/scopes/{mine['scope_id']}"), "keysmith")
            assert (
                operator.delete(f"/v1/policies/{objects(engine, 'other')['policy_id']}").status_code
                == 204
            )
        assert root.delete(f"/v1/keys/{mine['key_id']}").status_code == 204


def test_somebody_elses_way_to_authorize(engine: Engine) -> None:
    """A service that knows its users by other means lets them manage what is their tenant's."""

    def signed_in(request: Request) -> Authority:
        user = request.headers.get("X-User")
        if user is None:
            raise HTTPException(401, "Sign in first.", {"WWW-Authenticate": "Cookie"})
        return Authority(engine.for_tenant("acme"), ["keysmith:keys"], name=user)

    app = FastAPI()
    app.include_router(management_router(engine, authorize=signed_in, prefix="/api-keys"))
    with serving(app) as url, client(f"{url}/api-keys") as caller:
        refused = is_problem(caller.get("/keys"), 401, "http_401")
        assert refused["detail"] == "Sign in first."
        caller.headers["X-User"] = "ada"
        made = caller.post("/keys", json={"name": "n"}).json()
        assert made["key"]["tenant_id"] == "acme"
        path = f"/keys/{made['key']['id']}"
        assert caller.post(f"{path}/rotate").status_code == 200
        assert caller.get(f"{path}/rotations").json()["items"][0]["rotated_by"] == "ada"
        valid = caller.post("/keys/validate", json={"raw_key": made["raw_key"]})
        assert valid.json()["rotated"] is True
        is_problem(caller.get("/policies"), 403, "insufficient_scope")
        is_problem(caller.get(f"/keys/{objects(engine, 'other')['key_id']}"), 404, "key_not_found")


def test_whoever_gets_a_secret_is_looked_at_in_the_transaction_that_makes_it(
    engine: Engine,
) -> None:
    """Else somebody could give the key another scope in between."""
    looked: list[bool] = []

    class Watched(Authority):
        def require_over_key(self, key: Key) -> None:
            looked.append(engine.store.in_transaction)
            super().require_over_key(key)

    app = FastAPI()
    caller = Watched(engine.for_tenant("acme"), ["keysmith:keys"])
    app.include_router(management_router(engine, authorize=lambda: caller))
    made = engine.create_key(KeyCreate(name="n", tenant_id="acme"))
    with serving(app) as url, client(url) as http:
        assert http.post(f"/v1/keys/{made.key.id}/rotate").status_code == 200
    assert looked == [True]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_an_address_that_the_client_made_up(engine: Engine, url: str, header: str) -> None:
    policy = engine.create_policy(
        PolicyCreate(name=f"office {header}", tenant_id="acme", allowed_ips=["10.1.2.3"])
    )
    raw_key = issue(engine, "keysmith:tenant", policy_id=policy.id)
    value = "for=10.1.2.3" if header == "Forwarded" else "10.1.2.3"
    with client(url, raw_key) as caller:
        for method, path, _ in MANAGEMENT:
            answer = caller.request(method, path, headers={header: value})
            is_problem(answer, 403, "ip_not_allowed")
