"""The repository of policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import sqlalchemy as sa

from keysmith.errors import PolicyInUseError, PolicyNotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, Policy
from keysmith.stores.base import TenantFilters
from keysmith.stores.repository import SqlRepository


class SqlPolicyRepository(SqlRepository[Policy]):
    """Policies in any SQL database. See `PolicyRepository` for what each call means."""

    model = Policy
    missing = PolicyNotFoundError
    id_prefix = IdPrefix.POLICY
    taken = "A policy of this name exists already in this tenant."
    filters = TenantFilters

    def get_by_name(self, tenant_id: str, name: str) -> Policy:
        return self._one(*self._equal(tenant_id=tenant_id, name=name))

    def delete(self, policy_id: str) -> None:
        bearing = sa.select(sa.literal(1)).where(
            sa.inspect(Key).local_table.c.policy_id == policy_id
        )
        with self._database.write() as connection:
            if connection.scalar(bearing.limit(1)):
                raise PolicyInUseError
            super().delete(policy_id)

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[TenantFilters],
    ) -> Sequence[Policy]:
        return self._page(self._filtered(filters), limit=limit, after=after)

    def count(self, **filters: Unpack[TenantFilters]) -> int:
        return self._count(*self._filtered(filters))
