"""What an OpenAPI document tells of keys: that there are two headers to send one in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import HTTPBearer

KEY_HEADER = "X-API-Key"
HOW_TO_SEND = f"`Authorization: Bearer <key>` or `{KEY_HEADER}: <key>`"

SCHEME = "Keysmith"
HEADER_SCHEME = "KeysmithHeader"

_DESCRIPTION = f"An API key: {HOW_TO_SEND}."
BEARER = HTTPBearer(description=_DESCRIPTION)
HEADER = {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": _DESCRIPTION}


def document_both_headers(app: FastAPI) -> None:
    """Has the application's document name the second header wherever it names the first.

    FastAPI notes one scheme for a dependency; another dependency would cost time in each request.
    """
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemes = document.get("components", {}).get("securitySchemes", {})
        if SCHEME in schemes and HEADER_SCHEME not in schemes:
            schemes[HEADER_SCHEME] = {**HEADER}
            for operation in _operations(document):
                operation["security"] = list(_with_header(operation["security"]))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI says


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from (each for each in path.values() if isinstance(each, dict) and "security" in each)


def _with_header(security: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each way to be let in, and where that is by our key, the other way to send it."""
    for way in security:
        yield way
        if SCHEME in way:
            yield {HEADER_SCHEME if name == SCHEME else name: way[name] for name in way}
