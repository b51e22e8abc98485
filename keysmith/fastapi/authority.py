"""Who may manage keys over HTTP, and on whose objects.

Management has scopes of its own, `keysmith` and all below it. A key of the tenant `keysmith` acts
with them on every tenant, a key of any other tenant on its own alone. Nobody hands out more of them
than they have: neither in a new key, nor in the new secret of another, nor by what a scope stands
below or a policy allows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection

from keysmith.engine import AsyncEngine, Engine
from keysmith.engine.scope_names import covers
from keysmith.errors import InsufficientScopeError
from keysmith.fastapi.auth import APIKeyAuth
from keysmith.models import Key, Policy

ROOT = "keysmith"
"""A root key is an ordinary key that holds the scope of this name in the tenant of this name."""

TENANT = "keysmith:tenant"
"""The scope of all management within the key's own tenant."""

METRICS = "keysmith:metrics:read"

SCOPES = (
    ROOT,
    TENANT,
    "keysmith:keys:read",
    "keysmith:keys:validate",
    "keysmith:keys:write",
    METRICS,
    "keysmith:policies:read",
    "keysmith:policies:write",
    "keysmith:scopes:read",
    "keysmith:scopes:write",
    "keysmith:usage:read",
)
"""Every management scope that some route asks for, and those above them that are of use."""


@dataclass(frozen=True, slots=True)
class Authority:
    """With what right a request is made."""

    engine: Engine
    """Acts on the objects that exist for the caller; see `Engine.for_tenant`."""
    scopes: Collection[str] = (ROOT,)
    """The management scopes that the caller is granted."""
    name: str = ""
    """Who it is: the ID of a key, a user's name. Rotations keep it, and idempotency goes by it."""
    asynchronous: AsyncEngine | None = None
    """The same engine for the event loop, if there is one already."""

    def grants(self, scope: str) -> bool:
        """Whether the caller is granted this scope."""
        if covers(self.scopes, scope):
            return True
        return self.engine.tenant_id is not None and scope != ROOT and covers(self.scopes, TENANT)

    def require(self, scopes: Iterable[str]) -> None:
        """Raises `InsufficientScopeError` unless the caller is granted all of these scopes."""
        missing = [scope for scope in scopes if not self.grants(scope)]
        if missing:
            raise InsufficientScopeError(missing=missing)

    def require_tenant(self, tenant_id: str) -> None:
        """Raises it unless the caller may change this tenant: the one of root keys is root's."""
        if tenant_id == ROOT:
            self.require([ROOT])

    def require_all_of(self, tenant_id: str, names: Iterable[str]) -> None:
        """Raises it unless the caller is granted what management these scopes of a tenant grant."""
        self.require_tenant(tenant_id)
        if self.engine.tenant_id is None and self.grants(ROOT):
            return
        self.require(self._management(tenant_id, names))

    def require_over_key(self, key: Key) -> None:
        """Raises it if the key can do more than the caller."""
        held = [scope.name for scope in self.engine.list_key_scopes(key.id)]
        self.require_all_of(key.tenant_id, held)

    def require_over_policy(self, policy: Policy, allowed_scopes: Collection[str] | None) -> None:
        """Raises it if what a policy is to allow would let its keys do more than the caller.

        `None` leaves what it allows as it is.
        """
        self.require_tenant(policy.tenant_id)
        if allowed_scopes is None or not policy.allowed_scopes:
            return
        everything = [ROOT if self.engine.tenant_id is None else TENANT]
        allowed = self._management(policy.tenant_id, allowed_scopes)
        before = self._management(policy.tenant_id, policy.allowed_scopes)
        wanted = allowed if allowed_scopes else everything
        self.require(scope for scope in wanted if not covers(before, scope))

    def _management(self, tenant_id: str, names: Iterable[str]) -> set[str]:
        """The management scopes among these and all that lies below them."""
        names = set(names)
        below = self.engine.store.scopes.below(tenant_id, names)
        return {name for name in names.union(below) if covers((ROOT,), name)}


Authorize = Callable[..., Authority | Awaitable[Authority]]
"""A FastAPI dependency that says with what right a request is made, or raises to refuse it."""


class ManagementAuth(APIKeyAuth):
    """Authority by key: as its scopes have it, on all tenants or on the key's own."""

    async def __call__(
        self, connection: HTTPConnection, scopes: SecurityScopes, response: Response
    ) -> Authority:
        """The authority that the request's key has."""
        result = await super().__call__(connection, scopes, response)
        key, engine = result.key, self._engine
        if key.tenant_id != ROOT:
            engine = engine.for_tenant(key.tenant_id)
        return Authority(engine.engine, frozenset(result.scopes), key.id, engine)


def remember(authorize: Authorize) -> Any:
    """The router's dependency: asks who it is, before any route asks what they may."""
    authorized = Depends(authorize)

    async def ask(request: Request, authority: Authority = authorized) -> None:
        request.scope["keysmith.authority"] = authority

    return Depends(ask)


class Requires:
    """A route's dependency: the authority, if it is granted this scope."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Authority:
        """Raises `InsufficientScopeError`."""
        authority: Authority = request.scope["keysmith.authority"]
        authority.require([self.scope])
        return authority


ReadKeys = Annotated[Authority, Depends(Requires("keysmith:keys:read"))]
WriteKeys = Annotated[Authority, Depends(Requires("keysmith:keys:write"))]
ValidateKeys = Annotated[Authority, Depends(Requires("keysmith:keys:validate"))]
ReadPolicies = Annotated[Authority, Depends(Requires("keysmith:policies:read"))]
WritePolicies = Annotated[Authority, Depends(Requires("keysmith:policies:write"))]
ReadScopes = Annotated[Authority, Depends(Requires("keysmith:scopes:read"))]
WriteScopes = Annotated[Authority, Depends(Requires("keysmith:scopes:write"))]
ReadUsage = Annotated[Authority, Depends(Requires("keysmith:usage:read"))]
