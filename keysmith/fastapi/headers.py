"""Headers of several routes: which version of an object, and whether a request comes again."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response

from keysmith.fastapi.problems import HTTPProblem
from keysmith.models import KeyPublic, PolicyPublic, ScopePublic

Versioned = KeyPublic | PolicyPublic | ScopePublic
VersionedT = TypeVar("VersionedT", KeyPublic, PolicyPublic, ScopePublic)

_ETAG = re.compile(r'(?:W/)?"[^"]*"')


def etag(document: Versioned) -> str:
    """The version of an object, as an entity tag (RFC 9110, section 8.8.3).

    It changes with all that somebody changes, and not with use: a key must not become impossible
    to edit because it is in use.
    """
    text = document.model_dump_json(exclude={"last_used_at"})
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def versioned(response: Response, document: VersionedT) -> VersionedT:
    """The document, with its version in the `ETag` of the answer."""
    response.headers["ETag"] = etag(document)
    return document


def _if_match(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="Only if this is still its version: an `ETag`, several, or `*`.",
        ),
    ] = None,
) -> str | None:
    return None if if_match is None else ",".join(request.headers.getlist("If-Match"))


def _idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description=(
                "A value of your choice, another for each request. If no answer comes, repeat the "
                "request with the same one: it is carried out once. An answer to a repetition has "
                "no raw key; a request that asks for something else is answered with 422."
            ),
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist("Idempotency-Key")) > 1:
        detail = "The request carries more than one Idempotency-Key. Send one."
        raise HTTPProblem(400, "several_idempotency_keys", detail)
    return idempotency_key


IfMatch = Annotated[str | None, Depends(_if_match)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def _strong_tags(if_match: str) -> list[str]:
    """The strong ones of a list of entity tags; none if it is malformed."""
    gaps = _ETAG.split(if_match)
    if any(gap.strip(", \t") for gap in gaps) or not all("," in gap for gap in gaps[1:-1]):
        return []
    return [tag for tag in _ETAG.findall(if_match) if not tag.startswith("W/")]


def require_match(if_match: str | None, document: Versioned) -> None:
    """Raises `HTTPProblem` with status 412 unless that is the version that the client knows."""
    if if_match is None or if_match.strip() == "*":
        return
    if etag(document) not in _strong_tags(if_match):
        raise HTTPProblem(
            412,
            "precondition_failed",
            "It has been changed since. Get it again, and decide whether your change still holds.",
        )
