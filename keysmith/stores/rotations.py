"""The repository of rotations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Unpack

import sqlalchemy as sa

from keysmith.errors import RotationNotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, Rotation
from keysmith.models.base import moment
from keysmith.stores.base import RotationFilters, TenantFilters
from keysmith.stores.repository import SqlRepository

_table: sa.Table = sa.inspect(Rotation).local_table  # type: ignore[assignment]
_keys: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]


class SqlRotationRepository(SqlRepository[Rotation]):
    """Rotations in any SQL database. See `RotationRepository` for what each call means."""

    model = Rotation
    missing = RotationNotFoundError
    id_prefix = IdPrefix.ROTATION
    taken = "Another rotation has taken this secret out of use already."
    filters = RotationFilters

    def get_by_request(self, token: str) -> Rotation:
        return self._one(_table.c.request_token == token)

    def get_by_old_hash(self, key_hash: str) -> Rotation:
        return self._one(_table.c.old_key_hash == key_hash)

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[RotationFilters],
    ) -> Sequence[Rotation]:
        return self._page(self._filtered(filters), limit=limit, after=after)

    def list_pending_grace(self, now: datetime) -> Sequence[Rotation]:
        return self._page(
            [_table.c.grace_closed.is_(False), _table.c.grace_ends > moment(now)],
            limit=None,
            order_by=(_table.c.grace_ends, _table.c.id),
        )

    def latest_for_key(self, key_id: str) -> Rotation:
        return self._one(_table.c.key_id == key_id, newest=True)

    def end_grace(self, key_id: str, *, now: datetime) -> int:
        now = moment(now)
        with self._database.write() as connection:
            result = connection.execute(
                sa.update(_table)
                .where(_table.c.key_id == key_id, _table.c.grace_ends > now)
                .values(grace_ends=now)
            )
            return result.rowcount

    def list_ended_grace(
        self, now: datetime, *, limit: int | None = None, **filters: Unpack[TenantFilters]
    ) -> Sequence[Rotation]:
        ended = [_table.c.grace_closed.is_(False), _table.c.grace_ends <= moment(now)]
        whose = [_keys.c[name] == value for name, value in filters.items() if value is not None]
        if whose:
            ended.append(_table.c.key_id.in_(sa.select(_keys.c.id).where(*whose)))
        return self._page(
            ended,
            limit=limit,
            order_by=(_table.c.grace_ends, _table.c.id),
        )
