"""`management_router`: all that the engine can do, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter

from keysmith.engine import AsyncEngine, Engine
from keysmith.fastapi import keys, policies, scopes, usage
from keysmith.fastapi.authority import Authorize, ManagementAuth, remember
from keysmith.fastapi.problems import documented

MAX_BODY_SIZE = 1_048_576

STATUSES = (400, 401, 403, 404, 409, 412, 422, 429, 503)


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
        responses=documented(*STATUSES),
    )
    for part in (keys.router, policies.router, scopes.router, usage.router):
        router.include_router(part)
    return router
