"""`/keys`: the life of a key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from keysmith.engine import ValidationResult
from keysmith.errors import KeysmithError
from keysmith.fastapi.auth import validate
from keysmith.fastapi.authority import ReadKeys, ValidateKeys, WriteKeys
from keysmith.fastapi.problems import FieldProblem, ProblemRoute, as_problem
from keysmith.fastapi.schemas import (
    IssuedKey,
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


@router.post("", status_code=201)
def create_key(data: KeyCreate, caller: WriteKeys) -> IssuedKey:
    """Creates a key. The raw key is in this answer, and nowhere else, ever."""
    return IssuedKey.of(caller.engine.create_key(data))


@router.get("")
def list_keys(query: Annotated[KeyQuery, Query()], caller: ReadKeys) -> KeyPage:
    """Lists keys, newest first."""
    return KeyPage.of(caller.engine.list_keys(**query.page()), query.limit)


@router.post("/validate", response_model=ValidKey)
async def validate_key(data: ValidateRequest, caller: ValidateKeys) -> ValidationResult:
    """Judges a raw key for a request, as the service that it was sent to would.

    A key that is not good is answered with 401, 403 or 429, and `raw_key` among the `errors`; an
    answer without that is about the key that this request itself was made with.
    """
    try:
        return await validate(caller.engine, **data.model_dump())
    except KeysmithError as error:
        problem = as_problem(error)
        about = FieldProblem(location="body", field="raw_key", detail=problem.detail)
        problem.errors.append(about)
        raise problem from error


@router.get("/{key_id}", response_model=KeyPublic)
def get_key(key_id: str, caller: ReadKeys) -> Key:
    """Shows a key."""
    return caller.engine.get_key(key_id)


@router.patch("/{key_id}", response_model=KeyPublic)
def update_key(key_id: str, data: KeyUpdate, caller: WriteKeys) -> Key:
    """Changes the fields that are sent."""
    return caller.engine.update_key(key_id, data)


@router.delete("/{key_id}", status_code=204)
def delete_key(key_id: str, caller: WriteKeys) -> None:
    """Removes a key with its history and usage. To only stop it, revoke it."""
    caller.engine.delete_key(key_id)


@router.post("/{key_id}/rotate")
def rotate_key(key_id: str, caller: WriteKeys, data: RotateRequest | None = None) -> IssuedKey:
    """Gives a key a new secret; the old one goes on working until `grace` has passed."""
    asked = data or RotateRequest()
    return IssuedKey.of(
        caller.engine.rotate_key(
            key_id, reason=asked.reason, grace=asked.grace, rotated_by=caller.name
        )
    )


@router.post("/{key_id}/revoke", response_model=KeyPublic)
def revoke_key(key_id: str, caller: WriteKeys, data: RevokeRequest | None = None) -> Key:
    """Stops a key for good, and all its secrets with it."""
    return caller.engine.revoke_key(key_id, reason=data.reason if data else "")


@router.post("/{key_id}/suspend", response_model=KeyPublic)
def suspend_key(key_id: str, caller: WriteKeys) -> Key:
    """Stops an active key until it is reactivated."""
    return caller.engine.suspend_key(key_id)


@router.post("/{key_id}/reactivate", response_model=KeyPublic)
def reactivate_key(key_id: str, caller: WriteKeys) -> Key:
    """Lets a suspended key work again."""
    return caller.engine.reactivate_key(key_id)


@router.get("/{key_id}/scopes")
def list_key_scopes(key_id: str, caller: ReadKeys) -> ScopePage:
    """Lists the scopes that a key holds itself, without those it is granted by them."""
    found = caller.engine.list_key_scopes(key_id)
    return ScopePage.of(found, len(found) + 1)


@router.post("/{key_id}/scopes", status_code=204)
def assign_scopes(key_id: str, data: ScopeNames, caller: WriteKeys) -> None:
    """Gives a key scopes; what it holds already stays."""
    caller.engine.assign_scopes(key_id, data.scopes)


@router.delete("/{key_id}/scopes", status_code=204)
def remove_scopes(key_id: str, data: ScopeNames, caller: WriteKeys) -> None:
    """Takes scopes from a key."""
    caller.engine.remove_scopes(key_id, data.scopes)


@router.get("/{key_id}/rotations")
def list_key_rotations(
    key_id: str, query: Annotated[RotationQuery, Query()], caller: ReadKeys
) -> RotationPage:
    """Lists the rotations of a key, newest first."""
    caller.engine.get_key(key_id)
    found = caller.engine.list_rotations(key_id=key_id, **query.page())
    return RotationPage.of(found, query.limit)
