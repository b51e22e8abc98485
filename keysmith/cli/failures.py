"""What goes wrong, as an exit code and a few lines on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from enum import IntEnum
from io import BytesIO, TextIOWrapper
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import to_jsonable_python
from typer.core import TyperGroup

from keysmith.cli.output import note, print_json, show_any_text
from keysmith.errors import KeysmithError, QuotaExceededError, RateLimitedError, StoreError
from keysmith.raw_keys import without_raw_keys

LONG_WORD = 16
"""A word on the command line from this length on may be a secret in the wrong place."""

_PYDANTIC_PREFIX = "Value error, "

_COMMAND_FOR = {
    "list_keys()": "`keysmith keys list`",
    "list_scopes()": "`keysmith scopes list`",
    "ensure_scopes()": "`keysmith scopes create`",
    "have it overwritten": "give --force",
}
"""What is a call to a program is a command to people."""


class ExitCode(IntEnum):
    """What the exit code of a command says."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    STORE = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CommandLine(TyperGroup):
    """The group of all commands, which tells what went wrong without a traceback."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Runs the command and exits with its code."""
        arguments = sys.argv[1:] if args is None else list(args)
        show_any_text()
        if sys.stdin is None:  # closed by whoever has started this
            sys.stdin = TextIOWrapper(BytesIO())
        sys.exit(self._run(arguments, {**extra, "standalone_mode": False}))

    def _run(self, arguments: list[str], extra: dict[str, Any]) -> int:
        try:
            return self._told(arguments, extra)
        except SystemExit as exit:
            # Typer and rich turn a broken pipe into an exit of their own.
            if not isinstance(exit.__context__, BrokenPipeError):
                raise
        except BrokenPipeError:
            pass
        _discard_output()
        return ExitCode.BROKEN_PIPE

    def _told(self, arguments: list[str], extra: dict[str, Any]) -> int:
        as_json = "--json" in arguments
        try:
            # All that prints also flushes; an interrupt comes back as an exit code.
            code = super().main(arguments, **extra)
        except typer.Abort as abort:
            interrupted = isinstance(abort.__context__, KeyboardInterrupt)
            exit_code = ExitCode.INTERRUPTED if interrupted else ExitCode.REFUSED
            return _tell(exit_code, "aborted", "Aborted; nothing was done.", as_json=as_json)
        except typer.TyperException as error:
            return _tell_usage(error, arguments, as_json=as_json)
        except ValidationError as error:
            message = "\n".join(fields_of(error))
            return _tell(ExitCode.USAGE, "invalid_input", message, as_json=as_json)
        except StoreError as error:
            return _tell(ExitCode.STORE, error.code, str(error), as_json=as_json)
        except KeysmithError as error:
            about = _about(error)
            return _tell(ExitCode.REFUSED, error.code, str(error), as_json=as_json, **about)
        except OSError as error:
            _discard_output()
            message = f"{error.filename or 'The output'}: {error.strerror or error}."
            return _tell(ExitCode.REFUSED, "system_error", message, as_json=as_json)
        return int(code or ExitCode.DONE)


def _about(error: KeysmithError) -> dict[str, object]:
    """Whose key it is, and when it will do again."""
    about: dict[str, object] = {}
    if error.key_id:
        about |= {"key_id": error.key_id, "tenant_id": error.tenant_id}
    if isinstance(error, RateLimitedError):
        about["retry_after"] = error.retry_after
    if isinstance(error, QuotaExceededError) and error.resets_at is not None:
        about |= {"period": error.period, "resets_at": to_jsonable_python(error.resets_at)}
    return about


def _tell(
    exit_code: ExitCode, code: str, message: str, *, as_json: bool, **about: object
) -> ExitCode:
    message = with_commands(without_raw_keys(message))
    if as_json:
        print_json({"error": {"code": code, "message": message, **about}}, err=True)
    else:
        note(f"Error: {message}", "red")
        for name, value in about.items():
            note(f"{name}: {value}")
    return exit_code


def with_commands(message: str) -> str:
    """The message with commands in place of calls."""
    for call, command in _COMMAND_FOR.items():
        message = message.replace(call, command)
    return message


def _tell_usage(error: typer.TyperException, arguments: list[str], *, as_json: bool) -> ExitCode:
    message = error.format_message().replace(_PYDANTIC_PREFIX, "")
    if not message:
        return ExitCode.USAGE  # a group alone, which has printed its help instead
    if any(without_raw_keys(each) != each for each in arguments):
        message += "\nA raw key is a secret: no command takes it as an argument."
    context = getattr(error, "ctx", None)
    _tell(ExitCode.USAGE, "usage", _without_long_words(message, arguments), as_json=as_json)
    if context is not None and not as_json:
        note(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.")
    return ExitCode.USAGE


def _without_long_words(message: str, arguments: list[str]) -> str:
    """The message without what was typed, where that may be a key in whatever format."""
    message = without_raw_keys(message)
    for argument in arguments:
        word = argument.partition("=")[2] if argument.startswith("-") else argument
        if len(word) >= LONG_WORD:
            message = message.replace(word, "…")
    return message


def fields_of(error: ValidationError, known: Collection[str] = ()) -> list[str]:
    """What is wrong, and with which field, without what was given.

    With names of fields that are `known`, no other is told: it may be a secret in a wrong place.
    """
    told = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(map(str, each["loc"]))
        if known and where:
            name = str(each["loc"][0])
            where = name if name in known else "another field"
        message = each["msg"].removeprefix(_PYDANTIC_PREFIX)
        told.append(f"{where}: {message}" if where else message)
    return told


def _discard_output() -> None:
    """Python would try to write what is left when it ends, and complain once more."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
