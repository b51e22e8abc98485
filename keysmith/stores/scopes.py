"""The repository of scopes, and of which key holds which."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from keysmith.errors import KeyNotFoundError, ScopeNotFoundError
from keysmith.ids import IdPrefix
from keysmith.models import Key, KeyScope, Scope
from keysmith.models.base import HIDE_INPUT, SCOPE_NAME_PATTERN, ScopeId, ScopeName
from keysmith.stores.base import ScopeFilters
from keysmith.stores.repository import SqlRepository

_table: sa.Table = sa.inspect(Scope).local_table  # type: ignore[assignment]
_held: sa.Table = sa.inspect(KeyScope).local_table  # type: ignore[assignment]
_keys: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]


class json_strings(GenericFunction[str]):  # noqa: N801  it is a function
    """The strings of a JSON array as rows: one parameter, however many there are."""

    inherit_cache = True


@compiles(json_strings)
def _json_strings(element: json_strings, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(json_strings, "postgresql")
def _json_strings_postgresql(element: json_strings, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


def _below() -> sa.Select[Any]:
    """The scopes of a tenant among some names and below them; built once, as it is asked often."""
    tenant_id: sa.BindParameter[str] = sa.bindparam("tenant")
    seed = json_strings(sa.bindparam("names")).table_valued("value")
    granted = sa.select(seed.c.value.label("name")).cte("granted", recursive=True)
    child, named = _table.alias("child"), _table.alias("named")
    by_parent = sa.select(child.c.id).where(
        child.c.tenant_id == tenant_id, child.c.parent == granted.c.name
    )
    # By name, everything from "a:" up to "a;", the character after the colon, lies below "a".
    by_name = sa.select(named.c.id).where(
        named.c.tenant_id == tenant_id,
        named.c.name > granted.c.name + ":",
        named.c.name < granted.c.name + ";",
    )
    # A union of two index lookups; one condition with OR would scan the tenant's scopes.
    below = sa.union_all(by_parent.correlate(granted), by_name.correlate(granted))
    granted = granted.union(
        sa.select(_table.c.name).select_from(granted.join(_table, _table.c.id.in_(below)))
    )
    return (
        sa.select(_table.c.name)
        .where(_table.c.tenant_id == tenant_id, _table.c.name.in_(sa.select(granted.c.name)))
        .order_by(_table.c.name)
    )


_BELOW = _below()
_is_name = re.compile(SCOPE_NAME_PATTERN).fullmatch


class SqlScopeRepository(SqlRepository[Scope]):
    """Scopes in any SQL database. See `ScopeRepository` for what each call means."""

    model = Scope
    missing = ScopeNotFoundError
    id_prefix = IdPrefix.SCOPE
    taken = "A scope of this name exists already in this tenant."
    filters = ScopeFilters
    places = TypeAdapter(tuple[ScopeName, ScopeId], config=HIDE_INPUT)

    def get_by_name(self, tenant_id: str, name: str) -> Scope:
        return self._one(*self._equal(tenant_id=tenant_id, name=name))

    def delete(self, scope_id: str) -> None:
        with self._database.write() as connection:
            scope = self.get(scope_id, for_update=True)
            # A scope that is later made under the same name must not find these below it.
            connection.execute(
                sa.update(_table)
                .where(_table.c.tenant_id == scope.tenant_id, _table.c.parent == scope.name)
                .values(parent=None)
            )
            super().delete(scope_id)

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[str, str] | None = None,
        **filters: Unpack[ScopeFilters],
    ) -> Sequence[Scope]:
        criteria = self._filtered(filters)
        if after is not None:
            place = self._place(after, _table.c.name, filters)
            criteria.append(sa.tuple_(_table.c.name, _table.c.id) > place)
        return self._page(criteria, limit=limit, order_by=(_table.c.name, _table.c.id))

    def list_by_key(self, key_id: str) -> Sequence[Scope]:
        statement = (
            sa.select(*self.columns)
            .join(_held, _held.c.scope_id == _table.c.id)
            .where(_held.c.key_id == key_id)
            .order_by(_table.c.name)
        )
        return self._all(statement)

    def names_by_key(self, key_ids: Iterable[str]) -> Mapping[str, Sequence[str]]:
        those = json_strings(sa.bindparam("key_ids")).table_valued("value")
        statement = (
            sa.select(_held.c.key_id, _table.c.name)
            .join(_table, _table.c.id == _held.c.scope_id)
            .where(_held.c.key_id.in_(sa.select(those.c.value)))
            .order_by(_table.c.name)
        )
        names: dict[str, list[str]] = defaultdict(list)
        with self._database.read() as connection:
            for key_id, name in connection.execute(
                statement, {"key_ids": json.dumps(list(key_ids))}
            ):
                names[key_id].append(name)
        return names

    def assign_to_key(self, key_id: str, names: Iterable[str]) -> None:
        wanted = set(names)
        with self._database.write() as connection:
            found = self._ids(connection, key_id, wanted)
            held = set(
                connection.scalars(sa.select(_held.c.scope_id).where(_held.c.key_id == key_id))
            )
            rows = [{"key_id": key_id, "scope_id": id_} for id_ in found.values()]
            rows = [row for row in rows if row["scope_id"] not in held]
            if rows:
                connection.execute(sa.insert(_held), rows)

    def remove_from_key(self, key_id: str, names: Iterable[str]) -> None:
        with self._database.write() as connection:
            ids = self._ids(connection, key_id, set(names)).values()
            connection.execute(
                sa.delete(_held).where(_held.c.key_id == key_id, _held.c.scope_id.in_(list(ids)))
            )

    def below(self, tenant_id: str, names: Iterable[str]) -> Sequence[str]:
        parameters = {
            "tenant": tenant_id,
            "names": json.dumps(sorted(filter(_is_name, set(names)))),
        }
        with self._database.read() as connection:
            return list(connection.scalars(_BELOW, parameters))

    def _ids(self, connection: sa.Connection, key_id: str, names: set[str]) -> dict[str, str]:
        """The IDs, by name, of those scopes that the key's tenant has."""
        tenant_id: Any = connection.scalar(
            sa.select(_keys.c.tenant_id).where(_keys.c.id == key_id).with_for_update()
        )
        if tenant_id is None:
            raise KeyNotFoundError
        rows = connection.execute(
            sa.select(_table.c.name, _table.c.id).where(
                _table.c.tenant_id == tenant_id,
                _table.c.name.in_(sorted(filter(_is_name, names))),
            )
        )
        found: dict[str, str] = {row.name: row.id for row in rows}
        unknown = names - found.keys()
        if unknown:
            raise ScopeNotFoundError(names=unknown)
        return found
