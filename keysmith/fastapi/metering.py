"""Metering what is validated over HTTP, for services that have no engine to record with."""

from __future__ import annotations

import logging
import re

from pydantic import ValidationError

from keysmith.engine import AsyncEngine, ValidationResult
from keysmith.errors import KeysmithError
from keysmith.fastapi.schemas import ValidateRequest
from keysmith.models import UsageCreate

logger = logging.getLogger(__name__)

GRANTED = 200
"""The status of what was let through. What the service made of it then, nobody tells."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


async def meter(engine: AsyncEngine, asked: ValidateRequest, result: ValidationResult) -> None:
    """Records a request that was let through, as the service described it.

    It does not wait for the store; what goes wrong with it is logged, and harms no answer.
    """
    try:
        await engine.record_usage(
            UsageCreate(
                key_id=result.key.id,
                endpoint=_text(asked.path, 1024),
                method=_text(asked.method, 32),
                status_code=GRANTED,
                ip_address=_text(asked.ip, 64),
            )
        )
    except (KeysmithError, ValidationError) as error:
        logger.warning("A request of %s was not recorded: %s", result.key.id, error)


def _text(text: str | None, length: int) -> str:
    return _CONTROL.sub("", text or "")[:length]
