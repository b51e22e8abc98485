"""`APIKeyAuth` and problem details, in an application of somebody's own, over real HTTP."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Security, WebSocket
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from keysmith import (
    Engine,
    KeyCreate,
    PolicyCreate,
    QuotaExceededError,
    RateLimitedError,
    ScopeNotFoundError,
    SqliteStore,
    StoreFullError,
    ValidationResult,
)
from keysmith.clock import utc_now
from keysmith.fastapi import APIKeyAuth, HTTPProblem, install_problem_handlers
from tests.serving import client, is_problem, serving


class Item(BaseModel):
    count: int


def application(engine: Engine) -> FastAPI:
    app = FastAPI()
    auth, optional = APIKeyAuth(engine), APIKeyAuth(engine, optional=True)

    @app.get("/who")
    def who(key: Annotated[ValidationResult, Security(auth)]) -> str:
        return key.key.name

    @app.get("/async")
    async def who_async(key: Annotated[ValidationResult, Security(auth, scopes=["a:b"])]) -> str:
        return key.key.name

    @app.get("/both")
    def both(key: Annotated[ValidationResult | None, Security(optional)]) -> str:
        return key.key.name if key else "nobody"

    def inner(key: Annotated[ValidationResult, Security(auth, scopes=["a:b"])]) -> str:
        return key.key.name

    @app.get("/nested")
    def nested(name: Annotated[str, Security(inner, scopes=["c"])]) -> str:
        return name

    @app.post("/items")
    def items(item: Item, _: Annotated[ValidationResult, Depends(auth)]) -> int:
        return item.count

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, number: int) -> None: ...

    @app.get("/fails/{how}")
    def fails(how: str) -> None:
        raise {
            "limited": RateLimitedError(retry_after=1.2),
            "quota": QuotaExceededError(resets_at=utc_now() + timedelta(seconds=90)),
            "full": StoreFullError(),
            "scope": ScopeNotFoundError(names=["sk_live_NotAScope"]),
            "teapot": HTTPException(418, {"short": "stout"}, {"X-Pot": "tea"}),
            "none": HTTPException(304),
            "item": HTTPProblem(409, "item_taken", "There is one."),
        }[how]

    @app.get("/broken")
    def broken() -> None:
        Item.model_validate({"count": "sk_live_secret"})

    return app


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(SqliteStore(tmp_path_factory.mktemp("auth") / "keys.db")) as opened:
        opened.store.migrate()
        opened.ensure_scopes(["a", "a:b", "c"])
        yield opened


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    app = application(engine)
    install_problem_handlers(app)
    with serving(app) as address:
        yield address


def issue(engine: Engine, **fields: Any) -> str:
    return engine.create_key(KeyCreate(**{"name": "somebody", **fields})).raw_key


def get(url: str, path: str, *headers: tuple[str, str]) -> httpx.Response:
    return httpx.get(url + path, headers=list(headers), trust_env=False, timeout=60)


def test_a_key_in_either_header(engine: Engine, url: str) -> None:
    raw_key = issue(engine)
    for header in (
        ("Authorization", f"Bearer {raw_key}"),
        ("authorization", f"bearer   {raw_key}"),
        ("X-API-Key", raw_key),
        ("x-api-key", raw_key),
    ):
        answer = get(url, "/who", header)
        assert (answer.status_code, answer.json()) == (200, "somebody")
    answer = get(url, "/who", ("Authorization", "Basic dTpw"), ("X-API-Key", raw_key))
    assert answer.status_code == 200, "the scheme of another is another's business"


def test_without_a_key(url: str) -> None:
    for headers in ([], [("Authorization", "Basic dTpw")], [("Authorization", "")]):
        answer = get(url, "/who", *headers)
        problem = is_problem(answer, 401, "missing_key")
        assert "X-API-Key" in problem["detail"]
        assert answer.headers["www-authenticate"] == "Bearer"


def test_where_a_key_is_optional(engine: Engine, url: str) -> None:
    assert get(url, "/both").json() == "nobody"
    assert get(url, "/both", ("X-API-Key", issue(engine))).json() == "somebody"
    is_problem(get(url, "/both", ("X-API-Key", "wrong")), 401, "invalid_key")


def test_what_is_no_key_or_too_many(engine: Engine, url: str) -> None:
    one = issue(engine)
    bearer, header = ("Authorization", f"Bearer {one}"), ("X-API-Key", one)
    for several in ([bearer, bearer], [header, header], [bearer, header]):
        is_problem(get(url, "/who", *several), 400, "several_credentials")
    for value in ("Bearer", f"Bearer {one} {one}", "Bearer\t" + one):
        malformed = get(url, "/who", ("Authorization", value))
        assert malformed.status_code in (400, 401), value
        assert malformed.json()["code"] in {"malformed_credentials", "missing_key"}
    is_problem(get(url, "/who", ("X-API-Key", "")), 400, "malformed_credentials")
    is_problem(get(url, "/who", ("X-API-Key", "k" * 20_000)), 401, "invalid_key")


def test_nothing_tells_a_foreign_key_from_an_unknown_one(engine: Engine) -> None:
    bound = application(engine.for_tenant("acme"))
    install_problem_handlers(bound)
    mistyped = issue(engine)[:-1] + "_"
    unknown = issue(engine)
    engine.delete_key(engine.validate_key(unknown).key.id)
    with serving(bound) as url:
        answers = [
            get(url, "/who", ("X-API-Key", raw_key))
            for raw_key in (issue(engine, tenant_id="other"), unknown, mistyped, "x")
        ]
        assert get(url, "/who", ("X-API-Key", issue(engine, tenant_id="acme"))).status_code == 200
    for answer in answers:
        is_problem(answer, 401, "invalid_key")
        assert answer.content == answers[0].content
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_scopes_also_of_nested_dependencies(engine: Engine, url: str) -> None:
    keys = {scopes: issue(engine, scopes=scopes.split()) for scopes in ("a", "c", "a c", "")}

    def status(path: str, scopes: str) -> int:
        return get(url, path, ("X-API-Key", keys[scopes])).status_code

    assert [status("/async", scopes) for scopes in ("a", "c", "")] == [200, 403, 403]
    assert [status("/nested", scopes) for scopes in ("a", "c", "a c")] == [403, 403, 200]
    refused = get(url, "/nested", ("X-API-Key", keys["a"]))
    assert is_problem(refused, 403, "insufficient_scope")["detail"].endswith("granted: c.")
    assert "insufficient_scope" in refused.headers["www-authenticate"]


def test_states_and_policies(engine: Engine, url: str) -> None:
    raw_key = issue(engine)
    key_id = engine.validate_key(raw_key).key.id
    with client(url, raw_key) as caller:
        engine.suspend_key(key_id)
        is_problem(caller.get("/who"), 401, "key_suspended")
        engine.reactivate_key(key_id)
        for number, (rules, code) in enumerate(
            (
                ({"allowed_ips": ["10.0.0.0/8"]}, "ip_not_allowed"),
                ({"allowed_origins": ["https://a.example"]}, "origin_not_allowed"),
                ({"allowed_methods": ["POST"]}, "method_not_allowed"),
                ({"allowed_paths": ["/other"]}, "path_not_allowed"),
            )
        ):
            policy = engine.create_policy(PolicyCreate(name=f"{code} {number}", **rules))
            bound = issue(engine, policy_id=policy.id)
            is_problem(get(url, "/who", ("X-API-Key", bound)), 403, code)
        policy = engine.create_policy(
            PolicyCreate(
                name="good",
                allowed_ips=["127.0.0.1"],
                allowed_origins=["https://a.example"],
                allowed_methods=["GET"],
                allowed_paths=["/who"],
            )
        )
        good, origin = issue(engine, policy_id=policy.id), ("Origin", "https://a.example")
        assert get(url, "/who", ("X-API-Key", good), origin).status_code == 200
        twice = get(url, "/who", ("X-API-Key", good), origin, origin)
        is_problem(twice, 403, "origin_not_allowed")
        engine.revoke_key(key_id)
        is_problem(caller.get("/who"), 401, "key_revoked")


def test_problems_of_all_kinds(engine: Engine, url: str) -> None:
    assert get(url, "/fails/limited").headers["retry-after"] == "2"
    is_problem(get(url, "/fails/limited"), 429, "rate_limited")
    quota = get(url, "/fails/quota")
    is_problem(quota, 429, "quota_exceeded")
    assert 80 <= int(quota.headers["retry-after"]) <= 90
    is_problem(get(url, "/fails/full"), 503, "store_full")
    assert "NotAScope" not in is_problem(get(url, "/fails/scope"), 404, "scope_not_found")["detail"]
    teapot = get(url, "/fails/teapot")
    assert is_problem(teapot, 418, "http_418")["detail"] == '{"short": "stout"}'
    assert teapot.headers["x-pot"] == "tea"
    assert (get(url, "/fails/none").status_code, get(url, "/fails/none").content) == (304, b"")
    assert is_problem(get(url, "/fails/item"), 409, "item_taken")["title"] == "Item taken"
    is_problem(get(url, "/nowhere"), 404, "http_404")
    is_problem(httpx.post(f"{url}/who", trust_env=False, timeout=60), 405, "http_405")
    broken = is_problem(get(url, "/broken"), 422, "invalid_input")
    assert "secret" not in str(broken)


def test_wrong_input_is_named_and_not_repeated(engine: Engine, url: str) -> None:
    with client(url, issue(engine)) as caller:
        for body, fields in (
            ({"count": "sk_live_secret"}, ["count"]),
            ({}, ["count"]),
            ([], [""]),
        ):
            answer = caller.post("/items", json=body)
            problem = is_problem(answer, 422, "invalid_input")
            assert [each["field"] for each in problem["errors"]] == fields
            assert {each["location"] for each in problem["errors"]} == {"body"}
            assert "secret" not in answer.text
        broken = caller.post(
            "/items", content='{"sk_live_secret', headers={"Content-Type": "application/json"}
        )
        is_problem(broken, 422, "invalid_input")
        assert "secret" not in broken.text


def test_a_websocket_that_is_asked_for_wrongly(url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{url.replace('http', 'ws')}/socket?number=sk_live_secret", open_timeout=60)
    assert refused.value.response.status_code == 403


def test_a_header_of_a_megabyte(engine: Engine, url: str) -> None:
    is_problem(get(url, "/both", ("X-API-Key", "k" * 60_000)), 401, "invalid_key")
    with suppress(httpx.TransportError):  # uvicorn reads no more than 64 KiB, and hangs up
        assert get(url, "/both", ("X-API-Key", "k" * 1_000_000)).status_code == 400
    assert get(url, "/both").status_code == 200
    for name, code in ((b"x-api-key", "invalid_key"), (b"x-forwarded-for", "missing_key")):
        scope = {"type": "http", "path": "/", "headers": [(name, b"k" * 1_000_000)]}
        with pytest.raises(HTTPProblem) as refused:  # other servers read what they are sent
            asyncio.run(APIKeyAuth(engine).authenticate(HTTPConnection(scope)))
        assert (refused.value.status_code, refused.value.code) == (401, code)


def test_without_the_handlers_it_is_refused_all_the_same(engine: Engine) -> None:
    with serving(application(engine)) as url:
        assert get(url, "/who").status_code == 401
        assert get(url, "/who", ("X-API-Key", "wrong")).json() == {
            "detail": "The API key is not valid."
        }
        assert get(url, "/async", ("X-API-Key", issue(engine))).status_code == 403


def test_when_the_store_does_not_answer(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(SqliteStore(tmp_path / "missing" / "keys.db"))
    app = application(engine)
    install_problem_handlers(app)
    with serving(app) as url:
        answer = get(url, "/who", ("X-API-Key", "k" * 40))
        is_problem(answer, 503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert "store_unavailable" in caplog.text
    assert "kkkk" not in caplog.text
