"""`keysmith_lifespan`: an engine that lives as long as the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool

from keysmith.engine import AsyncEngine, Engine


def check_ready(engine: Engine) -> None:
    """Raises `StoreError` unless the store answers, and has the schema that is needed."""
    engine.health()
    engine.list_keys(limit=1)


def keysmith_lifespan(
    engine: Engine | AsyncEngine, *, migrate: bool = False
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A lifespan for an application: `FastAPI(lifespan=keysmith_lifespan(engine, migrate=True))`.

    At the start the schema is brought to the newest revision, if `migrate`, and the store asked
    whether it can be used: the `StoreError` that it raises otherwise keeps the application from
    starting. At the end what was recorded is written, plugins hear of the end, and the store is
    closed. In a lifespan of one's own: `async with keysmith_lifespan(engine)(app): yield`.
    """
    opened = engine.engine if isinstance(engine, AsyncEngine) else engine

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        try:
            if migrate:
                await run_in_threadpool(opened.store.migrate)
            await run_in_threadpool(check_ready, opened)
            yield
        finally:
            await run_in_threadpool(opened.close)

    return lifespan
