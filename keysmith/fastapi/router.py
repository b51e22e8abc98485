"""`management_router`: all that the engine can do, over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from keysmith.engine import AsyncEngine, Engine
from keysmith.fastapi import keys, policies, scopes, usage
from keysmith.fastapi.authority import Authorize, ManagementAuth, remember
from keysmith.fastapi.problems import MEDIA_TYPE, Problem

MAX_BODY_SIZE = 1_048_576

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong (RFC 9457).",
        "model": Problem,
        "content": {MEDIA_TYPE: {}},
    }
}


def management_router(
    engine: Engine | AsyncEngine, *, authorize: Authorize | None = None, prefix: str = "/v1"
) -> APIRouter:
    """The routes that manage keys, policies and scopes; include it in an application.

    They ask for a key with management scopes: all are open to a root key, which is an ordinary key
    that holds the scope `keysmith` in the tenant `keysmith`; see `ManagementAuth`, which also takes
    `trusted_proxies`. To decide otherwise, give a dependency `authorize` that raises to refuse a
    request, and else returns the `Authority` that it has.
    """
    router = APIRouter(
        prefix=prefix,
        dependencies=[remember(authorize or ManagementAuth(engine))],
        generate_unique_id_function=lambda route: route.name,
        max_body_size=MAX_BODY_SIZE,
        responses=PROBLEMS,
    )
    for part in (keys.router, policies.router, scopes.router, usage.router):
        router.include_router(part)
    return router
