"""`/scopes`: the names that keys may hold, and their hierarchy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Response

from keysmith.fastapi.authority import Authority, ReadScopes, WriteScopes
from keysmith.fastapi.headers import IfMatch, require_match, versioned
from keysmith.fastapi.problems import ProblemRoute
from keysmith.fastapi.schemas import ScopePage, ScopeQuery
from keysmith.models import Scope, ScopeCreate, ScopePublic, ScopeUpdate

router = APIRouter(prefix="/scopes", tags=["scopes"], route_class=ProblemRoute)


@router.post("", status_code=201)
def create_scope(data: ScopeCreate, caller: WriteScopes, response: Response) -> ScopePublic:
    """Creates a scope."""
    caller.require_all_of(caller.engine.tenant_id or data.tenant_id, [data.name])
    return versioned(response, ScopePublic.model_validate(caller.engine.create_scope(data)))


@router.get("")
def list_scopes(query: Annotated[ScopeQuery, Query()], caller: ReadScopes) -> ScopePage:
    """Lists scopes, by name."""
    return ScopePage.of(caller.engine.list_scopes(**query.page()), query.limit)


@router.get("/{scope_id}")
def get_scope(scope_id: str, caller: ReadScopes, response: Response) -> ScopePublic:
    """Shows a scope."""
    return versioned(response, ScopePublic.model_validate(caller.engine.get_scope(scope_id)))


@router.patch("/{scope_id}")
def update_scope(
    scope_id: str, data: ScopeUpdate, caller: WriteScopes, if_match: IfMatch, response: Response
) -> ScopePublic:
    """Changes the fields that are sent; the name is for good."""
    may_change = _may_change(caller, if_match)
    scope = caller.engine.update_scope(scope_id, data, precondition=may_change)
    return versioned(response, ScopePublic.model_validate(scope))


@router.delete("/{scope_id}", status_code=204)
def delete_scope(scope_id: str, caller: WriteScopes, if_match: IfMatch) -> None:
    """Removes a scope. Keys lose it; scopes below it by `parent` stand alone."""
    caller.engine.delete_scope(scope_id, precondition=_may_change(caller, if_match))


def _may_change(caller: Authority, if_match: str | None) -> Callable[[Scope], None]:
    """What must hold in the moment of the change."""

    def check(scope: Scope) -> None:
        # Also where it only moves: whoever holds its new parent is granted it, and all below it.
        caller.require_all_of(scope.tenant_id, [scope.name])
        require_match(if_match, ScopePublic.model_validate(scope))

    return check
