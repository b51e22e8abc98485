"""FastAPI: a route behind a key, and the same route without.

In process, the application is called as a server would call it, and nothing else is timed. Behind
uvicorn, wrk asks it over the loopback interface, as a client would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks import bare
from benchmarks.cases import USED, on_loop
from benchmarks.databases import SCOPES, plain, scattered
from benchmarks.harness import Clock, Pair, Timed
from benchmarks.workshop import Unavailable, Workshop
from keysmith import Engine, SqliteStore
from keysmith.fastapi import APIKeyAuth, UsageMiddleware

_ROOT = Path(__file__).parent.parent
_DATABASE = "KEYSMITH_BENCHMARK_DATABASE"
_PATH = "/users/17"
_CONNECTIONS = 8
_SECONDS = 1
_PATIENCE = 30.0

_REQUEST = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": _PATH,
    "raw_path": _PATH.encode(),
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}


def bare_app() -> FastAPI:
    """The route by itself."""
    app = FastAPI()

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> dict[str, int]:
        return {"id": user_id}

    return app


def guarded_app(engine: Engine | None = None, *, metered: bool = True) -> FastAPI:
    """The route behind a key, with every request recorded, if it is to be `metered`.

    uvicorn gives no engine; it is then made on the database that the environment names.
    """
    engine = engine or Engine(SqliteStore(os.environ[_DATABASE]))
    auth = APIKeyAuth(engine)
    app = FastAPI()
    if metered:
        app.add_middleware(UsageMiddleware, engine=engine)
    else:
        app.add_middleware(_Empty)

    @app.get("/users/{user_id}", dependencies=[Security(auth, scopes=[SCOPES[0]])])
    async def user(user_id: int) -> dict[str, int]:
        return {"id": user_id}

    return app


def empty_app() -> FastAPI:
    """The route behind a dependency and a middleware that are asked, and do nothing."""
    app = FastAPI()
    app.add_middleware(_Empty)
    _add_empty_route(app)
    return app


def stored_app() -> FastAPI:
    """The same, and a row for each request, which a thread writes once a second. No more."""
    app = FastAPI()
    app.add_middleware(_Empty, after=bare.meter(Path(os.environ[_DATABASE])))
    _add_empty_route(app)
    return app


def _add_empty_route(app: FastAPI) -> None:
    async def dependency(_: HTTPConnection, scopes: SecurityScopes) -> None:
        pass

    @app.get("/users/{user_id}", dependencies=[Security(dependency, scopes=[SCOPES[0]])])
    async def user(user_id: int) -> dict[str, int]:
        return {"id": user_id}


class _Empty:
    def __init__(self, app: ASGIApp, after: Callable[[], object] = bool) -> None:
        self._app = app
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            await send(message)

        await self._app(scope, receive, watch)
        self._after()


def floor(shop: Workshop) -> Pair:
    """What FastAPI itself takes for a dependency and a middleware."""
    keys = scattered(plain(shop.keys), USED)
    empty, bare = (Timed(range, in_app(shop, app, keys)) for app in (empty_app(), bare_app()))
    return Pair(empty, bare, batch=0.05)


def in_process(shop: Workshop) -> Pair:
    """Both applications, called in this process."""
    engine, keys = shop.engine(shop.copy()), scattered(plain(shop.keys), USED)
    guarded = in_app(shop, guarded_app(engine), keys)

    def run(requests: range) -> None:
        guarded(requests)
        engine.flush()  # what was put off belongs to the requests

    return Pair(Timed(range, run), Timed(range, in_app(shop, bare_app(), keys)), batch=0.25)


def in_app(shop: Workshop, app: ASGIApp, raw_keys: list[str]) -> Callable[[range], object]:
    """A `run` that sends requests with these keys in turn to the application."""
    keys = cycle([raw_key.encode() for raw_key in raw_keys])
    statuses: set[int] = set()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    async def call(requests: range) -> None:
        for _ in requests:
            headers = [
                (b"host", b"127.0.0.1:8000"),
                (b"user-agent", b"curl/8.7.1"),
                (b"x-api-key", next(keys)),
            ]
            await app({**_REQUEST, "headers": headers, "state": {}}, receive, send)
        if statuses != {200}:
            raise RuntimeError(f"The route answered {sorted(statuses)}.")

    return on_loop(shop, call)


def behind_uvicorn(shop: Workshop) -> Pair:
    """Both applications, served by uvicorn and asked by wrk."""
    return _served(shop, "guarded_app")


def floor_behind_uvicorn(shop: Workshop) -> Pair:
    """What FastAPI and SQLite themselves take for a dependency, a middleware and a row."""
    return _served(shop, "stored_app")


def _served(shop: Workshop, subject: str) -> Pair:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Unavailable("wrk is not on the PATH")
    database = shop.copy()
    script = database.with_name("keys.lua")
    script.write_text(_lua(scattered(plain(shop.keys), USED)))
    asked, plainly = (
        _Asked(wrk, script, _serve(shop, application, database))
        for application in (subject, "bare_app")
    )
    return Pair(asked, plainly, most=1)


@dataclass(frozen=True)
class _Asked:
    """A server that wrk asks as often as it can for a second, whatever the batch and the clock."""

    wrk: str
    script: Path
    port: int

    def time(self, operations: int, clock: Clock) -> float:  # noqa: ARG002
        """See `Side.time`."""
        address = f"http://127.0.0.1:{self.port}{_PATH}"
        how = ["-t1", f"-c{_CONNECTIONS}", f"-d{_SECONDS}", "-s", str(self.script), address]
        answer = subprocess.run([self.wrk, *how], check=True, capture_output=True, text=True).stdout
        rate = re.search(r"^Requests/sec: +([0-9.]+)", answer, re.MULTILINE)
        if rate is None or "Non-2xx" in answer or "Socket errors" in answer:
            raise RuntimeError(f"wrk says: {answer}")
        return 1 / float(rate[1])


def _lua(raw_keys: list[str]) -> str:
    """What tells wrk to send the keys in turn."""
    headers = ", ".join(json.dumps(raw_key) for raw_key in raw_keys)
    return f"""
local keys, requests, last = {{ {headers} }}, {{}}, 0
function init()
    for i, key in ipairs(keys) do
        requests[i] = wrk.format("GET", "{_PATH}", {{ ["X-API-Key"] = key }})
    end
end
function request()
    last = last % #requests + 1
    return requests[last]
end
"""


def _serve(shop: Workshop, application: str, database: Path) -> int:
    """Starts uvicorn with the application; gives the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:{application}"),
            *("--port", str(port), "--log-level", "warning", "--no-access-log"),
        ],
        cwd=_ROOT,
        env={**os.environ, _DATABASE: str(database)},
    )
    shop.after(server.wait, _PATIENCE)
    shop.after(server.terminate)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"uvicorn did not start {application}.") from None
            time.sleep(0.05)
        else:
            return port
