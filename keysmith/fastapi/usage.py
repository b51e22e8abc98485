"""Usage: the requests of a key, and what they add up to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from keysmith.fastapi.authority import ReadUsage
from keysmith.fastapi.problems import ProblemRoute
from keysmith.fastapi.schemas import (
    AggregatePage,
    AggregateQuery,
    TenantAggregateQuery,
    UsagePage,
    UsageQuery,
)

router = APIRouter(tags=["usage"], route_class=ProblemRoute)


@router.get("/keys/{key_id}/usage")
def list_key_usage(
    key_id: str, query: Annotated[UsageQuery, Query()], caller: ReadUsage
) -> UsagePage:
    """Lists the requests made with a key, newest first."""
    caller.engine.get_key(key_id)
    return UsagePage.of(caller.engine.query_usage(key_id=key_id, **query.page()), query.limit)


@router.get("/keys/{key_id}/usage/aggregate")
def aggregate_key_usage(
    key_id: str, query: Annotated[AggregateQuery, Query()], caller: ReadUsage
) -> AggregatePage:
    """Adds up the requests made with a key by day or month, newest first."""
    caller.engine.get_key(key_id)
    found = caller.engine.aggregate_usage(key_id=key_id, **query.page())
    return AggregatePage.of(found, query.limit)


@router.get("/usage")
def aggregate_usage(
    query: Annotated[TenantAggregateQuery, Query()], caller: ReadUsage
) -> AggregatePage:
    """Adds up the requests of all keys, or those of a tenant, each by day or month."""
    return AggregatePage.of(caller.engine.aggregate_usage(**query.page()), query.limit)
