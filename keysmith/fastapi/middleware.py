"""`UsageMiddleware`: meters the requests that were made with a key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from anyio import CancelScope
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keysmith.engine import AsyncEngine, Engine
from keysmith.fastapi.credentials import header_values
from keysmith.fastapi.metering import record
from keysmith.fastapi.seen import Seen

SERVER_ERROR = 500
CLIENT_GONE = 499
"""What nginx, too, notes of a request whose client did not wait for the answer."""

_STATUSES = {
    "http.response.start": SERVER_ERROR,
    "websocket.accept": 101,
    "websocket.close": 403,
    "websocket.http.response.start": 403,
}
"""What begins an answer, and its status where it does not say: the answer to a websocket's GET."""


class UsageMiddleware:
    """Records each request that `APIKeyAuth` let through: which key, route, status and client.

    app.add_middleware(UsageMiddleware, engine=engine)

    Pure ASGI: for FastAPI, Starlette, and all that is mounted within. What is recorded of the route
    is its template, `/users/{id}`, so that it adds up. The latency of a request lasts until the end
    of its answer; that of a websocket, until it is open. Recording does not wait for the store, and
    what goes wrong with it is logged, and harms no request.

    It also adds the `RateLimit` fields to answers that a route made itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: Engine | AsyncEngine,
        *,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`timer` gives seconds from any moment on."""
        self._app = app
        self._engine = engine if isinstance(engine, AsyncEngine) else AsyncEngine(engine)
        self._timer = timer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, and looks on."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        seen, timer = Seen.of(scope), self._timer
        started, status, recorded = timer(), 0, False

        async def note(otherwise: int) -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                await self._record(seen, status or otherwise, timer() - started)

        async def watch(message: Message) -> None:
            nonlocal status
            kind = message["type"]
            if not status and kind in _STATUSES:
                status = message.get("status", _STATUSES[kind])
                if seen.headers and kind == "http.response.start":
                    _add(message, seen.headers)
            # Before the answer ends: whoever has it finds its record.
            if kind.startswith("websocket.") or (
                kind == "http.response.body" and not message.get("more_body")
            ):
                await note(status)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except BaseException as error:
            gone = isinstance(error, asyncio.CancelledError)
            with CancelScope(shield=True):
                await note(CLIENT_GONE if gone else SERVER_ERROR)
            raise
        await note(CLIENT_GONE)

    async def _record(self, seen: Seen, status: int, seconds: float) -> None:
        if seen.result is None:
            return
        scope = seen.scope
        await record(
            self._engine,
            seen.result.key.id,
            endpoint=route_template(scope),
            method=scope.get("method", "GET"),
            status=status,
            address=seen.address,
            user_agent=" ".join(header_values(scope, b"user-agent")),
            seconds=seconds,
        )


def route_template(scope: Scope) -> str:
    """The path of the request's route as it was declared, with all that it is mounted under.

    Without a route it is the path itself.
    """
    mount = scope.get("root_path", "")[len(scope.get("app_root_path", "")) :]
    # FastAPI notes the route with the prefixes of its routers, Starlette the route itself.
    noted: Any = scope.get("fastapi", {}).get("effective_route_context")
    route: Any = getattr(noted, "starlette_route", None) or noted or scope.get("route")
    path: str | None = getattr(route, "path_format", None)
    if path is None:
        return str(scope["path"])
    if "app_root_path" not in scope or not mount:
        return path
    parameters = {str(value): name for name, value in scope.get("path_params", {}).items()}
    segments = [
        f"{{{parameters[segment]}}}" if segment in parameters else segment
        for segment in mount.split("/")
    ]
    return "/".join(segments) + path


def _add(message: Message, headers: dict[str, str]) -> None:
    message.setdefault("headers", [])
    fields = MutableHeaders(scope=message)
    for name, value in headers.items():
        fields.setdefault(name, value)
