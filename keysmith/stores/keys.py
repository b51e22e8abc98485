"""The repository of keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter

from keysmith.errors import KeyNotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, KeyState
from keysmith.models.base import moment
from keysmith.stores.base import KeyFilters
from keysmith.stores.repository import SqlRepository

_table: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]


class SqlKeyRepository(SqlRepository[Key]):
    """Keys in any SQL database. See `KeyRepository` for what each call means."""

    model = Key
    missing = KeyNotFoundError
    id_prefix = IdPrefix.KEY
    taken = "Another key has this secret already."
    filters = TypeAdapter(KeyFilters)

    def get_by_hash(self, key_hash: str) -> Key:
        return self._one(_table.c.key_hash == key_hash)

    def get_by_prefix(self, prefix: str, hint: str) -> Key:
        return self._one(_table.c.prefix == prefix, _table.c.hint == hint, newest=True)

    def update_state(self, key_id: str, state: KeyState, *, now: datetime) -> Key:
        with self._database.write():
            key = self.get(key_id, for_update=True)
            key.state = state
            key.updated_at = now
            if state is KeyState.REVOKED:
                key.revoked_at = now
            return self.update(key)

    def update_last_used(self, key_id: str, at: datetime) -> None:
        at = moment(at)
        with self._database.write() as connection:
            result = connection.execute(
                sa.update(_table)
                .where(_table.c.id == key_id)
                .values(
                    last_used_at=sa.case(
                        (_table.c.last_used_at > at, _table.c.last_used_at), else_=at
                    )
                )
            )
            if result.rowcount == 0:
                raise KeyNotFoundError

    def list(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[KeyFilters]
    ) -> Sequence[Key]:
        return self._page(self._filtered(filters), limit=limit, after=after)

    def count(self, **filters: Unpack[KeyFilters]) -> int:
        return self._count(*self._filtered(filters))

    def list_expired(self, before: datetime) -> Sequence[Key]:
        living = _table.c.state.in_([state for state in KeyState if not state.final])
        return self._page(
            [living, _table.c.expires_at <= moment(before)],
            limit=None,
            order_by=(_table.c.expires_at, _table.c.id),
        )

    def list_by_policy(self, policy_id: str) -> Sequence[Key]:
        return self._page(self._equal(policy_id=policy_id), limit=None)

    def delete_by_tenant(self, tenant_id: str) -> int:
        with self._database.write() as connection:
            result = connection.execute(sa.delete(_table).where(_table.c.tenant_id == tenant_id))
            return result.rowcount
