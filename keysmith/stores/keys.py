"""The repository of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Unpack

import sqlalchemy as sa

from keysmith.errors import KeyNotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, KeyScope, KeyState, Policy
from keysmith.models.base import Timestamp, moment
from keysmith.stores.base import KeyFilters, TenantFilters
from keysmith.stores.repository import SqlRepository

_table: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]

_held: sa.Table = sa.inspect(KeyScope).local_table  # type: ignore[assignment]
_policies: sa.Table = sa.inspect(Policy).local_table  # type: ignore[assignment]

_PERIOD = _policies.c.rotation_period
_ROTATING = sa.select(_policies.c.id, _PERIOD).where(_PERIOD.is_not(None))
_SECRET_SINCE = sa.func.coalesce(_table.c.rotated_at, _table.c.created_at)
_NO_FINAL_STATE = _table.c.state.in_([state for state in KeyState if not state.final])


class SqlKeyRepository(SqlRepository[Key]):
    """Keys in any SQL database. See `KeyRepository` for what each call means."""

    model = Key
    missing = KeyNotFoundError
    id_prefix = IdPrefix.KEY
    taken = "Another key has this secret already."
    filters = KeyFilters

    def get_by_hash(self, key_hash: str) -> Key:
        return self._one(_table.c.key_hash == key_hash)

    def get_by_request(self, token: str) -> Key:
        return self._one(_table.c.request_token == token)

    def get_by_prefix(self, prefix: str, hint: str) -> Key:
        return self._one(_table.c.prefix == prefix, _table.c.hint == hint, newest=True)

    def update_state(self, key_id: str, state: KeyState, *, now: datetime) -> Key:
        with self._database.write():
            key = self.get(key_id, for_update=True)
            key.state = state
            key.updated_at = now
            if key.state == KeyState.REVOKED:
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
        with self._database.read():
            return self._page(self._filtered(filters), limit=limit, after=after)

    def count(self, **filters: Unpack[KeyFilters]) -> int:
        with self._database.read():
            return self._count(*self._filtered(filters))

    def list_due_for_rotation(
        self, now: datetime, **filters: Unpack[TenantFilters]
    ) -> Sequence[Key]:
        with self._database.read():
            keys = self.list(rotation_due_by=now, **filters)
            period = self._rotation_periods(filters.get("tenant_id"))

        def due(key: Key) -> tuple[datetime, str]:
            return (key.rotated_at or key.created_at) + period[key.policy_id], key.id

        return sorted(keys, key=due)

    def list_expired(
        self, before: datetime, *, limit: int | None = None, **filters: Unpack[TenantFilters]
    ) -> Sequence[Key]:
        return self._page(
            self._filtered({"expires_by": before, **filters}),
            limit=limit,
            order_by=(_table.c.expires_at, _table.c.id),
        )

    def list_by_policy(self, policy_id: str) -> Sequence[Key]:
        return self._page(self._equal(policy_id=policy_id), limit=None)

    def list_by_scope(self, scope_id: str, *, limit: int | None = None) -> Sequence[Key]:
        holders = sa.select(_held.c.key_id).where(_held.c.scope_id == scope_id)
        return self._page([_table.c.id.in_(holders)], limit=limit)

    def delete_by_tenant(self, tenant_id: str) -> int:
        with self._database.write() as connection:
            result = connection.execute(sa.delete(_table).where(_table.c.tenant_id == tenant_id))
            return result.rowcount

    def _meets(self, name: str, value: Any, filters: Mapping[str, Any]) -> sa.ColumnElement[bool]:
        columns = self.table.c
        match name:
            case "expires_by":
                return sa.and_(_NO_FINAL_STATE, columns.expires_at <= value)
            case "rotation_due_by":
                return sa.and_(*_living(value), self._due(value, filters.get("tenant_id")))
            case "unused_since":
                unused = sa.or_(columns.last_used_at.is_(None), columns.last_used_at < value)
                return sa.and_(*_living(value), columns.created_at < value, unused)
            case _:
                return super()._meets(name, value, filters)

    def _due(self, by: datetime, tenant_id: str | None) -> sa.ColumnElement[bool]:
        """Whether the secret is older than its policy's period at that moment."""
        since: list[tuple[timedelta, datetime]] = []
        for period in set(self._rotation_periods(tenant_id).values()):
            with suppress(OverflowError):  # longer than there has been time
                since.append((period, by - period))
        if not since:
            return sa.false()
        named = sa.column("period", _PERIOD.type), sa.column("since", Timestamp)
        due = sa.values(*named, name="due").data(since).cte().c
        borne = sa.exists().where(
            _policies.c.id == _table.c.policy_id, due.period == _PERIOD, due.since >= _SECRET_SINCE
        )
        # Said twice: by the index, only the keys of such policies are looked at.
        return sa.and_(_table.c.policy_id.in_(_ROTATING.with_only_columns(_policies.c.id)), borne)

    def _rotation_periods(self, tenant_id: str | None) -> dict[str | None, timedelta]:
        """By policy, of those that have one, of a tenant or of all."""
        whose = () if tenant_id is None else (_policies.c.tenant_id == tenant_id,)
        with self._database.read() as connection:
            return dict(connection.execute(_ROTATING.where(*whose)).all())


def _living(then: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    expires_at = _table.c.expires_at
    return _NO_FINAL_STATE, sa.or_(expires_at.is_(None), expires_at > then)
