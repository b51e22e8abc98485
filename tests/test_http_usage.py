"""What happens around a request with a key: metering, limits told, lifespans, sockets, mounts."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response, Security, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from keysmith import (
    AsyncEngine,
    Engine,
    KeyCreate,
    PolicyCreate,
    SchemaOutdatedError,
    SqliteStore,
    StoreUnavailableError,
    UsageRecord,
    ValidationResult,
)
from keysmith.fastapi import (
    APIKeyAuth,
    UsageMiddleware,
    install_problem_handlers,
    keysmith_lifespan,
)
from tests.conftest import START, TurnableClock
from tests.serving import client, is_problem, serving


class Ticking:
    """Seconds that pass by 0.25 whenever somebody looks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.25
        return self.seconds


def application(engine: Engine) -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    app.add_middleware(UsageMiddleware, engine=AsyncEngine(engine), timer=Ticking())
    auth = APIKeyAuth(engine, trusted_proxies=["127.0.0.1"])
    optional = APIKeyAuth(engine, optional=True)
    Key = Annotated[ValidationResult, Security(auth)]  # noqa: N806

    @app.get("/users/{user_id}")
    def user(user_id: int, key: Key) -> int:
        return user_id

    @app.get("/optional")
    async def either(key: Annotated[ValidationResult | None, Depends(optional)]) -> bool:
        return key is not None

    @app.get("/missing")
    async def missing(key: Key) -> None:
        raise HTTPException(404)

    @app.get("/broken")
    async def broken(key: Key) -> None:
        raise RuntimeError

    @app.get("/own")
    async def own(key: Key) -> Response:
        return PlainTextResponse("own", headers={"RateLimit-Policy": "mine"})

    tenants = APIKeyAuth(engine.for_tenant("default"))

    @app.get("/twice", dependencies=[Security(auth, scopes=["a"]), Security(tenants)])
    async def twice(
        key: Key, also: Annotated[ValidationResult, Security(auth, scopes=["b"])]
    ) -> None: ...

    @app.websocket("/socket")
    async def socket(
        websocket: WebSocket, key: Annotated[ValidationResult, Security(auth, scopes=["a"])]
    ) -> None:
        await websocket.accept()
        await websocket.send_text(key.key.name)
        await websocket.receive_text()

    @app.websocket("/refusing")
    async def refusing(websocket: WebSocket, key: Key) -> None:
        await websocket.close()

    items = APIRouter(prefix="/items")

    @items.get("/{item_id}/parts/{part:path}")
    def part(item_id: str, part: str, key: Key) -> str:
        return part

    outer = APIRouter(prefix="/v2/{version}")
    outer.include_router(items)
    app.include_router(outer)

    inner = FastAPI()
    install_problem_handlers(inner)
    inner.include_router(items)
    app.mount("/tenants/{tenant}/sub", inner)
    return app


@pytest.fixture(scope="module")
def clock() -> TurnableClock:
    return TurnableClock(START)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, clock: TurnableClock) -> Iterator[Engine]:
    store = SqliteStore(tmp_path_factory.mktemp("usage") / "keys.db")
    with Engine(store, clock=clock) as opened:
        opened.store.migrate()
        opened.ensure_scopes(["a", "b"])
        yield opened


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serving(application(engine)) as address:
        yield address


@pytest.fixture
def caller(engine: Engine, url: str) -> Iterator[tuple[httpx.Client, Callable[[], list[Any]]]]:
    """A client with a key of its own, and what has been recorded of that key, oldest first."""
    created = engine.create_key(KeyCreate(name="caller", scopes=["a", "b"]))

    def recorded() -> list[UsageRecord]:
        return list(reversed(engine.query_usage(key_id=created.key.id)))

    with client(url, created.raw_key) as opened:
        yield opened, recorded


Caller = tuple[httpx.Client, Callable[[], list[UsageRecord]]]


def limited(engine: Engine, name: str, **rules: Any) -> str:
    policy = engine.create_policy(PolicyCreate(name=name, **rules))
    return engine.create_key(KeyCreate(name=name, policy_id=policy.id)).raw_key


def asgi_scope(api: httpx.Client) -> dict[str, Any]:
    """A request of this client, as a server hands it on."""
    authorization = api.headers["Authorization"].encode()
    return {
        "type": "http",
        "method": "GET",
        "path": "/path",
        "headers": [(b"authorization", authorization)],
    }


class TestUsage:
    def test_a_request(self, caller: Caller, clock: TurnableClock) -> None:
        api, recorded = caller
        headers = {"User-Agent": "probe/1 " + "x" * 2000, "X-Forwarded-For": "6.6.6.6, 1.2.3.4"}
        assert api.get("/users/17", headers=headers).status_code == 200
        [record] = recorded()
        assert (record.endpoint, record.method, record.status_code) == (
            "/users/{user_id}",
            "GET",
            200,
        )
        assert (record.ip_address, record.latency_ms) == ("1.2.3.4", 250.0)
        assert record.user_agent == headers["User-Agent"][:1024]
        assert record.created_at == clock.now

    def test_whatever_the_answer(self, caller: Caller) -> None:
        api, recorded = caller
        for path, status in (
            ("/users/x", 422),
            ("/missing", 404),
            ("/broken", 500),
            ("/own", 200),
            ("/users/1", 405),
        ):
            method = "POST" if status == 405 else "GET"
            # After an error uvicorn closes the connection, which a client may notice too late.
            once = {"Connection": "close"}
            assert api.request(method, path, headers=once).status_code == status
        assert [(each.endpoint, each.status_code) for each in recorded()] == [
            ("/users/{user_id}", 422),
            ("/missing", 404),
            ("/broken", 500),
            ("/own", 200),
        ]

    def test_only_with_a_valid_key(self, engine: Engine, url: str, caller: Caller) -> None:
        api, recorded = caller
        assert api.get("/optional").json() is True
        before = len(engine.query_usage())
        with client(url) as anyone:
            assert anyone.get("/optional").json() is False
            for key in ("wrong", ""):
                assert anyone.get("/users/1", headers={"X-API-Key": key}).is_error
        assert len(engine.query_usage()) == before
        assert [each.endpoint for each in recorded()] == ["/optional"]

    def test_routers_and_mounts_have_their_templates(self, caller: Caller) -> None:
        api, recorded = caller
        assert api.get("/v2/3/items/i7/parts/a/b").json() == "a/b"
        assert api.get("/tenants/acme/sub/items/i7/parts/a/b").json() == "a/b"
        assert [each.endpoint for each in recorded()] == [
            "/v2/{version}/items/{item_id}/parts/{part}",
            "/tenants/{tenant}/sub/items/{item_id}/parts/{part}",
        ]

    def test_a_websocket(self, engine: Engine, url: str, caller: Caller) -> None:
        api, recorded = caller
        address = url.replace("http", "ws")
        headers = {"Authorization": api.headers["Authorization"]}
        with connect(f"{address}/socket", additional_headers=headers, open_timeout=60) as socket:
            assert socket.recv() == "caller"
            socket.send("bye")
        for path, key, status in (
            ("/refusing", headers, 403),
            ("/socket", {}, 401),
            ("/socket", {"X-API-Key": limited(engine, "no scope")}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"{address}{path}", additional_headers=key, open_timeout=60)
            assert refused.value.response.status_code == status
        assert [(each.endpoint, each.method, each.status_code) for each in recorded()] == [
            ("/socket", "GET", 101),
            ("/refusing", "GET", 403),
        ]
        assert {each.latency_ms for each in recorded()} == {250.0}

    def test_what_cannot_be_recorded_harms_nobody(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept, other = (Engine(SqliteStore(tmp_path / f"{name}.db")) for name in "ab")
        kept.store.migrate()
        app = application(kept)
        app.user_middleware = [Middleware(UsageMiddleware, engine=other)]
        other.close()
        raw_key = kept.create_key(KeyCreate(name="n")).raw_key
        with serving(app) as url, caplog.at_level(logging.WARNING, "keysmith"):
            with client(url, raw_key) as api:
                assert api.get("/users/1").status_code == 200
        assert "was not recorded" in caplog.text
        assert raw_key not in caplog.text
        kept.close()

    def test_a_status_that_is_none_harms_nobody(
        self, engine: Engine, caller: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        api, recorded = caller
        auth = APIKeyAuth(engine)
        sent: list[Any] = []

        async def strange(scope: Any, receive: Any, send: Any) -> None:
            await auth.authenticate(Request(scope))
            await PlainTextResponse("strange", status_code=799)(scope, receive, send)

        async def send(message: Any) -> None:
            sent.append(message)

        middleware = UsageMiddleware(strange, engine)
        asyncio.run(middleware(asgi_scope(api), None, send))  # type: ignore[arg-type]
        assert [each.get("status", each.get("body")) for each in sent] == [799, b"strange"]
        assert recorded() == []
        assert "status_code" in caplog.text

    def test_starlette(self, engine: Engine, caller: Caller) -> None:
        auth = APIKeyAuth(engine)

        async def user(request: Request) -> PlainTextResponse:
            result = await auth.authenticate(request, ["a"])
            assert result is not None
            return PlainTextResponse(result.key.name)

        users = [Route("/users/{id}", user)]
        app = Starlette(
            routes=[*users, Mount("/m/{x}", routes=users)],
            middleware=[Middleware(UsageMiddleware, engine=engine)],
        )
        api, recorded = caller
        with serving(app) as url, client(url) as anyone:
            key = {"Authorization": api.headers["Authorization"]}
            assert anyone.get("/users/1", headers=key).text == "caller"
            assert anyone.get("/m/y/users/1", headers=key).text == "caller"
            assert anyone.get("/users/1").status_code == 401
        assert [each.endpoint for each in recorded()] == ["/users/{id}", "/m/{x}/users/{id}"]

    def test_a_client_that_does_not_wait(self, engine: Engine, caller: Caller) -> None:
        """Cancelled from outside, as a server does when it is stopped."""
        api, recorded = caller
        auth = APIKeyAuth(engine)
        reached = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await auth.authenticate(Request(scope))
            reached.set()
            await asyncio.sleep(60)

        async def scenario() -> None:
            middleware = UsageMiddleware(slow, engine)
            calling = middleware(asgi_scope(api), None, None)  # type: ignore[arg-type]
            task = asyncio.ensure_future(calling)
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(scenario())
        assert [(each.endpoint, each.status_code) for each in recorded()] == [("/path", 499)]


class TestLimits:
    def test_what_is_told_of_them(self, engine: Engine, url: str, clock: TurnableClock) -> None:
        window = timedelta(seconds=60)
        raw_key = limited(engine, "limited", rate_limit=6, rate_limit_window=window)
        with client(url, raw_key) as api:
            for left, path in ((5, "/users/1"), (4, "/users/x"), (3, "/missing"), (2, "/own")):
                told = api.get(path).headers
                policy = "mine" if path == "/own" else '"default";q=6;w=60'
                assert told["ratelimit-policy"] == policy
                assert told["ratelimit"].startswith(f'"default";r={left};t=')
                assert 60 <= int(told["ratelimit"].rpartition("=")[2]) <= 62
            api.get("/users/1")
            api.get("/users/1")
            refused = api.get("/users/1")
            is_problem(refused, 429, "rate_limited")
            seconds = int(refused.headers["retry-after"])
            assert refused.headers["ratelimit"] == f'"default";r=0;t={seconds}'
            assert refused.headers["ratelimit-policy"] == '"default";q=6;w=60'
            clock.turn(seconds=seconds)
            assert api.get("/users/1").status_code == 200
        with client(url, limited(engine, "unlimited")) as api:
            told = api.get("/users/1").headers
            assert not {"ratelimit", "ratelimit-policy"} & set(told)

    def test_bursts_are_told_of_whether_refused_or_not(self, engine: Engine, url: str) -> None:
        with client(url, limited(engine, "burst", burst_limit=1)) as api:
            told = api.get("/users/1").headers
            assert told["ratelimit-policy"] == '"burst";q=1;w=1'
            assert "ratelimit" not in told, "what is left is not known"
            refused = api.get("/users/1")
            is_problem(refused, 429, "rate_limited")
            assert refused.headers["ratelimit-policy"] == '"burst";q=1;w=1'
            assert refused.headers["ratelimit"] == '"burst";r=0;t=2'
        with client(url, limited(engine, "both", rate_limit=9, burst_limit=1)) as api:
            for status in (200, 429):
                answer = api.get("/users/1")
                assert answer.status_code == status
                told = answer.headers
                assert told["ratelimit-policy"] == '"default";q=9;w=60, "burst";q=1;w=1'
            assert told["ratelimit"] == '"default";r=0;t=2'

    def test_a_quota_is_told_by_the_engines_clock(
        self, engine: Engine, url: str, clock: TurnableClock
    ) -> None:
        with client(url, limited(engine, "quota", daily_quota=1)) as api:
            assert api.get("/users/1").status_code == 200
            refused = api.get("/users/1")
            is_problem(refused, 429, "quota_exceeded")
            midnight = clock.now.replace(hour=0, minute=0, second=0, microsecond=0)
            left = midnight + timedelta(days=1) - clock.now
            assert int(refused.headers["retry-after"]) == left // timedelta(seconds=1) + 1

    def test_a_request_counts_once(self, engine: Engine, url: str) -> None:
        policy = engine.create_policy(PolicyCreate(name="once", rate_limit=100, daily_quota=2))
        data = KeyCreate(name="once", policy_id=policy.id, scopes=["a", "b"])
        with client(url, engine.create_key(data).raw_key) as api:
            assert api.get("/twice").headers["ratelimit"].startswith('"default";r=99;')
            assert api.get("/twice").headers["ratelimit"].startswith('"default";r=98;')
            is_problem(api.get("/twice"), 429, "quota_exceeded")
        only_a = engine.create_key(KeyCreate(name="a", scopes=["a"])).raw_key
        with client(url, only_a) as api:
            is_problem(api.get("/twice"), 403, "insufficient_scope")


class TestLifespan:
    @pytest.mark.parametrize("wrap", [lambda engine: engine, AsyncEngine])
    def test_migrates_and_closes(self, tmp_path: Path, wrap: Callable[[Engine], Any]) -> None:
        engine = Engine(SqliteStore(tmp_path / "keys.db"))
        app = FastAPI(lifespan=keysmith_lifespan(wrap(engine), migrate=True))
        with serving(app, lifespan="on"):
            assert engine.count_keys() == 0
        with pytest.raises(StoreUnavailableError):
            engine.count_keys()

    def test_does_not_start_on_what_cannot_be_used(self, tmp_path: Path) -> None:
        async def start(engine: Engine) -> None:
            async with keysmith_lifespan(engine)(None):
                raise AssertionError("started")

        missing = Engine(SqliteStore(tmp_path / "missing" / "keys.db"))
        with pytest.raises(StoreUnavailableError):
            asyncio.run(start(missing))
        (tmp_path / "keys.db").touch()
        with SqliteStore(tmp_path / "keys.db") as empty, pytest.raises(SchemaOutdatedError):
            asyncio.run(start(Engine(empty)))
