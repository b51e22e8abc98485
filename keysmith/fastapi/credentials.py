"""The raw key that a request carries: `Authorization: Bearer …` (RFC 6750) or `X-API-Key: …`."""

from __future__ import annotations

from typing import NoReturn

from starlette.types import Scope

from keysmith.fastapi.openapi import HOW_TO_SEND
from keysmith.fastapi.problems import HTTPProblem


def read_credential(scope: Scope) -> str | None:
    """The raw key of a request or a websocket; `None` where there is none.

    Raises `HTTPProblem` with status 400 where there are several, or one that nobody can read.
    `Authorization` in another scheme is no key, and left to whom it concerns.
    """
    found = header_values(scope, b"x-api-key")
    authorizations = header_values(scope, b"authorization")
    for authorization in authorizations:
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(token.strip())
    if len(found) > 1 or len(authorizations) > 1:
        _refuse("several_credentials", "The request carries more than one key. Send one.")
    if not found:
        return None
    [raw_key] = found
    if len(raw_key.split()) != 1:
        _refuse("malformed_credentials", f"This is no key. Send {HOW_TO_SEND}.")
    return raw_key


def header_values(scope: Scope, name: bytes) -> list[str]:
    """The values of a header, named in lower case, one for each time that it is there."""
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]


def _refuse(code: str, detail: str) -> NoReturn:
    challenge = 'Bearer error="invalid_request"'
    raise HTTPProblem(400, code, detail, headers={"WWW-Authenticate": challenge})
