"""Results, printed for people or as one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 100_000
"""Wider than any row: what is piped is read by programs, or searched for an ID."""


def show_any_text() -> None:
    """Lets what the output's encoding cannot express come out escaped, and not as an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def dump(model: BaseModel) -> dict[str, Any]:
    """The model as JSON has it: by alias, durations and times in ISO 8601."""
    return model.model_dump(mode="json", by_alias=True)


def print_json(document: Any, *, err: bool = False) -> None:
    """Prints one JSON document, in ASCII so that no terminal's encoding can break it."""
    typer.echo(json.dumps(document, indent=2), err=err)


def print_line(text: str | Text, style: str = "") -> None:
    """Prints one line; it is never wrapped or cut."""
    _console().print(text if isinstance(text, Text) else Text(text, style), soft_wrap=True)


def note(text: str, style: str = "") -> None:
    """Tells people something that is not part of the result."""
    _console(stderr=True).print(Text(text, style), soft_wrap=True)


def print_fields(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one object, a field a line."""
    if as_json:
        print_json(fields)
        return
    width = max(len(_heading(name)) for name in fields) + 2
    for name, value in fields.items():
        # The further lines of a text must not pass for fields.
        text = _readable(value).replace("\n", "\n" + " " * width)
        print_line(Text.assemble((_heading(name).ljust(width), "bold"), text))


def confirm(question: str) -> None:
    """Asks, and ends the command unless the answer is yes."""
    with redirect_stdout(sys.stderr):  # what is asked is no part of the result
        typer.confirm(question, abort=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with what is done and what there is to do."""
    from rich.progress import Progress  # noqa: PLC0415  no other command needs it

    console = _console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_deleted(object_id: str, *, as_json: bool) -> None:
    """Tells that an object is gone."""
    if as_json:
        print_json({"deleted": object_id})
    else:
        print_line(f"Deleted {object_id}.")


def print_objects(
    objects: Sequence[BaseModel], columns: Sequence[str], *, as_json: bool, empty: str
) -> None:
    """Prints a list of objects: all of each as JSON, or a table of these columns."""
    documents = [dump(each) for each in objects]
    if as_json:
        print_json(documents)
    elif documents:
        _print_table(documents, columns)
    else:
        note(empty)


def print_table(table: Table) -> None:
    """Prints a table."""
    _console().print(table)


def _print_table(documents: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(_heading(name), overflow="fold", no_wrap=name == "id")
    for document in documents:
        table.add_row(*(Text(_readable(document[name])) for name in columns))
    print_table(table)


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    if terminal:
        return Console(stderr=stderr, highlight=False)
    # Whatever FORCE_COLOR says: a raw key with colour codes around it would be no key.
    return Console(stderr=stderr, highlight=False, force_terminal=False, width=_PIPED_WIDTH)


def _heading(name: str) -> str:
    return "ID" if name == "id" else name.removesuffix("_id").replace("_", " ").capitalize()


def _readable(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
