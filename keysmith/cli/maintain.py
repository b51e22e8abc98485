"""`keysmith maintain`: clean-ups, and what needs somebody's attention; once, or again and again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import typer
from pydantic import TypeAdapter

from keysmith.cli.options import AsJson, DatabaseUrl, duration_option
from keysmith.cli.output import note, print_fields, print_line, print_objects
from keysmith.cli.session import open_engine
from keysmith.engine import MaintenanceReport
from keysmith.errors import StoreError
from keysmith.stores import DEFAULT_DATABASE_URL

_report: TypeAdapter[MaintenanceReport] = TypeAdapter(MaintenanceReport)

_GLANCE = 0.1
"""Seconds after which waiting looks whether it is to stop."""


def maintain(
    *,
    every: Annotated[
        timedelta | None,
        duration_option("--every", "Go on until stopped, with a pause of this length in between."),
    ] = None,
    usage_retention: Annotated[
        timedelta | None,
        duration_option("--usage-retention", "Remove usage records older than this, such as 90d."),
    ] = None,
    unused_days: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="List keys that were not used for so many days."),
    ] = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Expire keys, end grace periods, remove old usage, and list what needs attention.

    Any number of processes may do so at once: each thing is reported by one of them. With --every,
    SIGTERM or Ctrl-C end it after the round that is under way; --json then prints one document a
    line.
    """
    if every is not None and every <= timedelta(0):
        raise typer.BadParameter("must be longer than nothing", param_hint="'--every'")
    unused_for = None if unused_days is None else timedelta(days=unused_days)
    with open_engine(database_url) as engine:

        def do() -> None:
            report = engine.maintain(usage_retention=usage_retention, unused_for=unused_for)
            _print(report, as_json=as_json, in_line=every is not None)

        if every is None:
            do()
        else:
            _repeat(do, every)


def _repeat(do: Callable[[], None], every: timedelta) -> None:
    stop = _Stop()
    do()  # what fails from the beginning is told as with any command
    while not stop.asked_within(every):
        try:
            do()
        except StoreError as error:
            note(f"Error: {error} Trying again in {every}.", "red")


def _print(report: MaintenanceReport, *, as_json: bool, in_line: bool) -> None:
    document = _report.dump_python(report, mode="json", by_alias=True)
    if as_json:
        typer.echo(json.dumps(document, indent=None if in_line else 2))
        return
    print_fields(
        {name: value for name, value in document.items() if not isinstance(value, list)},
        as_json=False,
    )
    for title, keys, since in (
        ("Due for rotation", report.due_for_rotation, "rotated_at"),
        ("Unused", report.unused, "last_used_at"),
    ):
        if keys:
            print_line(f"{title}:", "bold")
            columns = ("id", "tenant_id", "name", "created_at", since)
            print_objects(keys, columns, as_json=False, empty="")


class _Stop:
    """Notes that somebody wants an end. Whoever asks twice gets it at once."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def asked_within(self, pause: timedelta) -> bool:
        """Waits for so long, or until somebody asks; whether somebody has."""
        until = time.monotonic() + pause.total_seconds()
        while not self._asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _GLANCE))
        return self._asked

    def _ask(self, number: int, _frame: object) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)
