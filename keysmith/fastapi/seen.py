"""What is known of a request once its key has been validated, for those further out."""

from __future__ import annotations

from starlette.types import Scope

from keysmith.engine import Engine, RateLimiter, ValidationResult
from keysmith.fastapi.limits import rate_limit_headers

_SCOPE_KEY = "keysmith"


class Seen:
    """One for each request. It lies in the ASGI scope, and in the copies that others make of it."""

    __slots__ = ("_limiters", "address", "headers", "result", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        """The innermost scope, which knows the route."""
        self.result: ValidationResult | None = None
        self.address: str | None = None
        self.headers: dict[str, str] = {}
        """What the answer is to tell of the limits of the key's policy."""
        self._limiters: tuple[RateLimiter, ...] = ()

    @classmethod
    def of(cls, scope: Scope) -> Seen:
        """The request's own, made at the first call."""
        seen: Seen | None = scope.get(_SCOPE_KEY)
        if seen is None:
            seen = scope[_SCOPE_KEY] = cls(scope)
        return seen

    def counted_for(self, engine: Engine) -> bool:
        """Whether the request counts already against the limits that this engine keeps."""
        return engine._context.limiter in self._limiters  # noqa: SLF001

    def note(
        self, engine: Engine, result: ValidationResult, address: str | None, scope: Scope
    ) -> None:
        """Remembers whose key it was; should several engines be asked, what the last one said."""
        if not self.counted_for(engine):
            self._limiters = (*self._limiters, engine._context.limiter)  # noqa: SLF001
        self.result, self.address, self.scope = result, address, scope
        if result.policy is not None:
            self.headers = rate_limit_headers(result.policy, result.rate_limit, engine.now())
