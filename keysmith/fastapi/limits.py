"""What clients are told of their rate limit.

The fields `RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from keysmith.engine import RateLimitStatus
from keysmith.models import PolicyPublic

_SECOND = timedelta(seconds=1)
_NAME = '"default"'


def rate_limit_headers(
    status: RateLimitStatus, policy: PolicyPublic, now: datetime
) -> dict[str, str]:
    """The fields for a request that was let through."""
    window = whole_seconds(policy.rate_limit_window)
    resets = whole_seconds(status.resets_at - now)
    return {
        "RateLimit-Policy": f"{_NAME};q={status.limit};w={window}",
        "RateLimit": f"{_NAME};r={status.remaining};t={resets}",
    }


def limited_headers(retry_after: float) -> dict[str, str]:
    """The fields for a request that came too early."""
    seconds = math.ceil(retry_after)
    return {"Retry-After": str(seconds), "RateLimit": f"{_NAME};r=0;t={seconds}"}


def whole_seconds(duration: timedelta) -> int:
    """The duration in seconds, rounded up: who waits for so long has waited long enough."""
    return max(0, -(-duration // _SECOND))
