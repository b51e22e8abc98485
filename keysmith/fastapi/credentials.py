"""The raw key that a request carries: `Authorization: Bearer …` (RFC 6750) or `X-API-Key: …`."""

from __future__ import annotations

from typing import NoReturn

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from keysmith.fastapi.problems import HTTPProblem

KEY_HEADER = "X-API-Key"
HOW_TO_SEND = f"`Authorization: Bearer <key>` or `{KEY_HEADER}: <key>`"


def read_credential(connection: HTTPConnection) -> str | None:
    """The raw key; `None` where there is none.

    Raises `HTTPProblem` with status 400 where there are several, or one that nobody can read.
    `Authorization` in another scheme is no key, and left to whom it concerns.
    """
    found = [*_bearers(connection.headers), *connection.headers.getlist(KEY_HEADER)]
    if len(found) > 1:
        _refuse("several_credentials", "The request carries more than one key. Send one.")
    if not found:
        return None
    if not found[0] or any(character.isspace() for character in found[0]):
        _refuse("malformed_credentials", f"This is no key. Send {HOW_TO_SEND}.")
    return found[0]


def _bearers(headers: Headers) -> list[str]:
    values = headers.getlist("Authorization")
    if len(values) > 1:
        _refuse("several_credentials", "The request has more than one Authorization header.")
    schemes = [value.strip().partition(" ") for value in values]
    return [token.strip() for scheme, _, token in schemes if scheme.lower() == "bearer"]


def _refuse(code: str, detail: str) -> NoReturn:
    challenge = 'Bearer error="invalid_request"'
    raise HTTPProblem(400, code, detail, headers={"WWW-Authenticate": challenge})
