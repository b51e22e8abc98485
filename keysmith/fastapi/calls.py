"""The engine's calls that an event loop makes: they must not keep it waiting."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool

from keysmith.engine import Engine, ValidationResult
from keysmith.models import UsageCreate


async def validate(engine: Engine, raw_key: str, **request: Any) -> ValidationResult:
    """See `Engine.validate_key`."""
    return await run_in_threadpool(engine.validate_key, raw_key, **request)


async def record(engine: Engine, usage: UsageCreate) -> None:
    """See `Engine.record_usage`."""
    await run_in_threadpool(engine.record_usage, usage)
