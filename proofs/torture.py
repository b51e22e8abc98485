"""Every trial that holds Keysmith to what it promises, one after the other: `make torture`.

A trial is a module beside this one with `PROMISE`, one sentence; `BROKEN`, what was broken on
purpose to see it fail; `trial(quick)`, which gives a figure or raises `AssertionError`; and
`main()`, which prints the figure. Each runs in a process of its own: one that hangs fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: make torture ARGS=--write -->", "<!-- end of figures -->"

TRIALS = {
    "crash": 400,
    "contention": 200,
    "soak": 90,
    "failures": 240,
    "clock": 240,
    "forks": 240,
    "secrets": 240,
    "tenants": 240,
    "fuzz": 600,
    "supply": 300,
    "mistakes": 1200,
}
"""In the order in which they run, and the seconds after which one hangs, on a busy machine, too."""


_ERROR = re.compile(r"[A-Za-z.]+(Error|Exception)\b")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    trial: str
    figure: str
    seconds: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the promise was kept."""
        return not self.failure

    @property
    def told(self) -> str:
        """The figure, or the line that says what went wrong."""
        if self.passed:
            return self.figure
        lines = self.failure.strip().splitlines()
        return next(filter(_ERROR.match, reversed(lines)), lines[-1])

    @property
    def row(self) -> str:
        """The row of the document."""
        module = import_module(f"proofs.{self.trial}")
        cells = (f"`{self.trial}`", module.PROMISE, self.figure, module.BROKEN)
        return f"| {' | '.join(cells)} |"


def main(
    *,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="These trials; repeatable.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="A file for the outcomes.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Renew the figures of docs/reliability.md.")
    ] = False,
) -> None:
    """Runs the trials, and ends with exit code 1 if a promise was broken."""
    assert_asserts()
    console = Console()
    outcomes = []
    for name in _chosen(only):
        with console.status(f"{name}: {import_module(f'proofs.{name}').PROMISE}"):
            outcome = run(name, f"from proofs.{name} import main; main()", TRIALS[name])
        outcomes.append(outcome)
        if not console.is_terminal or not outcome.passed:
            _tell(outcome)
    if console.is_terminal:
        console.print(_table(outcomes))
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} trials in {total:.0f} s")
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)
    if write:
        renew(DOCUMENT, outcomes)


def assert_asserts() -> None:
    """Raises `typer.BadParameter` where Python leaves assertions out, and so all verdicts."""
    if not __debug__:
        raise typer.BadParameter("Trials assert: run them without -O and PYTHONOPTIMIZE.")


def run(name: str, script: str, limit: float) -> Outcome:
    """Runs a trial in a process of its own, of which nothing is left afterwards."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        shown, failure = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        failure = f"{process.communicate()[1]}\nIt did not end within {limit:g} s."
        return Outcome(name, "", time.monotonic() - began, failure)
    finally:
        _end(process)
    figure = shown.strip().rpartition("\n")[2]
    if process.returncode:
        failure = failure.strip() or f"It ended with exit code {process.returncode}."
    elif not figure:
        failure = "It printed no figure."
    else:
        failure = ""
    return Outcome(name, figure, time.monotonic() - began, failure)


def renew(document: Path, outcomes: Iterable[Outcome]) -> None:
    """Puts the figures into the document; those of trials that did not run stay."""
    before, _, rest = document.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows |= {outcome.trial: outcome.row for outcome in outcomes}
    lines = [
        BEGIN,
        "| trial | promise | figure | broken on purpose, to see it fail |",
        "|---|---|---|---|",
        *(rows[name] for name in TRIALS if name in rows),
        END,
    ]
    document.write_text(before + "\n".join(lines) + after)


def _chosen(only: list[str] | None) -> list[str]:
    unknown = set(only or ()) - set(TRIALS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(TRIALS)}.")
    return [name for name in TRIALS if not only or name in only]


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tell(outcome: Outcome) -> None:
    if not outcome.passed:
        print(outcome.failure)
    verdict = "kept" if outcome.passed else "BROKEN"
    print(f"{verdict} {outcome.trial} ({outcome.seconds:.0f} s): {outcome.told}", flush=True)


def _table(outcomes: Iterable[Outcome]) -> Table:
    table = Table("trial", "", "figure", box=SIMPLE)
    table.add_column("seconds", justify="right")
    for outcome in outcomes:
        verdict = "[green]kept[/]" if outcome.passed else "[red]broken[/]"
        table.add_row(outcome.trial, verdict, outcome.told, f"{outcome.seconds:.0f}")
    return table


if __name__ == "__main__":
    # As Ctrl-C does: whoever ends this ends the trial that is running, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    typer.run(main)
