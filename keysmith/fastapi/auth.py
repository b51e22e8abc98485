"""`APIKeyAuth`: the dependency that stands before a route."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from keysmith.engine import Engine, ValidationResult
from keysmith.errors import KeysmithError
from keysmith.fastapi.credentials import HOW_TO_SEND, read_credential
from keysmith.fastapi.problems import HTTPProblem, as_problem


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
    """

    def __init__(self, engine: Engine, *, optional: bool = False) -> None:
        """`optional`: requests without any key pass too, with `None` for the result."""
        self.scheme_name = "Keysmith"
        self.model = HTTPBearer(description=f"An API key: {HOW_TO_SEND}.")
        self._engine = engine
        self._optional = optional

    async def __call__(self, connection: HTTPConnection, scopes: SecurityScopes) -> Any:
        """The result of the validation. FastAPI calls this once for each request."""
        raw_key = read_credential(connection)
        if raw_key is not None:
            return await authenticate(self._engine, connection, raw_key, scopes.scopes)
        if self._optional:
            return None
        raise HTTPProblem(
            401,
            "missing_key",
            f"Send a key: {HOW_TO_SEND}.",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def authenticate(
    engine: Engine, connection: HTTPConnection, raw_key: str, scopes: Iterable[str]
) -> ValidationResult:
    """Judges the key for this request. Raises `HTTPProblem`, caused by the engine's error."""
    origins = connection.headers.getlist("Origin")
    try:
        return await validate(
            engine,
            raw_key,
            ip=connection.client.host if connection.client else None,
            origin=origins[0] if len(origins) == 1 else None,
            method=connection.scope.get("method", "GET"),  # a websocket begins with a GET
            path=connection.scope["path"],
            scopes=scopes,
        )
    except KeysmithError as error:
        raise as_problem(error) from error


async def validate(engine: Engine, raw_key: str, **request: Any) -> ValidationResult:
    """`engine.validate_key`, without keeping the event loop waiting."""
    return await run_in_threadpool(engine.validate_key, raw_key, **request)
