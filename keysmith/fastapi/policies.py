"""`/policies`: rules for the keys that bear them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from keysmith.errors import TenantMismatchError
from keysmith.fastapi.authority import Authority, ReadPolicies, WritePolicies
from keysmith.fastapi.problems import ProblemRoute
from keysmith.fastapi.schemas import PolicyPage, PolicyQuery
from keysmith.models import Policy, PolicyCreate, PolicyPublic, PolicyUpdate

router = APIRouter(prefix="/policies", tags=["policies"], route_class=ProblemRoute)


@router.post("", status_code=201, response_model=PolicyPublic)
def create_policy(data: PolicyCreate, caller: WritePolicies) -> Policy:
    """Creates a policy."""
    return caller.engine.create_policy(data)


@router.get("")
def list_policies(query: Annotated[PolicyQuery, Query()], caller: ReadPolicies) -> PolicyPage:
    """Lists policies, newest first."""
    return PolicyPage.of(caller.engine.list_policies(**query.page()), query.limit)


@router.get("/{policy_id}", response_model=PolicyPublic)
def get_policy(policy_id: str, caller: ReadPolicies) -> Policy:
    """Shows a policy."""
    return caller.engine.get_policy(policy_id)


@router.patch("/{policy_id}", response_model=PolicyPublic)
def update_policy(policy_id: str, data: PolicyUpdate, caller: WritePolicies) -> Policy:
    """Changes the fields that are sent; they count from the next validation on."""
    return caller.engine.update_policy(policy_id, data)


@router.put("/{policy_id}", response_model=PolicyPublic)
def replace_policy(policy_id: str, data: PolicyCreate, caller: WritePolicies) -> Policy:
    """Replaces all fields; those left out get their defaults. Its tenant and app stay."""
    _refuse_to_move(policy_id, data, caller)
    fields = data.model_dump(exclude={"tenant_id", "app_id"})
    return caller.engine.update_policy(policy_id, PolicyUpdate(**fields))


@router.delete("/{policy_id}", status_code=204)
def delete_policy(policy_id: str, caller: WritePolicies) -> None:
    """Removes a policy that no key bears."""
    caller.engine.delete_policy(policy_id)


def _refuse_to_move(policy_id: str, data: PolicyCreate, caller: Authority) -> None:
    policy = caller.engine.get_policy(policy_id)
    for name in ("tenant_id", "app_id"):
        if name in data.model_fields_set and getattr(data, name) != getattr(policy, name):
            raise TenantMismatchError(f"A policy stays where it is: leave {name} out.")
