"""The management routes over real HTTP: what each answers, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from keysmith import AsyncEngine, Engine, KeyCreate, SqliteStore, UsageCreate
from keysmith.fastapi.metering import meter
from keysmith.fastapi.schemas import ValidateRequest
from keysmith.server import Settings, create_app, prepare
from tests.serving import client, is_problem, serving

NO_KEY, NO_POLICY, NO_SCOPE = (f"{kind}_{'0' * 26}" for kind in ("akey", "kpol", "kscp"))
READS_AND_WRITES = ("GET", "PATCH", "PUT", "DELETE")
names = (f"name{number:06}" for number in count())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(SqliteStore(tmp_path_factory.mktemp("management") / "keys.db")) as engine:
        engine.store.migrate()
        yield engine


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serving(create_app(engine, Settings())) as address:
        yield address


@pytest.fixture(scope="module")
def api(engine: Engine, url: str) -> Iterator[httpx.Client]:
    """A client with the root key."""
    with client(f"{url}/v1", prepare(engine)) as opened:
        yield opened


def created(api: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    answer = api.post(path, json={"name": next(names), **fields})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_the_life_of_a_key(api: httpx.Client) -> None:
    created(api, "/scopes", name="users", tenant_id="life")
    made = created(api, "/keys", tenant_id="life", scopes=["users"], metadata={"plan": "gold"})
    key, raw_key = made["key"], made["raw_key"]
    assert (key["tenant_id"], key["metadata"], key["state"]) == ("life", {"plan": "gold"}, "active")
    assert "meta" not in key
    path = f"/keys/{key['id']}"
    assert api.get(path).json() == key
    changed = api.patch(path, json={"metadata": {}, "description": "d"})
    assert (changed.json()["metadata"], changed.json()["description"]) == ({}, "d")

    valid = api.post("/keys/validate", json={"raw_key": raw_key, "scopes": ["users:read"]}).json()
    assert set(valid) == {"key", "scopes", "policy", "rotated", "grace_ends", "rate_limit"}
    assert (valid["key"]["id"], valid["scopes"], valid["rotated"]) == (key["id"], ["users"], False)

    rotated = api.post(f"{path}/rotate", json={"grace": "PT10M", "reason": "scheduled"}).json()
    assert rotated["key"]["id"] == key["id"] != rotated["raw_key"]
    assert api.post("/keys/validate", json={"raw_key": raw_key}).json()["rotated"] is True
    again = api.post(f"{path}/rotate").json()
    [newest, first] = api.get(f"{path}/rotations").json()["items"]
    assert (newest["reason"], newest["grace_ttl_ms"]) == ("manual", 24 * 3_600_000)
    assert (first["reason"], first["grace_ttl_ms"]) == ("scheduled", 600_000)
    assert first["rotated_by"].startswith("akey_")
    assert not {name for name in first if "hash" in name}

    assert api.post(f"{path}/suspend").json()["state"] == "suspended"
    is_problem(api.post(f"{path}/suspend"), 409, "invalid_state_transition")
    assert api.post(f"{path}/reactivate").json()["state"] == "active"
    assert api.post(f"{path}/revoke", json={"reason": "over"}).json()["state"] == "revoked"
    refused = api.post("/keys/validate", json={"raw_key": again["raw_key"]})
    problem = is_problem(refused, 401, "key_revoked")
    assert [(each["location"], each["field"]) for each in problem["errors"]] == [
        ("body", "raw_key")
    ]
    assert api.delete(path).status_code == 204
    is_problem(api.get(path), 404, "key_not_found")


def test_what_is_validated_is_metered(api: httpx.Client, engine: Engine) -> None:
    made = created(api, "/keys", tenant_id="metered")
    for asked, status in (
        ({"path": "/a\n" + "b" * 2000, "method": "GET", "ip": "10.0.0.1"}, 200),
        ({"scopes": ["more"]}, 403),
        ({}, 200),
    ):
        answer = api.post("/keys/validate", json={"raw_key": made["raw_key"], **asked})
        assert answer.status_code == status
    recorded = [
        (each["endpoint"], each["method"], each["status_code"], each["ip_address"])
        for each in api.get(f"/keys/{made['key']['id']}/usage").json()["items"]
    ]
    assert recorded == [("", "", 200, ""), ("/a" + "b" * 1022, "GET", 200, "10.0.0.1")]


def test_what_cannot_be_metered_harms_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(SqliteStore(tmp_path / "keys.db"))
    engine.store.migrate()
    raw_key = engine.create_key(KeyCreate(name="n")).raw_key
    result = engine.validate_key(raw_key)
    engine.close()
    asyncio.run(meter(AsyncEngine(engine), ValidateRequest(raw_key=raw_key), result))
    assert f"{result.key.id} was not recorded" in caplog.text
    assert raw_key not in caplog.text


def test_policies(api: httpx.Client) -> None:
    policy = created(
        api, "/policies", allowed_ips=["10.0.0.0/8"], max_key_lifetime="P90D", rate_limit=5
    )
    path = f"/policies/{policy['id']}"
    assert policy["max_key_lifetime"] == "P90D"
    assert policy["grace_period"] in {"P1D", "PT24H"}
    assert api.get(path).json() == policy
    assert api.patch(path, json={"rate_limit": 7}).json()["max_key_lifetime"] == "P90D"
    replaced = api.put(path, json={"name": next(names), "daily_quota": 3}).json()
    assert (replaced["max_key_lifetime"], replaced["rate_limit"]) == (None, 0)
    assert (replaced["allowed_ips"], replaced["daily_quota"]) == ([], 3)
    moved = api.put(path, json={"name": "n", "tenant_id": "elsewhere"})
    is_problem(moved, 403, "tenant_mismatch")
    key = created(api, "/keys", policy_id=policy["id"])["key"]
    is_problem(api.delete(path), 409, "policy_in_use")
    assert [
        each["id"] for each in api.get("/keys", params={"policy_id": policy["id"]}).json()["items"]
    ] == [key["id"]]
    api.delete(f"/keys/{key['id']}")
    assert api.delete(path).status_code == 204
    is_problem(api.get(path), 404, "policy_not_found")


def test_scopes(api: httpx.Client) -> None:
    scope = created(api, "/scopes", tenant_id="sc", name="a")
    created(api, "/scopes", tenant_id="sc", name="b", parent="a")
    is_problem(api.post("/scopes", json={"tenant_id": "sc", "name": "a"}), 409, "conflict")
    assert api.get(f"/scopes/{scope['id']}").json() == scope
    listed = api.get("/scopes", params={"tenant_id": "sc", "parent": "a"}).json()["items"]
    assert [each["name"] for each in listed] == ["b"]
    key = created(api, "/keys", tenant_id="sc")["key"]
    path = f"/keys/{key['id']}/scopes"
    assert api.post(path, json={"scopes": ["a"]}).status_code == 204
    assert [each["name"] for each in api.get(path).json()["items"]] == ["a"]
    assert (
        "nope"
        in is_problem(api.post(path, json={"scopes": ["nope"]}), 404, "scope_not_found")["detail"]
    )
    assert api.request("DELETE", path, json={"scopes": ["a"]}).status_code == 204
    assert api.get(path).json() == {"items": [], "next": None}
    path = f"/scopes/{scope['id']}"
    changed = api.patch(path, json={"description": "d", "metadata": {"n": 1}})
    assert changed.json() == {**scope, "description": "d", "metadata": {"n": 1}}
    is_problem(api.patch(path, json={"parent": "b"}), 409, "scope_loop")
    is_problem(api.patch(path, json={"parent": "nope"}), 404, "scope_not_found")
    is_problem(api.patch(path, json={"name": "c"}), 422, "invalid_input")
    [below] = listed
    alone = api.patch(f"/scopes/{below['id']}", json={"parent": None}).json()
    assert alone == {**below, "parent": None}
    assert api.get(path).json() == changed.json()
    assert api.delete(path).status_code == 204
    is_problem(api.get(f"/scopes/{scope['id']}"), 404, "scope_not_found")


@pytest.mark.parametrize("what", ["keys", "policies", "scopes"])
def test_pages(api: httpx.Client, what: str) -> None:
    tenant = f"pages-{what}"
    made = [created(api, f"/{what}", tenant_id=tenant) for _ in range(5)]
    ids = [each.get("key", each)["id"] for each in made]
    if what != "scopes":
        ids.reverse()
    seen, cursor = [], None
    for size in (2, 2, 1):
        given = {"cursor": cursor} if cursor else {}
        page = api.get(f"/{what}", params={"tenant_id": tenant, "limit": 2, **given}).json()
        assert len(page["items"]) == size
        seen += [each["id"] for each in page["items"]]
        cursor = page["next"]
    assert (seen, cursor) == (ids, None)
    exact = api.get(f"/{what}", params={"tenant_id": tenant, "limit": 5}).json()
    assert exact["next"] is None, "a full page that is the last"


def test_pages_go_on_when_what_they_ended_with_has_gone(engine: Engine, api: httpx.Client) -> None:
    engine.ensure_scopes(["a", "b", "c"], tenant_id="pages")
    query: dict[str, Any] = {"tenant_id": "pages", "limit": 2}
    page = api.get("/scopes", params=query).json()
    assert api.delete(f"/scopes/{page['items'][-1]['id']}").status_code == 204
    rest = api.get("/scopes", params={**query, "cursor": page["next"]}).json()
    assert ([each["name"] for each in rest["items"]], rest["next"]) == (["c"], None)

    key_id = created(api, "/keys", tenant_id="pages")["key"]["id"]
    moments = [datetime(2020, 1, 1, tzinfo=UTC), datetime(9506, 1, 1, 0, 0, 0, 1, tzinfo=UTC)]
    for moment in moments:
        engine.record_usage(
            UsageCreate(
                key_id=key_id, endpoint="/", method="GET", status_code=200, created_at=moment
            )
        )
    path = f"/keys/{key_id}/usage"
    page = api.get(path, params={"limit": 1}).json()
    with engine.store.db.begin() as connection:
        connection.exec_driver_sql("DELETE FROM keysmith_usage WHERE created_at > '9000-01-01'")
    rest = api.get(path, params={"limit": 1, "cursor": page["next"]}).json()
    assert [each["created_at"] for each in rest["items"]] == ["2020-01-01T00:00:00Z"]


def test_usage(engine: Engine, api: httpx.Client) -> None:
    keys = [created(api, "/keys", tenant_id=f"usage-{number}")["key"]["id"] for number in (1, 2)]
    days = [datetime(2026, 1, day, 12, tzinfo=UTC) for day in (1, 2, 2, 31)]
    for key_id in keys:
        for number, moment in enumerate(days):
            engine.record_usage(
                UsageCreate(
                    key_id=key_id,
                    endpoint=f"/{number}",
                    method="GET",
                    status_code=200 + 200 * (number % 2),
                    created_at=moment,
                )
            )
    path = f"/keys/{keys[0]}/usage"

    def listed(path: str, **query: Any) -> list[dict[str, Any]]:
        items, cursor = [], None
        while True:
            given = query if cursor is None else {**query, "cursor": cursor}
            page = api.get(path, params={"limit": 1, **given}).json()
            assert len(page["items"]) <= 1
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items

    assert [each["endpoint"] for each in listed(path)] == ["/3", "/2", "/1", "/0"]
    since = {"since": "2026-01-02T12:00:00Z", "until": "2026-01-31T12:00:00Z"}
    assert [each["endpoint"] for each in listed(path, **since)] == ["/2", "/1"]

    by_day = listed(f"{path}/aggregate")
    assert [(each["period_start"][:10], each["request_count"]) for each in by_day] == [
        ("2026-01-31", 1),
        ("2026-01-02", 2),
        ("2026-01-01", 1),
    ]
    [month] = listed(f"{path}/aggregate", period="monthly")
    assert (month["request_count"], month["error_count"]) == (4, 2)
    assert "latency_sketch" not in month
    of_all = listed("/usage", since="2026-01-01T00:00Z", until="2026-02-01T00:00Z")
    assert len(of_all) == 6
    assert {each["tenant_id"] for each in of_all} == {"usage-1", "usage-2"}
    of_one = listed("/usage", tenant_id="usage-1", period="monthly")
    assert [each["key_id"] for each in of_one] == [keys[0]]


def test_filters(api: httpx.Client) -> None:
    policy = created(api, "/policies", tenant_id="fil", name="daily", rotation_period="P1D")
    for environment, more in (
        ("live", {"policy_id": policy["id"]}),
        ("test", {"expires_at": "2998-01-01T00:00:00Z"}),
    ):
        given = {"environment": environment, "created_by": environment, **more}
        created(api, "/keys", tenant_id="fil", **given)
    for query, expected in (
        ({"environment": "test"}, ["test"]),
        ({"created_by": "live"}, ["live"]),
        ({"state": "revoked"}, []),
        ({"expires_by": "2998-01-01T00:00:00Z"}, ["test"]),
        ({"rotation_due_by": "2997-01-01T00:00:00Z"}, ["live"]),
        ({"rotation_due_by": "2026-01-01T00:00:00Z"}, []),
        ({"unused_since": "2997-01-01T00:00:00Z"}, ["test", "live"]),
        ({"unused_since": "2026-01-01T00:00:00Z"}, []),
        ({}, ["test", "live"]),
    ):
        given = {"tenant_id": "fil", **query}
        found = api.get("/keys", params=given).json()["items"]
        assert [each["environment"] for each in found] == expected
        assert api.get("/keys/count", params=given).json() == {"count": len(expected)}


@pytest.mark.parametrize(
    ("method", "path", "sent", "field"),
    [
        ("POST", "/keys", {"json": {}}, "name"),
        ("POST", "/keys", {"json": {"name": ""}}, "name"),
        ("POST", "/keys", {"json": {"name": "a\x00b"}}, "name"),
        ("POST", "/keys", {"json": {"name": "n", "key_hash": "0" * 64}}, "key_hash"),
        ("POST", "/keys", {"json": {"name": "n", "sk_live_" + "x" * 49: 1}}, "(unknown)"),
        ("POST", "/keys", {"json": {"name": "n", "expires_at": "2020-01-01T00:00Z"}}, "expires_at"),
        ("POST", "/keys", {"json": {"name": "n", "expires_at": "2099-01-01T00:00"}}, "expires_at"),
        ("POST", "/keys", {"json": {"name": "n", "expires_at": 4102444800}}, "expires_at"),
        ("POST", "/keys", {"json": {"name": "n", "expires_at": "4102444800"}}, "expires_at"),
        ("POST", "/keys", {"json": {"name": "n", "scopes": ["A B"]}}, "scopes.0"),
        ("POST", "/keys", {"json": {"name": "n", "metadata": [1]}}, "metadata"),
        ("POST", "/keys", {"content": b"{", "headers": {"Content-Type": "application/json"}}, ""),
        ("POST", "/keys", {"content": b'{"name": "n"}'}, ""),
        ("POST", "/keys/validate", {"json": {"raw_key": 5}}, "raw_key"),
        ("POST", "/keys/validate", {"json": {"raw_key": "x", "cost": 0}}, "cost"),
        ("PATCH", f"/keys/{NO_KEY}", {"json": {"name": None}}, ""),
        ("POST", f"/keys/{NO_KEY}/rotate", {"json": {"grace": "soon"}}, "grace"),
        ("POST", f"/keys/{NO_KEY}/rotate", {"json": {"reason": "why"}}, "reason"),
        ("POST", "/policies", {"json": {"name": "n", "allowed_ips": ["1/8"]}}, "allowed_ips.0"),
        ("POST", "/scopes", {"json": {"name": "Not A Scope"}}, "name"),
        ("GET", "/keys", {"params": {"limit": 0}}, "limit"),
        ("GET", "/keys", {"params": {"limit": 1001}}, "limit"),
        ("GET", "/keys", {"params": {"cursor": "x"}}, "cursor"),
        ("GET", "/keys", {"params": {"state": "asleep"}}, "state"),
        ("GET", "/keys", {"params": {"colour": "red"}}, "colour"),
        ("GET", "/keys/count", {"params": {"limit": 1}}, "limit"),
        ("GET", f"/keys/{NO_KEY}/rotations", {"params": {"limit": "many"}}, "limit"),
        ("GET", "/usage", {"params": {"since": "1767225600"}}, "since"),
        ("GET", "/usage", {"params": {"until": "2026-01-01T00:00:00"}}, "until"),
        ("GET", "/usage", {"params": {"cursor": f"yesterday.{NO_KEY}"}}, "cursor"),
        ("GET", "/usage", {"params": {"cursor": "2026-01-01.kpol"}}, "cursor"),
        ("GET", f"/keys/{NO_KEY}/usage", {"params": {"cursor": NO_KEY}}, "cursor"),
        ("GET", "/scopes", {"params": {"cursor": f"{NO_SCOPE}.A"}}, "cursor"),
        ("GET", "/usage", {"params": {"period": "hourly"}}, "period"),
        ("POST", "/policies", {"json": {"name": "n", "daily_quota": True}}, "daily_quota"),
        ("POST", "/policies", {"json": {"name": "n", "grace_period": False}}, "grace_period"),
    ],
)  # fmt: skip
def test_wrong_input(
    api: httpx.Client, method: str, path: str, sent: dict[str, Any], field: str
) -> None:
    problem = is_problem(api.request(method, path, **sent), 422, "invalid_input")
    assert [each["field"] for each in problem["errors"]] == [field]
    assert "input" not in problem["errors"][0]


@pytest.mark.parametrize(
    ("path", "sent", "said"),
    [
        ("/keys", {"content": b'{"name": "n"}'}, "must be a JSON object, sent with `Content-Type"),
        ("/keys", {"json": []}, "must be a JSON object"),
        (f"/keys/{NO_KEY}/rotate", {"content": b"{}"}, "must be a JSON object, sent with"),
        (
            "/keys",
            {"content": b'{"a": 1,}', "headers": {"Content-Type": "application/json"}},
            "is not JSON from character 9 on",
        ),
        ("/policies", {"json": {"name": "n", "grace_period": "10m"}}, "ISO 8601 such as PT10M, or"),
        ("/policies", {"json": {"name": "n", "grace_period": [1]}}, "ISO 8601 such as PT10M, or"),
        (f"/keys/{NO_KEY}/rotate", {"json": {"grace": "10m"}}, "ISO 8601 such as PT10M, or"),
    ],
)
def test_wrong_input_is_told_in_the_words_of_http(
    api: httpx.Client, path: str, sent: dict[str, Any], said: str
) -> None:
    problem = is_problem(api.post(path, **sent), 422, "invalid_input")
    assert said in problem["errors"][0]["detail"]
    assert problem["detail"].startswith("The request is not valid: see ")
    assert not set("0123456789") & set(problem["detail"])


def test_clients_are_told_of_requests_and_not_of_calls(api: httpx.Client) -> None:
    def detail(answer: httpx.Response) -> str:
        assert answer.status_code in (403, 404)
        return str(answer.json()["detail"])

    assert "`GET /keys` shows them" in detail(api.get(f"/keys/{NO_KEY}"))
    assert "`GET /scopes` shows them" in detail(api.get(f"/scopes/{NO_SCOPE}"))
    unknown = {"name": "n", "scopes": ["nope"]}
    assert "Declare scopes with `POST /scopes`" in detail(api.post("/keys", json=unknown))
    created(api, "/scopes", tenant_id="told", name="keysmith:tenant")
    manager = created(api, "/keys", tenant_id="told", scopes=["keysmith:tenant"])["raw_key"]
    foreign = api.post(
        "/keys",
        json={"name": "n", "tenant_id": "other"},
        headers={"Authorization": f"Bearer {manager}"},
    )
    assert detail(foreign).startswith("You act for another tenant.")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        *((m, f"/keys/{NO_KEY}{rest}", "key_not_found") for m, rest in [
            ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/revoke"),
            ("POST", "/suspend"), ("POST", "/reactivate"), ("GET", "/scopes"), ("POST", "/scopes"),
            ("DELETE", "/scopes"), ("GET", "/rotations"), ("GET", "/usage"),
            ("GET", "/usage/aggregate"),
        ]),
        ("GET", "/keys/not-an-id", "key_not_found"),
        *((m, f"/policies/{NO_POLICY}", "policy_not_found") for m in READS_AND_WRITES),
        *((m, f"/scopes/{NO_SCOPE}", "scope_not_found") for m in ("GET", "PATCH", "DELETE")),
        ("GET", "/nowhere", "http_404"),
    ],
)  # fmt: skip
def test_what_is_not_there(api: httpx.Client, method: str, path: str, code: str) -> None:
    bodies = {f"/keys/{NO_KEY}/scopes": {"scopes": []}, "policies": {"name": "n"}}
    body = next((body for part, body in bodies.items() if part in path), {})
    sent = {} if method == "GET" else {"json": body}
    is_problem(api.request(method, path, **sent), 404, code)


def test_a_body_that_is_too_large(api: httpx.Client) -> None:
    answer = api.post("/keys", json={"name": "n", "description": "x" * 2_000_000})
    assert answer.status_code == 413
    in_pieces = (b'"' + b"x" * 100_000 + b'"' for _ in range(20))
    headers = {"Content-Type": "application/json"}
    is_problem(api.post("/keys", content=in_pieces, headers=headers), 413, "http_413")


def test_the_root_key_is_made_once(tmp_path: Any) -> None:
    with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
        engine.store.migrate()
        root = prepare(engine)
        assert root is not None
        assert prepare(engine) is None
        result = engine.validate_key(root, scopes=["keysmith:keys:read"])
        assert result.key.tenant_id == "keysmith"
        engine.revoke_key(result.key.id)
        assert prepare(engine) is None, "whoever revokes it wants none"


def test_the_server_speaks_of_itself(url: str) -> None:
    with client(url) as anyone:
        assert anyone.get("/healthz").json() == {"status": "ok"}
        assert "swagger" in anyone.get("/docs").text.lower()
        document = anyone.get("/openapi.json").json()
    assert "/v1/keys/{key_id}/rotate" in document["paths"]
    assert document["components"]["securitySchemes"]["Keysmith"]["scheme"] == "bearer"
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)


def test_what_a_path_does_not_do(api: httpx.Client) -> None:
    for path, allowed in (
        ("/keys", "GET, POST"),
        ("/keys/akey_x", "DELETE, GET, PATCH"),
        ("/policies/kpol_x", "DELETE, GET, PATCH, PUT"),
        ("/keys/validate", "POST"),
        ("/usage", "GET"),
    ):
        answer = api.request("OPTIONS", path)
        is_problem(answer, 405, "http_405")
        assert answer.headers["allow"] == allowed


def test_what_cannot_be_null_is_not_documented_as_null(api: httpx.Client) -> None:
    schemas = api.get(f"{api.base_url.copy_with(path='/openapi.json')}").json()["components"][
        "schemas"
    ]
    for name, clearable in (("KeyUpdate", 2), ("PolicyUpdate", 2)):
        properties = schemas[name]["properties"].values()
        assert sum({"type": "null"} in each.get("anyOf", []) for each in properties) == clearable
    path = f"/keys/{created(api, '/keys')['key']['id']}"
    problem = is_problem(api.patch(path, json={"metadata": None}), 422, "invalid_input")
    assert problem["errors"][0]["detail"].startswith("metadata cannot be null")


def test_a_grace_that_is_too_long(api: httpx.Client) -> None:
    key = created(api, "/keys")["key"]
    years = timedelta(days=36_500).total_seconds()
    answer = api.post(f"/keys/{key['id']}/rotate", json={"grace": years})
    assert is_problem(answer, 422, "invalid_input")["errors"][0]["field"] == "grace"
