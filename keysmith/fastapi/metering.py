"""Metering: what is recorded of a request, whoever saw it."""

from __future__ import annotations

import logging
import re

from pydantic import ValidationError

from keysmith.engine import AsyncEngine, ValidationResult
from keysmith.errors import KeysmithError
from keysmith.fastapi.schemas import ValidateRequest
from keysmith.models.usages import MAX_LATENCY_MS

logger = logging.getLogger(__name__)

GRANTED = 200
"""The status of what was let through. What the service made of it then, nobody tells."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


async def meter(engine: AsyncEngine, asked: ValidateRequest, result: ValidationResult) -> None:
    """Records a request that was let through, for a service that has no engine to do so itself."""
    await record(
        engine,
        result.key.id,
        endpoint=asked.path or "",
        method=asked.method or "",
        status=GRANTED,
        address=asked.ip,
    )


async def record(
    engine: AsyncEngine,
    key_id: str,
    *,
    endpoint: str,
    method: str | None,
    status: int,
    address: str | None,
    user_agent: str = "",
    seconds: float = 0.0,
) -> None:
    """Records a request as far as it can be told, without what no label may hold.

    It does not wait for the store; what goes wrong with it is logged, and harms no answer.
    """
    try:
        await engine._note_usage(  # noqa: SLF001
            key_id,
            _label(endpoint, 1024),
            _label(method or "", 32),
            status,
            _label(address or "", 64),
            _label(user_agent, 1024),
            min(max(seconds * 1000, 0.0), MAX_LATENCY_MS),
        )
    except (KeysmithError, ValidationError) as error:
        logger.warning("A request of %s was not recorded: %s", key_id, error)


def _label(text: str, length: int) -> str:
    return (text if text.isprintable() else _CONTROL.sub("", text))[:length]
