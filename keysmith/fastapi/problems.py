"""What went wrong, as RFC 9457 problem details."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from keysmith.clock import Clock, utc_now
from keysmith.errors import (
    ConflictError,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    KeyInactiveError,
    KeysmithError,
    NotFoundError,
    PolicyInUseError,
    PolicyViolationError,
    QuotaExceededError,
    RateLimitedError,
    RequestMismatchError,
    StoreError,
    TenantMismatchError,
)
from keysmith.fastapi.limits import limited_headers, whole_seconds
from keysmith.fastapi.openapi import document_both_headers
from keysmith.fastapi.seen import Seen

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

Answered = KeysmithError | ValidationError | RequestValidationError | HTTPException
ANSWERED = (KeysmithError, ValidationError, RequestValidationError, HTTPException)
"""The errors that a client is told of; any other is a bug of ours, or of the host's."""

STATUSES: Mapping[type[KeysmithError], int] = {
    NotFoundError: 404,
    InvalidKeyError: 401,
    KeyInactiveError: 401,
    PolicyViolationError: 403,
    InsufficientScopeError: 403,
    TenantMismatchError: 403,
    RateLimitedError: 429,
    QuotaExceededError: 429,
    InvalidStateTransitionError: 409,
    PolicyInUseError: 409,
    ConflictError: 409,
    RequestMismatchError: 422,
    StoreError: 503,
    KeysmithError: 500,
}
"""The status of each error, and of those derived from it."""

_REQUEST_FOR = {
    "list_keys()": "`GET /keys`",
    "list_scopes()": "`GET /scopes`",
    "ensure_scopes()": "`POST /scopes`",
    "The engine is bound to another tenant": "You act for another tenant",
    "or use its own": "or use your own",
}
"""What is a call to a program is a request to a client, below the prefix of the routes."""

_NO_DURATION = "must be a duration: ISO 8601 such as PT10M, or a number of seconds"
_DETAIL_FOR = {
    "model_attributes_type": "must be a JSON object, sent with `Content-Type: application/json`",
    "time_delta_parsing": _NO_DURATION,
    "time_delta_type": _NO_DURATION,
}
"""What pydantic says of Python, in the words of HTTP, by its kinds of errors."""

_PLACES = frozenset({"body", "query", "path", "header", "cookie"})
_PYDANTIC_PREFIX = "Value error, "
_SHOWABLE = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    location: str = Field(examples=["body"])
    """`body`, `query`, `path`, `header` or `cookie`."""
    field: str = Field(examples=["scopes.0"])
    """The field's name; empty for all of it."""
    detail: str = Field(examples=["Field required"])


class Problem(BaseModel):
    """An answer that tells what went wrong: RFC 9457 problem details."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = Field(examples=["urn:problem-type:keysmith:key_revoked"])
    """An identifier of the kind of problem."""
    title: str = Field(examples=["Key revoked"])
    status: int = Field(examples=[401])
    detail: str = Field(examples=["The API key has been revoked, or replaced by a newer secret."])
    code: str = Field(examples=["key_revoked"])
    """The stable name of the error, for programs."""
    errors: list[FieldProblem] | None = None
    """The fields that are wrong; values are not repeated."""


class HTTPProblem(HTTPException):
    """A refusal with a status and a code of its own.

    Without `install_problem_handlers` it is answered as any other `HTTPException`.
    """

    def __init__(
        self,
        status_code: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Iterable[FieldProblem] = (),
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.code = code
        self.errors = list(errors)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of answers with these statuses; for `responses` of a route."""
    schema = {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}
    return {
        status: {
            "model": Problem,
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: schema},
        }
        for status in statuses
    }


def install_problem_handlers(app: FastAPI) -> None:
    """Has the application answer with problem details (RFC 9457) where something goes wrong.

    That is for `KeysmithError`, pydantic's `ValidationError`, FastAPI's `RequestValidationError`
    and `HTTPException`. Nothing that the client sent is repeated to it. And where the OpenAPI
    document says that `APIKeyAuth` lets in who sends a bearer token, it says so of `X-API-Key`.
    """
    document_both_headers(app)
    for kind in ANSWERED:
        app.add_exception_handler(kind, _handle)
    app.add_exception_handler(WebSocketRequestValidationError, _close)


class ProblemRoute(APIRoute):
    """A route that answers with problem details, whatever the application around it does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of a plain route, with our answers to what it raises."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ANSWERED as error:
                return problem_response(error, request)

        return answer


def problem_response(error: Answered, connection: HTTPConnection) -> Response:
    """The answer to an error in that request."""
    refusal = as_problem(error)
    if refusal.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", refusal.code, refusal.detail)
    headers = {**Seen.of(connection.scope).headers, **(refusal.headers or {})}
    problem = Problem(
        type=f"urn:problem-type:keysmith:{refusal.code}",
        title=refusal.code.replace("_", " ").capitalize(),
        status=refusal.status_code,
        detail=refusal.detail,
        code=refusal.code,
        errors=refusal.errors or None,
    )
    if refusal.status_code in {204, 304} or refusal.status_code < 200:
        return Response(status_code=refusal.status_code, headers=headers)
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=refusal.status_code,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def as_problem(error: Answered, clock: Clock = utc_now) -> HTTPProblem:
    """The error as a refusal with a status, a code and headers."""
    if isinstance(error, HTTPProblem):
        return error
    if isinstance(error, KeysmithError):
        status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
        headers = _headers(error, status, clock)
        return HTTPProblem(status, error.code, _for_clients(str(error)), headers=headers)
    if isinstance(error, RequestValidationError):
        return _invalid(_field_problems(error.errors()))
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return _invalid(
            _field_problems([{**each, "loc": ("body", *each["loc"])} for each in found])
        )
    detail: Any = error.detail  # FastAPI's may be any JSON
    return HTTPProblem(
        error.status_code,
        f"http_{error.status_code}",
        detail if isinstance(detail, str) else json.dumps(detail),
        headers=error.headers,
    )


async def _handle(connection: HTTPConnection, error: Any) -> Response:
    answer = problem_response(error, connection)
    if answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        _allow_all_methods(connection, answer)
    return answer


def _allow_all_methods(connection: HTTPConnection, answer: Response) -> None:
    """`Allow` names all the methods of a path (RFC 9110, section 10.2.1), not one route's only."""
    scope = connection.scope
    root = scope.get("root_path", "")
    if root != scope.get("app_root_path", ""):
        return  # within a mount, whose routes are not the application's
    path = scope["path"].removeprefix(root)
    routes = [route for route in iter_route_contexts(scope["app"].routes) if route.methods]
    found = next((route.path for route in routes if route.path_regex.match(path)), None)
    allowed = {method for route in routes if route.path == found for method in route.methods or ()}
    answer.headers["Allow"] = ", ".join(sorted(allowed))


async def _close(websocket: WebSocket, _error: Exception) -> None:
    await websocket.close(code=1008, reason="The request is not valid.")


def _invalid(errors: Sequence[FieldProblem]) -> HTTPProblem:
    names = ", ".join(dict.fromkeys(each.field or each.location for each in errors))
    return HTTPProblem(
        422, "invalid_input", f"The request is not valid: see {names}.", errors=errors
    )


def _field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    return [_field_problem(each.get("type", ""), each["loc"], each["msg"]) for each in errors]


def _field_problem(kind: str, location: Sequence[int | str], message: str) -> FieldProblem:
    place, *path = location or ("",)
    detail = _DETAIL_FOR.get(kind) or message.removeprefix(_PYDANTIC_PREFIX)
    match path:
        case [int(read)] if kind == "json_invalid":  # FastAPI's path is how far it could be read
            detail, path = f"is not JSON from character {read + 1} on", []
    return FieldProblem(
        location=str(place) if place in _PLACES else "",
        field=".".join(map(_showable, path)),
        detail=detail,
    )


def _for_clients(message: str) -> str:
    for call, request in _REQUEST_FOR.items():
        message = message.replace(call, request)
    return message


def _showable(part: object) -> str:
    """A part of a field's path. What the client made up may be a key in the wrong place."""
    return str(part) if _SHOWABLE.fullmatch(str(part)) else "(unknown)"


def _headers(error: KeysmithError, status: int, clock: Clock) -> dict[str, str] | None:
    """`WWW-Authenticate` as RFC 6750, section 3, has it; `Retry-After` in whole seconds."""
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    if isinstance(error, InsufficientScopeError):
        return {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
    if isinstance(error, RateLimitedError):
        return limited_headers(error)
    if isinstance(error, QuotaExceededError) and error.resets_at is not None:
        return {"Retry-After": str(whole_seconds(error.resets_at - clock()))}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": "1"}
    return None
