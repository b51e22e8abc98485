"""What a key may do and when: lifecycle, validation, rules."""

from keysmith.engine.engine import Engine
from keysmith.engine.hooks import Plugin
from keysmith.engine.results import CreatedKey, RateLimitStatus, ValidationResult

__all__ = ["CreatedKey", "Engine", "Plugin", "RateLimitStatus", "ValidationResult"]
