"""What a key may do and when: lifecycle, validation, rules."""

from keysmith.engine.asynchronous import AsyncEngine
from keysmith.engine.candidates import CacheStatistics
from keysmith.engine.engine import Engine
from keysmith.engine.hooks import Plugin
from keysmith.engine.limits import Limits, RateLimiter
from keysmith.engine.maintenance import MaintenanceReport
from keysmith.engine.results import CreatedKey, RateLimitStatus, ValidationResult

__all__ = [
    "AsyncEngine",
    "CacheStatistics",
    "CreatedKey",
    "Engine",
    "Limits",
    "MaintenanceReport",
    "Plugin",
    "RateLimitStatus",
    "RateLimiter",
    "ValidationResult",
]
