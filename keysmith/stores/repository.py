"""What the repositories have in common: rows in, rows out, pages and missing rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import sqlalchemy as sa
from pydantic import Field, TypeAdapter

from keysmith.errors import ConflictError, NotFoundError, StoreCorruptError
from keysmith.ids import IdPrefix, is_id
from keysmith.models import Key
from keysmith.models.base import HIDE_INPUT, Table, invalid
from keysmith.stores.base import TenantFilters
from keysmith.stores.database import Database

TableT = TypeVar("TableT", bound=Table)

_keys: sa.Table = sa.inspect(Key).local_table  # type: ignore[assignment]

_limit: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=2**31)], config=HIDE_INPUT)


class SqlRepository(Generic[TableT]):
    """Keeps the rows of one table as instances of its model, in any SQL database.

    Statements are Core, not ORM: instances belong to nobody's session, and a lookup costs a
    quarter of what a session would. What is written is validated; what is read was.
    """

    model: ClassVar[type[Any]]
    missing: ClassVar[type[NotFoundError]]
    id_prefix: ClassVar[IdPrefix]
    taken: ClassVar[str] = "There is such a row already."
    """What a `ConflictError` says."""
    filters: ClassVar[Any]
    places: ClassVar[TypeAdapter[tuple[Any, str]]]
    """Where a row stands in a list that is not by ID: what the list is by, and the ID."""

    table: ClassVar[sa.Table]
    fields: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[sa.Column[Any], ...]]

    _checked_filters: ClassVar[TypeAdapter[Any]]

    # Built once: to build a statement costs as much as to run it.
    _insert: ClassVar[sa.Insert]
    _update: ClassVar[sa.Update]
    _delete: ClassVar[sa.Delete]
    _select: ClassVar[sa.Select[Any]]
    _select_for_update: ClassVar[sa.Select[Any]]

    def __init_subclass__(cls) -> None:
        # For a `TypedDict` by itself no configuration is taken.
        cls._checked_filters = TypeAdapter(cls.filters | None, config=HIDE_INPUT)
        mapper: Any = sa.inspect(cls.model)
        cls.table = mapper.local_table
        cls.fields = tuple(cls.model.model_fields)
        cls.columns = tuple(mapper.columns[field] for field in cls.fields)
        cls._insert = sa.insert(cls.table)
        if "id" in cls.table.c:
            this = cls.table.c.id == sa.bindparam("this_id")
            cls._update = sa.update(cls.table).where(this)
            cls._delete = sa.delete(cls.table).where(this)
            cls._select = sa.select(*cls.columns).where(this)
            cls._select_for_update = cls._select.with_for_update()

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, entity: TableT) -> TableT:
        row = self.row(entity)
        with self._unique(), self._database.write() as connection:
            connection.execute(self._insert, row)
        return entity

    def get(self, entity_id: str, *, for_update: bool = False) -> TableT:
        if not is_id(self.id_prefix, entity_id):
            raise self.missing
        statement = self._select_for_update if for_update else self._select
        return self._first(statement, {"this_id": entity_id})

    def update(self, entity: TableT) -> TableT:
        row = self.row(entity)
        # The ID is not written anew: that would make SQLite look for all who refer to it.
        row["this_id"] = row.pop("id")
        with self._unique(), self._database.write() as connection:
            result = connection.execute(self._update, row)
            if result.rowcount == 0:
                raise self.missing
        return entity

    def delete(self, entity_id: str) -> None:
        with self._database.write() as connection:
            result = connection.execute(self._delete, {"this_id": entity_id})
            if result.rowcount == 0:
                raise self.missing

    # ------------------------------------------------------------------ for the subclasses

    def row(self, entity: TableT) -> dict[str, Any]:
        """The values to write, validated, by column name."""
        values = entity.to_row()
        return {
            column.name: values[field]
            for field, column in zip(self.fields, self.columns, strict=True)
        }

    def _one(self, *criteria: sa.ColumnElement[bool], newest: bool = False) -> TableT:
        statement = sa.select(*self.columns).where(*criteria).limit(1)
        if newest:
            statement = statement.order_by(self.table.c.id.desc())
        return self._first(statement)

    def _first(
        self, statement: sa.Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> TableT:
        found = self._all(statement, parameters)
        if not found:
            raise self.missing
        return found[0]

    def _page(
        self,
        criteria: Iterable[sa.ColumnElement[bool]],
        *,
        limit: int | None,
        after: str | None = None,
        order_by: tuple[sa.ColumnElement[Any], ...] = (),
    ) -> list[TableT]:
        """Rows newest first, which is by descending ID, unless told otherwise."""
        statement = sa.select(*self.columns).where(*criteria)
        if after is not None:
            statement = statement.where(self.table.c.id < self._cursor(after))
        statement = statement.order_by(*(order_by or (self.table.c.id.desc(),)))
        if limit is not None:
            statement = statement.limit(_limit.validate_python(limit))
        return self._all(statement)

    def _all(
        self, statement: sa.Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> list[TableT]:
        with self._database.read() as connection:
            result = connection.execute(statement, parameters)
            try:
                rows = result.all()
            except (ValueError, LookupError, TypeError) as error:
                raise StoreCorruptError(
                    f"A row of {self.table.name} holds a value that Keysmith cannot have written "
                    f"({type(error).__name__}). Correct it, or restore a backup."
                ) from None
        return [self.model.from_row(zip(self.fields, row, strict=True)) for row in rows]

    def _count(self, *criteria: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).select_from(self.table).where(*criteria)
        with self._database.read() as connection:
            return connection.scalar(statement) or 0

    def _cursor(self, after: str) -> str:
        if not is_id(self.id_prefix, after):
            raise invalid(self.model, "after", "must be the last ID of the page before")
        return after

    def _place(
        self, after: str | tuple[Any, str], order: sa.Column[Any], filters: Mapping[str, Any]
    ) -> tuple[Any, str]:
        """Where the page before ended. Raises `missing` for an ID that has gone from the list."""
        if not isinstance(after, str):
            return self.places.validate_python(after)
        whose = {name: filters.get(name) for name in TenantFilters.__annotations__}
        statement = sa.select(order, self.table.c.id).where(
            self.table.c.id == self._cursor(after), *self._equal(**whose)
        )
        with self._database.read() as connection:
            place = connection.execute(statement).first()
        if place is None:
            raise self.missing(
                'What "after" names has gone, and with it the place where the page before ended. '
                "List from the beginning."
            )
        return place[0], place[1]

    def _filtered(
        self, filters: Mapping[str, Any], *, time: sa.ColumnElement[Any] | None = None
    ) -> list[sa.ColumnElement[bool]]:
        """A criterion for each filter; unknown filters and values raise `ValidationError`."""
        checked = dict(self._checked_filters.validate_python(dict(filters)))
        since, until = checked.pop("since", None), checked.pop("until", None)
        criteria = self._equal(**checked)
        if time is not None and since is not None:
            criteria.append(time >= since)
        if time is not None and until is not None:
            criteria.append(time < until)
        return criteria

    @contextmanager
    def _unique(self) -> Iterator[None]:
        try:
            yield
        except ConflictError:
            raise ConflictError(self.taken) from None

    def _equal(self, **filters: Any) -> list[sa.ColumnElement[bool]]:
        """A criterion for each filter that is not `None`."""
        given = {name: value for name, value in filters.items() if value is not None}
        return [self._meets(name, value, given) for name, value in given.items()]

    def _meets(
        self,
        name: str,
        value: Any,
        filters: Mapping[str, Any],  # noqa: ARG002  for the subclasses
    ) -> sa.ColumnElement[bool]:
        """The criterion for a filter, among others."""
        columns = self.table.c
        return columns[name] == value if name in columns else columns.key_id.in_(_of_app(value))


def _of_app(app_id: str) -> sa.Select[Any]:
    """The keys of an app, of which what belongs to a key does not know."""
    return sa.select(_keys.c.id).where(_keys.c.app_id == app_id)
