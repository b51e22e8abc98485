"""Many rows at once, past SQLAlchemy's look at each value, which costs more than the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa


def write_rows(
    connection: sa.Connection,
    statement: sa.Insert,
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Inserts rows, whose values have these names and are as the driver takes them."""
    sql, in_order = _compiled(statement, connection.dialect, names)
    if in_order is not None:
        connection.exec_driver_sql(sql, [in_order(row) for row in rows])
    else:
        connection.exec_driver_sql(sql, [dict(zip(names, row, strict=True)) for row in rows])


def stored_moment(dialect: sa.Dialect) -> Callable[[datetime], Any]:
    """How a moment in UTC is handed to the driver: as `Timestamp` does it."""
    return _sqlite_text if dialect.name == "sqlite" else _as_it_is


@cache
def _compiled(
    statement: sa.Insert, dialect: sa.Dialect, names: tuple[str, ...]
) -> tuple[str, Callable[[tuple[Any, ...]], Any] | None]:
    """The SQL and, where values go by position, what puts a row in its order."""
    compiled: Any = statement.compile(dialect=dialect)
    if not compiled.positional:
        return str(compiled), None
    return str(compiled), itemgetter(*(names.index(name) for name in compiled.positiontup))


def _sqlite_text(at: datetime) -> str:
    return at.isoformat(" ", "microseconds")[:26]


def _as_it_is(at: datetime) -> datetime:
    return at
