"""Time. The one place in the package that asks the system what time it is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present moment as a timezone-aware UTC datetime."""


def utc_now() -> datetime:
    """The system's time: the default `Clock`."""
    return datetime.now(UTC)
