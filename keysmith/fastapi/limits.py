"""What clients are told of their rate limit.

The fields `RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from keysmith.engine import RateLimitStatus
from keysmith.errors import RateLimitedError
from keysmith.models import PolicyPublic

_SECOND = timedelta(seconds=1)
_RATE, _BURST = '"default"', '"burst"'


def rate_limit_headers(
    policy: PolicyPublic, status: RateLimitStatus | None, now: datetime
) -> dict[str, str]:
    """The fields for a request that was let through; how much of a burst is left, nobody knows."""
    headers = _policy_header(policy)
    if status is not None:
        resets = whole_seconds(status.resets_at - now)
        headers["RateLimit"] = f"{_RATE};r={status.remaining};t={resets}"
    return headers


def limited_headers(error: RateLimitedError) -> dict[str, str]:
    """The fields for a request that came too early."""
    seconds, policy = math.ceil(error.retry_after), error.policy
    headers = {"Retry-After": str(seconds)}
    if policy is not None:
        # Also where it was a burst: then, too, nothing is left of the rate limit until it is over.
        name = _RATE if policy.rate_limit else _BURST
        headers |= {**_policy_header(policy), "RateLimit": f"{name};r=0;t={seconds}"}
    return headers


def _policy_header(policy: PolicyPublic) -> dict[str, str]:
    window = whole_seconds(policy.rate_limit_window)
    limits = ((_RATE, policy.rate_limit, window), (_BURST, policy.burst_limit, 1))
    told = ", ".join(f"{name};q={limit};w={seconds}" for name, limit, seconds in limits if limit)
    return {"RateLimit-Policy": told} if told else {}


def whole_seconds(duration: timedelta) -> int:
    """The duration in seconds, rounded up: who waits for so long has waited long enough."""
    return max(0, -(-duration // _SECOND))
