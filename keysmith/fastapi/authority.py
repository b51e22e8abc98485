"""Who may manage keys over HTTP, and on whose objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection

from keysmith.engine import Engine
from keysmith.errors import InsufficientScopeError
from keysmith.fastapi.auth import APIKeyAuth

ROOT = "keysmith"
"""A root key is an ordinary key that holds the scope of this name in the tenant of this name."""


@dataclass(frozen=True, slots=True)
class Authority:
    """With what right a request is made."""

    engine: Engine
    """Acts on the objects that exist for the caller; see `Engine.for_tenant`."""
    scopes: Collection[str] = (ROOT,)
    """The management scopes that the caller is granted."""
    name: str = ""
    """Who it is, for the record: the ID of a key, a user's name."""

    def require(self, scope: str) -> None:
        """Raises `InsufficientScopeError` unless the caller is granted this scope."""
        if ROOT not in self.scopes:
            raise InsufficientScopeError(missing=[scope])


Authorize = Callable[..., Authority | Awaitable[Authority]]
"""A FastAPI dependency that says with what right a request is made, or raises to refuse it."""


class ManagementAuth(APIKeyAuth):
    """Authority by key: a root key may do everything, any other nothing."""

    async def __call__(self, connection: HTTPConnection, scopes: SecurityScopes) -> Authority:
        """The authority that the request's key has."""
        result = await super().__call__(connection, scopes)
        if result.key.tenant_id != ROOT:
            return Authority(self._engine.for_tenant(result.key.tenant_id), (), result.key.id)
        return Authority(self._engine, result.scopes, result.key.id)


def remember(authorize: Authorize) -> Any:
    """The router's dependency: asks who it is, before any route asks what they may."""
    authorized = Depends(authorize)

    async def ask(request: Request, authority: Authority = authorized) -> None:
        request.scope["keysmith.authority"] = authority

    return Depends(ask)


def requires(scope: str) -> Any:
    """A route's dependency: the authority, if it is granted this scope."""

    async def check(request: Request) -> Authority:
        authority: Authority = request.scope["keysmith.authority"]
        authority.require(scope)
        return authority

    return Depends(check)


ReadKeys = Annotated[Authority, requires("keysmith:keys:read")]
WriteKeys = Annotated[Authority, requires("keysmith:keys:write")]
ValidateKeys = Annotated[Authority, requires("keysmith:keys:validate")]
ReadPolicies = Annotated[Authority, requires("keysmith:policies:read")]
WritePolicies = Annotated[Authority, requires("keysmith:policies:write")]
ReadScopes = Annotated[Authority, requires("keysmith:scopes:read")]
WriteScopes = Annotated[Authority, requires("keysmith:scopes:write")]
