"""`/policies`: rules for the keys that bear them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Response

from keysmith.errors import TenantMismatchError
from keysmith.fastapi.authority import Authority, ReadPolicies, WritePolicies
from keysmith.fastapi.headers import IfMatch, require_match, versioned
from keysmith.fastapi.problems import ProblemRoute
from keysmith.fastapi.schemas import PolicyPage, PolicyQuery
from keysmith.models import Policy, PolicyCreate, PolicyPublic, PolicyUpdate

router = APIRouter(prefix="/policies", tags=["policies"], route_class=ProblemRoute)


@router.post("", status_code=201)
def create_policy(data: PolicyCreate, caller: WritePolicies, response: Response) -> PolicyPublic:
    """Creates a policy."""
    caller.require_tenant(caller.engine.tenant_id or data.tenant_id)
    return versioned(response, PolicyPublic.model_validate(caller.engine.create_policy(data)))


@router.get("")
def list_policies(query: Annotated[PolicyQuery, Query()], caller: ReadPolicies) -> PolicyPage:
    """Lists policies, newest first."""
    return PolicyPage.of(caller.engine.list_policies(**query.page()), query.limit)


@router.get("/{policy_id}")
def get_policy(policy_id: str, caller: ReadPolicies, response: Response) -> PolicyPublic:
    """Shows a policy."""
    return versioned(response, PolicyPublic.model_validate(caller.engine.get_policy(policy_id)))


@router.patch("/{policy_id}")
def update_policy(
    policy_id: str, data: PolicyUpdate, caller: WritePolicies, if_match: IfMatch, response: Response
) -> PolicyPublic:
    """Changes the fields that are sent; they count from the next validation on.

    That of `max_key_lifetime` counts for keys whose expiry is set later.
    """
    may_change = _may_change(caller, if_match, data.allowed_scopes)
    policy = caller.engine.update_policy(policy_id, data, precondition=may_change)
    return versioned(response, PolicyPublic.model_validate(policy))


@router.put("/{policy_id}")
def replace_policy(
    policy_id: str, data: PolicyCreate, caller: WritePolicies, if_match: IfMatch, response: Response
) -> PolicyPublic:
    """Replaces all fields; those left out get their defaults. Its tenant and app stay."""
    may_change = _may_change(caller, if_match, data.allowed_scopes)

    def may_replace(policy: Policy) -> None:
        may_change(policy)
        for name in ("tenant_id", "app_id"):
            if name in data.model_fields_set and getattr(data, name) != getattr(policy, name):
                raise TenantMismatchError(f"A policy stays where it is: leave {name} out.")

    fields = PolicyUpdate(**data.model_dump(exclude={"tenant_id", "app_id"}))
    policy = caller.engine.update_policy(policy_id, fields, precondition=may_replace)
    return versioned(response, PolicyPublic.model_validate(policy))


@router.delete("/{policy_id}", status_code=204)
def delete_policy(policy_id: str, caller: WritePolicies, if_match: IfMatch) -> None:
    """Removes a policy that no key bears."""
    caller.engine.delete_policy(policy_id, precondition=_may_change(caller, if_match, None))


def _may_change(
    caller: Authority, if_match: str | None, allowed_scopes: list[str] | None
) -> Callable[[Policy], None]:
    """What must hold in the moment of the change."""

    def check(policy: Policy) -> None:
        caller.require_over_policy(policy, allowed_scopes)
        require_match(if_match, PolicyPublic.model_validate(policy))

    return check
