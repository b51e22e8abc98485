"""For those who operate the server: whether it is alive, whether it is ready, how it is doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from keysmith.engine import Engine
from keysmith.errors import InsufficientScopeError
from keysmith.fastapi import Authority, ManagementAuth
from keysmith.fastapi.authority import METRICS
from keysmith.fastapi.lifespan import check_ready
from keysmith.fastapi.problems import ProblemRoute, documented
from keysmith.plugins import Metrics


class Status(BaseModel):
    """That all is well."""

    status: str = "ok"


def health_router(engine: Engine) -> APIRouter:
    """`/healthz` and `/readyz`, open to all."""
    router = APIRouter(
        tags=["server"],
        route_class=ProblemRoute,
        generate_unique_id_function=lambda route: route.name,
    )

    @router.get("/healthz")
    async def healthz() -> Status:
        """Says that the process answers."""
        return Status()

    @router.get("/readyz", responses=documented(503))
    def readyz() -> Status:
        """Says that the store and what counts limits can be used, or answers with 503."""
        check_ready(engine)
        return Status()

    return router


def metrics_router(metrics: Metrics, authorize: ManagementAuth | None) -> APIRouter:
    """`/metrics` for Prometheus, for root keys and those with `keysmith:metrics:read`, or all."""
    dependencies: list[Any] = []
    if authorize is not None:
        authorized = Depends(authorize)

        async def check(authority: Authority = authorized) -> None:
            if authority.engine.tenant_id is not None or not authority.grants(METRICS):
                raise InsufficientScopeError(missing=[METRICS])

        dependencies.append(Depends(check))
    router = APIRouter(
        tags=["server"],
        route_class=ProblemRoute,
        dependencies=dependencies,
        generate_unique_id_function=lambda route: route.name,
    )

    answers: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
    if authorize is not None:
        answers.update(documented(400, 401, 403, 429, 503))

    @router.get("/metrics", response_class=PlainTextResponse, responses=answers)
    def read_metrics() -> Response:
        """Tells Prometheus what has happened, and how long validations take."""
        text, content_type = metrics.exposition()
        return Response(text, headers={"Content-Type": content_type})

    return router
