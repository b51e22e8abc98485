"""The application: the management routes, their documentation, and whether it is alive."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from keysmith.engine import Engine
from keysmith.fastapi import install_problem_handlers, management_router
from keysmith.stores import DEFAULT_DATABASE_URL, open_store

DATABASE_VARIABLE = "KEYSMITH_DATABASE_URL"


def create_app(engine: Engine) -> FastAPI:
    """The application for an engine, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with engine:
            yield

    app = FastAPI(
        title="Keysmith",
        version=version("keysmith"),
        description="Issue, validate, rotate, revoke and limit API keys.",
        lifespan=lifespan,
    )
    install_problem_handlers(app)
    app.include_router(management_router(engine))

    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    return app


def from_environment() -> FastAPI:
    """The application for the database that `KEYSMITH_DATABASE_URL` names: one a process."""
    return create_app(Engine(open_store(os.environ.get(DATABASE_VARIABLE, DEFAULT_DATABASE_URL))))
