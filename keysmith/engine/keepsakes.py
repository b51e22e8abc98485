"""What a plugin is handed: copies that it may keep, and that nobody else changes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from keysmith.models.base import Public, Table


def keepsake(thing: Any) -> Any:
    """The same thing, safe to keep: entities and requests copied, errors without their frames."""
    if isinstance(thing, Table):
        return type(thing).from_row(
            (name, deepcopy(value) if isinstance(value, (dict, list)) else value)
            for name, value in thing.__dict__.items()
            if name != "_sa_instance_state"
        )
    if isinstance(thing, BaseModel) and not isinstance(thing, Public):
        return thing.model_copy(deep=True)
    if isinstance(thing, ValidationError):
        return _without_input(thing)
    if isinstance(thing, Exception):
        return _without_frames(thing)
    return thing


def _without_frames(error: Exception) -> Exception:
    """The error with neither traceback nor cause: their frames hold raw keys, and much memory."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def _without_input(error: ValidationError) -> ValidationError:
    """The error with what was wrong, and without the value that was: that may be a hash."""
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=PydanticCustomError(detail["type"], "{message}", {"message": detail["msg"]}),
                loc=detail["loc"],
                input=None,
            )
            for detail in error.errors(
                include_url=False, include_context=False, include_input=False
            )
        ],
        hide_input=True,
    )
