"""What all models share: the project's own `MetaData`, validated tables, and the column types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any, ClassVar, Self, TypeVar

import sqlalchemy as sa
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from sqlalchemy.orm import Mapper, registry
from sqlalchemy.orm.instrumentation import manager_of_class
from sqlmodel import Field, SQLModel
from sqlmodel._compat import SQLModelConfig, finish_init
from sqlmodel.sql.sqltypes import UTCDateTime

from keysmith.ids import ID_LENGTH, ID_PATTERN, IdPrefix
from keysmith.models.docstrings import field_docstrings
from keysmith.models.frozen import freeze

ModelT = TypeVar("ModelT", bound=SQLModel)

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""The seven tables, and nothing of the host's: `SQLModel.metadata` stays the host's own."""


# ---------------------------------------------------------------------------- column types


class Milliseconds(sa.types.TypeDecorator[timedelta]):
    """A `timedelta`, stored as whole milliseconds."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: timedelta | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else value // timedelta(milliseconds=1)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> timedelta | None:
        return None if value is None else timedelta(milliseconds=value)


Timestamp = UTCDateTime()
"""An aware UTC `datetime`, with microseconds; text that sorts by time where there is no type."""

Json = sa.JSON(none_as_null=True)

ShortText = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
"""Names and identifiers; compared by code point everywhere, so that ranges mean the same."""

IdText = sa.String(ID_LENGTH).with_variant(sa.String(ID_LENGTH, collation="C"), "postgresql")


def enum_column(enum: type[Enum], name: str) -> sa.Enum:
    """An enumeration stored by value, held to its values by a CHECK of that name."""
    return sa.Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


# ---------------------------------------------------------------------------- field types


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie between the years 1 and 9999 in UTC") from None


_DATED = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


def _with_a_date(value: object) -> object:
    """To pydantic, numbers are moments, too, of which nobody can tell the unit."""
    if isinstance(value, datetime) or (isinstance(value, str) and _DATED.match(value)):
        return value
    raise ValueError("must be a time with a time zone, such as 2026-03-01T12:00:00Z")


def _not_a_boolean(value: object) -> object:
    """To pydantic, `false` is a duration, of no time at all."""
    if isinstance(value, bool):
        raise ValueError("must be a duration")  # noqa: TRY004  pydantic wants this one
    return value


def _whole_milliseconds(value: timedelta) -> timedelta:
    if value % timedelta(milliseconds=1):
        raise ValueError("must be a whole number of milliseconds")
    return value


def iso_8601(value: timedelta) -> str:
    """The duration in ISO 8601, in days at most: pydantic would write years, of 365 days each."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    time = "".join(
        f"{number}{fraction if unit == 'S' else ''}{unit}"
        for number, unit in ((hours, "H"), (minutes, "M"), (seconds, "S"))
        if number or (unit == "S" and fraction)
    )
    days = f"{value.days}D" if value.days else ""
    return f"P{days}T{time}" if time else f"P{days}" if days else "PT0S"


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The character in JSON: `\\u0000` after a backslash that is itself escaped is just that text."""


def _bounded_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):
        raise ValueError("must be plain JSON: no NaN, no infinity, no lone surrogate") from None
    if len(text) > MAX_METADATA_LENGTH:
        raise ValueError(f"must be at most {MAX_METADATA_LENGTH} characters of JSON")
    if _NUL.search(text):
        raise ValueError("must not contain NUL characters")
    return value


MAX_METADATA_LENGTH = 16_384

HIDE_INPUT = ConfigDict(hide_input_in_errors=True)
"""For what checks an argument by itself: the wrong one may be a raw key."""

UtcDatetime = Annotated[
    AwareDatetime,
    BeforeValidator(_with_a_date, json_schema_input_type=datetime),
    AfterValidator(_to_utc),
]
"""A moment in time. Naive datetimes and numbers are refused; what has a time zone becomes UTC."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_not_a_boolean, json_schema_input_type=timedelta | float),
    AfterValidator(_whole_milliseconds),
    PlainSerializer(
        iso_8601,
        return_type=Annotated[str, WithJsonSchema({"type": "string", "format": "duration"})],
        when_used="json",
    ),
]
"""A length of time in whole milliseconds; `PT10M` (ISO 8601) or seconds in JSON."""

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
]
"""1 to 255 characters without control characters."""

Label = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Up to 255 characters without control characters."""

Description = Annotated[
    str,
    StringConstraints(max_length=2000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"),
]
"""Up to 2,000 characters; of control characters only tabs and line ends."""

SCOPE_NAME_PATTERN = r"[a-z0-9_.-]+(:[a-z0-9_.-]+)*"

ScopeName = Annotated[str, StringConstraints(max_length=255, pattern=f"^{SCOPE_NAME_PATTERN}$")]
"""Segments of `[a-z0-9_.-]` joined by `:`, as in `read:users`."""

Meta = Annotated[dict[str, JsonValue], AfterValidator(_bounded_json)]
"""Anything that the service wants to keep with the object, as a JSON object."""

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""64 lower-case hexadecimal characters."""


def _id_type(prefix: IdPrefix) -> StringConstraints:
    return StringConstraints(pattern=rf"^{prefix.value}_{ID_PATTERN}$")


KeyId = Annotated[str, _id_type(IdPrefix.KEY)]
PolicyId = Annotated[str, _id_type(IdPrefix.POLICY)]
ScopeId = Annotated[str, _id_type(IdPrefix.SCOPE)]
UsageId = Annotated[str, _id_type(IdPrefix.USAGE)]
RotationId = Annotated[str, _id_type(IdPrefix.ROTATION)]


# ---------------------------------------------------------------------------- model bases


_registry = registry(metadata=metadata)


def configure_mappers() -> None:
    """Completes what SQLAlchemy knows of the models, which it would put off until it is asked."""
    _registry.configure()


class Base(SQLModel, registry=_registry):
    """Every model of the package. Field names and their JSON names are both accepted."""

    model_config = SQLModelConfig(
        populate_by_name=True,
        extra="forbid",
        # What was wrong may be a secret in the wrong field: errors name the field, not the value.
        hide_input_in_errors=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describes the fields by the docstrings below them."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, text in field_docstrings(cls).items():
            field = cls.model_fields.get(name)
            known_as = (field and field.serialization_alias) or name
            if known_as in properties:
                properties[known_as].setdefault("description", text.replace("`None`", "`null`"))
        return schema


class Owned(Base):
    """What belongs to a tenant, and within it to an app."""

    tenant_id: Name = Field(default="default", sa_type=ShortText)
    """Whose it is. Nothing of one tenant is visible to another."""
    app_id: Name = Field(default="default", sa_type=ShortText)
    """Which of the tenant's applications it belongs to."""


class WithMeta(Base):
    """What carries metadata. The attribute is `meta`, the column and the JSON name `metadata`."""

    meta: Meta = Field(
        default_factory=dict,
        validation_alias="metadata",
        serialization_alias="metadata",
        sa_type=Json,
        sa_column_kwargs={"name": "metadata"},
    )


class Table(Base):
    """A table model that validates, which a `table=True` model by itself does not.

    Values are checked when an instance is made, when an attribute is set, and once more when it is
    written, through a repository or a session of the host's: nothing unvalidated reaches a table.
    """

    def __init__(self, **data: Any) -> None:
        """Raises pydantic's `ValidationError` for missing, unknown or unacceptable values."""
        if finish_init.get():  # False while model_validate() builds the instance it has validated
            validated = _validate(type(self), data)
            self.__dict__.update(validated.__dict__)
            object.__setattr__(self, "__pydantic_fields_set__", validated.model_fields_set)

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name in cls.model_fields:
            scratch = cls.__new__(cls)
            cls.__pydantic_validator__.validate_assignment(scratch, name, value)
            value = scratch.__dict__[name]
        super().__setattr__(name, value)

    def to_row(self) -> dict[str, Any]:
        """The values as they are to be written, by field name, validated anew."""
        fields = self.__dict__
        return _validate(
            type(self), {name: fields[name] for name in type(self).model_fields if name in fields}
        ).__dict__

    @classmethod
    def from_row(cls, row: Iterable[tuple[str, Any]]) -> Self:
        """The instance for a row, by field name; it was validated when it was written."""
        instance: Self = cls.__new__(cls)
        instance.__dict__.update(row)
        manager_of_class(cls).setup_instance(instance)
        return instance


class Marked(Base):
    """What knows the request that made it, if that gave an idempotency key, to know it again."""

    request_token: Hash | None = Field(
        default=None, sa_type=sa.String(64), unique=True, index=True, repr=False, exclude=True
    )
    """A hash of the idempotency key, and of whose it was."""
    request_digest: Hash | None = Field(
        default=None, sa_type=sa.String(64), repr=False, exclude=True
    )
    """A hash of what was asked for."""


class Public(Base):
    """What an API may answer with. Immutable, also in depth; made from a table model or fields."""

    model_config = SQLModelConfig(
        frozen=True, extra="ignore", json_schema_serialization_defaults_required=True
    )

    @model_validator(mode="before")
    @classmethod
    def _from_table(cls, data: Any) -> Any:
        if isinstance(data, (Table, Public)):
            return {name: getattr(data, name) for name in cls.model_fields}
        return data

    @model_validator(mode="after")
    def _in_depth(self) -> Self:
        fields = self.__dict__
        for name, value in fields.items():
            fields[name] = freeze(value)
        return self

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The instance for frozen values by field name, validated when they were written."""
        return instance_of(cls, row)


def instance_of(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """An instance that holds these fields, unvalidated; pydantic takes many times as long."""
    instance = object.__new__(model)
    set_attribute = object.__setattr__
    set_attribute(instance, "__dict__", fields)
    set_attribute(instance, "__pydantic_fields_set__", set(fields))
    set_attribute(instance, "__pydantic_extra__", None)
    set_attribute(instance, "__pydantic_private__", None)
    return instance


class Update(Base):
    """A change: only the fields that were set count. `None` clears a field that may be empty."""

    clearable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _only_clearable_cleared(self) -> Self:
        for name in sorted(self.model_fields_set - self.clearable):
            if getattr(self, name) is None:
                known_as = type(self).model_fields[name].validation_alias or name
                raise ValueError(f"{known_as} cannot be null; leave it out to keep it as it is")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Says of the fields that cannot be cleared that they cannot be null."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, field in cls.model_fields.items():
            if name not in cls.clearable:
                document = properties.get(field.validation_alias) or properties[name]
                [given] = [each for each in document.pop("anyOf") if each != {"type": "null"}]
                document.update(given)
                del document["default"]
        return schema

    def changes(self) -> dict[str, Any]:
        """The fields that were set, with their new values."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


_moment: TypeAdapter[datetime] = TypeAdapter(UtcDatetime, config=HIDE_INPUT)


def moment(value: datetime) -> datetime:
    """The moment in UTC. A naive datetime raises `ValidationError`."""
    return _moment.validate_python(value)


def invalid(model: type[SQLModel], field: str, message: str) -> ValidationError:
    """The `ValidationError` for a rule that the schema alone cannot check, such as "not past"."""
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        model.__name__,
        [InitErrorDetails(type=error, loc=(field,), input=None)],
        hide_input=True,
    )


def _validate(cls: type[Table], data: dict[str, Any]) -> Table:
    """A bare instance, unknown to SQLAlchemy, that holds the validated values."""
    validated: Table = cls.__new__(cls)
    cls.__pydantic_validator__.validate_python(data, self_instance=validated)
    return validated


def _validate_before_write(_mapper: Mapper[Any], _connection: sa.Connection, target: Table) -> None:
    for name, value in target.to_row().items():
        if target.__dict__.get(name) != value:
            setattr(target, name, value)


sa.event.listen(Table, "before_insert", _validate_before_write, propagate=True)
sa.event.listen(Table, "before_update", _validate_before_write, propagate=True)
