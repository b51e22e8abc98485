"""`/scopes`: the names that keys may hold, and their hierarchy."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from keysmith.fastapi.authority import ReadScopes, WriteScopes
from keysmith.fastapi.problems import ProblemRoute
from keysmith.fastapi.schemas import ScopePage, ScopeQuery
from keysmith.models import Scope, ScopeCreate, ScopePublic

router = APIRouter(prefix="/scopes", tags=["scopes"], route_class=ProblemRoute)


@router.post("", status_code=201, response_model=ScopePublic)
def create_scope(data: ScopeCreate, caller: WriteScopes) -> Scope:
    """Creates a scope."""
    caller.require_all_of(caller.engine.tenant_id or data.tenant_id, [data.name])
    return caller.engine.create_scope(data)


@router.get("")
def list_scopes(query: Annotated[ScopeQuery, Query()], caller: ReadScopes) -> ScopePage:
    """Lists scopes, by name."""
    return ScopePage.of(caller.engine.list_scopes(**query.page()), query.limit)


@router.get("/{scope_id}", response_model=ScopePublic)
def get_scope(scope_id: str, caller: ReadScopes) -> Scope:
    """Shows a scope."""
    return caller.engine.get_scope(scope_id)


@router.delete("/{scope_id}", status_code=204)
def delete_scope(scope_id: str, caller: WriteScopes) -> None:
    """Removes a scope. Keys lose it; scopes below it by `parent` stand alone."""
    scope = caller.engine.get_scope(scope_id)
    caller.require_all_of(scope.tenant_id, [scope.name])
    caller.engine.delete_scope(scope_id)
