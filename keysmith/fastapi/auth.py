"""`APIKeyAuth`: the dependency that stands before a route."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import Response
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from keysmith.engine import AsyncEngine, Engine, ValidationResult
from keysmith.errors import KeysmithError
from keysmith.fastapi.clients import ClientAddress
from keysmith.fastapi.credentials import header_values, read_credential
from keysmith.fastapi.openapi import BEARER, HOW_TO_SEND, SCHEME
from keysmith.fastapi.problems import HTTPProblem, as_problem
from keysmith.fastapi.seen import Seen
from keysmith.tracebacks import forget_values


class APIKeyAuth(SecurityBase):
    """A dependency that asks for a valid key, and gives the route its `ValidationResult`.

    auth = APIKeyAuth(engine)

    @app.get("/users")
    def users(key: Annotated[ValidationResult, Security(auth, scopes=["users:read"])]): ...

    Clients send `Authorization: Bearer …` or `X-API-Key: …`. The scopes of `Security()`, also those
    of the dependencies around it, must all be granted. A key that is not good for the request is
    refused with a problem: 400 for malformed or several credentials, 401 for a key that is
    missing, unknown or inactive, 403 where its policy or its scopes do not allow the request, 429
    where a limit is reached, and 503 where the store cannot be asked.

    However often a request is asked for its key, it counts once against limits and quotas.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        *,
        optional: bool = False,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        """What asks this engine.

        `optional`: requests without any key pass too, with `None` for the result.
        `trusted_proxies`: addresses and networks whose `Forwarded` or `X-Forwarded-For` header
        tells the client's address; from anybody else it tells nothing. Let no other layer, such as
        uvicorn's `proxy_headers`, rewrite the address before.
        """
        self.scheme_name = SCHEME
        self.model = BEARER
        self._engine = engine if isinstance(engine, AsyncEngine) else AsyncEngine(engine)
        self._optional = optional
        self._address = ClientAddress(trusted_proxies)

    async def __call__(
        self, connection: HTTPConnection, scopes: SecurityScopes, response: Response
    ) -> Any:
        """The result of the validation, for FastAPI to give to the route."""
        result = await self.authenticate(connection, scopes.scopes)
        if result is not None:
            response.headers.update(Seen.of(connection.scope).headers)
        return result

    async def authenticate(
        self, connection: HTTPConnection, scopes: Iterable[str] = ()
    ) -> ValidationResult | None:
        """The same for any ASGI application, such as one of Starlette: from a request or websocket.

        Raises `HTTPProblem`, which is an `HTTPException` of Starlette's, with the engine's error
        for its cause. `None` only where a key is `optional` and there is none.
        """
        try:
            raw_key = read_credential(connection.scope)
            if raw_key is not None:
                return await self._validate(connection, raw_key, scopes)
        except BaseException as error:
            raw_key = None
            forget_values(error)
            raise
        if self._optional:
            return None
        raise HTTPProblem(
            401,
            "missing_key",
            f"Send a key: {HOW_TO_SEND}.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _validate(
        self, connection: HTTPConnection, raw_key: str, scopes: Iterable[str]
    ) -> ValidationResult:
        scope, engine = connection.scope, self._engine.engine
        seen = Seen.of(scope)
        origins = header_values(scope, b"origin")
        address = self._address(scope)
        try:
            result = await self._engine.validate_key(
                raw_key,
                ip=address,
                origin=origins[0] if len(origins) == 1 else None,
                method=scope.get("method", "GET"),  # a websocket begins with a GET
                path=scope["path"],
                scopes=scopes,
                cost=0 if seen.counted_for(engine) else 1,
            )
        except KeysmithError as error:
            raise as_problem(error, engine.now) from error
        seen.note(engine, result, address, scope)
        return result
