"""`/keys`: the life of a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from keysmith.engine import AsyncEngine, CreatedKey, ValidationResult
from keysmith.errors import KeysmithError, RequestRepeatedError
from keysmith.fastapi.authority import Authority, ReadKeys, ValidateKeys, WriteKeys
from keysmith.fastapi.headers import IdempotencyKey, IfMatch, require_match, versioned
from keysmith.fastapi.metering import meter
from keysmith.fastapi.problems import FieldProblem, ProblemRoute, as_problem
from keysmith.fastapi.schemas import (
    Count,
    IssuedKey,
    KeyFilter,
    KeyPage,
    KeyQuery,
    RevokeRequest,
    RotateRequest,
    RotationPage,
    RotationQuery,
    ScopeNames,
    ScopePage,
    ValidateRequest,
    ValidKey,
)
from keysmith.models import Key, KeyCreate, KeyPublic, KeyUpdate

router = APIRouter(prefix="/keys", tags=["keys"], route_class=ProblemRoute)

REPEATED: dict[int | str, dict[str, Any]] = {
    200: {"model": IssuedKey, "description": "The request was repeated: the key it had created."}
}


@router.post("", status_code=201, responses=REPEATED)
def create_key(
    data: KeyCreate, caller: WriteKeys, idempotency_key: IdempotencyKey, response: Response
) -> IssuedKey:
    """Creates a key. The raw key is in this answer, and nowhere else, ever."""
    caller.require_all_of(caller.engine.tenant_id or data.tenant_id, data.scopes)
    own = _own(caller, idempotency_key)
    return _issue(caller, response, lambda: caller.engine.create_key(data, idempotency_key=own))


@router.get("")
def list_keys(query: Annotated[KeyQuery, Query()], caller: ReadKeys) -> KeyPage:
    """Lists keys, newest first."""
    return KeyPage.of(caller.engine.list_keys(**query.page()), query.limit)


@router.get("/count")
def count_keys(query: Annotated[KeyFilter, Query()], caller: ReadKeys) -> Count:
    """Counts keys."""
    return Count(count=caller.engine.count_keys(**query.model_dump(exclude_none=True)))


@router.post("/validate", response_model=ValidKey)
async def validate_key(data: ValidateRequest, caller: ValidateKeys) -> ValidationResult:
    """Judges a raw key for a request, as the service that it was sent to would.

    A key that is good counts against its limits, and in its usage. One that is not is answered with
    401, 403 or 429, and `raw_key` among the `errors`; an answer without that is about the key that
    this request itself was made with.
    """
    engine = caller.asynchronous or AsyncEngine(caller.engine)
    try:
        result = await engine.validate_key(**data.model_dump())
    except KeysmithError as error:
        problem = as_problem(error, caller.engine.now)
        about = FieldProblem(location="body", field="raw_key", detail=problem.detail)
        problem.errors.append(about)
        raise problem from error
    await meter(engine, data, result)
    return result


@router.get("/{key_id}")
def get_key(key_id: str, caller: ReadKeys, response: Response) -> KeyPublic:
    """Shows a key."""
    return versioned(response, KeyPublic.model_validate(caller.engine.get_key(key_id)))


@router.patch("/{key_id}")
def update_key(
    key_id: str, data: KeyUpdate, caller: WriteKeys, if_match: IfMatch, response: Response
) -> KeyPublic:
    """Changes the fields that are sent."""
    key = caller.engine.update_key(key_id, data, precondition=_may_change(caller, if_match))
    return versioned(response, KeyPublic.model_validate(key))


@router.delete("/{key_id}", status_code=204)
def delete_key(key_id: str, caller: WriteKeys, if_match: IfMatch) -> None:
    """Removes a key with its history and usage. To only stop it, revoke it."""
    caller.engine.delete_key(key_id, precondition=_may_change(caller, if_match))


@router.post("/{key_id}/rotate")
def rotate_key(
    key_id: str,
    caller: WriteKeys,
    idempotency_key: IdempotencyKey,
    response: Response,
    data: RotateRequest | None = None,
) -> IssuedKey:
    """Gives a key a new secret; the old one goes on working until `grace` has passed."""
    asked = data or RotateRequest()
    own = _own(caller, idempotency_key)
    return _issue(
        caller,
        response,
        lambda: caller.engine.rotate_key(
            key_id,
            reason=asked.reason,
            grace=asked.grace,
            rotated_by=caller.name,
            idempotency_key=own,
            precondition=caller.require_over_key,
        ),
    )


@router.post("/{key_id}/revoke", response_model=KeyPublic)
def revoke_key(key_id: str, caller: WriteKeys, data: RevokeRequest | None = None) -> Key:
    """Stops a key for good, and all its secrets with it."""
    caller.require_over_key(caller.engine.get_key(key_id))
    return caller.engine.revoke_key(key_id, reason=data.reason if data else "")


@router.post("/{key_id}/suspend", response_model=KeyPublic)
def suspend_key(key_id: str, caller: WriteKeys) -> Key:
    """Stops an active key until it is reactivated."""
    caller.require_over_key(caller.engine.get_key(key_id))
    return caller.engine.suspend_key(key_id)


@router.post("/{key_id}/reactivate", response_model=KeyPublic)
def reactivate_key(key_id: str, caller: WriteKeys) -> Key:
    """Lets a suspended key work again."""
    caller.require_over_key(caller.engine.get_key(key_id))
    return caller.engine.reactivate_key(key_id)


@router.get("/{key_id}/scopes")
def list_key_scopes(key_id: str, caller: ReadKeys) -> ScopePage:
    """Lists the scopes that a key holds itself, without those it is granted by them."""
    found = caller.engine.list_key_scopes(key_id)
    return ScopePage.of(found, len(found) + 1)


@router.post("/{key_id}/scopes", status_code=204)
def assign_scopes(key_id: str, data: ScopeNames, caller: WriteKeys) -> None:
    """Gives a key scopes; what it holds already stays."""
    key = caller.engine.get_key(key_id)
    caller.require_over_key(key)
    caller.require_all_of(key.tenant_id, data.scopes)
    caller.engine.assign_scopes(key_id, data.scopes)


@router.delete("/{key_id}/scopes", status_code=204)
def remove_scopes(key_id: str, data: ScopeNames, caller: WriteKeys) -> None:
    """Takes scopes from a key."""
    caller.require_over_key(caller.engine.get_key(key_id))
    caller.engine.remove_scopes(key_id, data.scopes)


@router.get("/{key_id}/rotations")
def list_key_rotations(
    key_id: str, query: Annotated[RotationQuery, Query()], caller: ReadKeys
) -> RotationPage:
    """Lists the rotations of a key, newest first."""
    caller.engine.get_key(key_id)
    found = caller.engine.list_rotations(key_id=key_id, **query.page())
    return RotationPage.of(found, query.limit)


def _own(caller: Authority, idempotency_key: str | None) -> str | None:
    """The idempotency key as this caller's own: two callers may choose the same."""
    if idempotency_key is None:
        return None
    return f"{len(caller.name)} {caller.name} {idempotency_key}"  # a name may hold spaces


def _issue(caller: Authority, response: Response, issue: Callable[[], CreatedKey]) -> IssuedKey:
    """What was issued, or, to a request that comes again, what had been."""
    try:
        created = issue()
    except RequestRepeatedError as repeated:
        response.status_code = 200
        key, raw_key = caller.engine.get_key(repeated.key_id), None
    else:
        key, raw_key = created.key, created.raw_key
    return IssuedKey(key=versioned(response, KeyPublic.model_validate(key)), raw_key=raw_key)


def _may_change(caller: Authority, if_match: str | None) -> Callable[[Key], None]:
    """What must hold in the moment of the change."""

    def check(key: Key) -> None:
        caller.require_over_key(key)
        require_match(if_match, KeyPublic.model_validate(key))

    return check
