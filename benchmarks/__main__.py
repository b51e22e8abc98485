"""`python -m benchmarks`: measures, and prints the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from benchmarks import cases, report, routes
from benchmarks.harness import Comparison, Pair, Plan, compare
from benchmarks.machine import Machine
from benchmarks.options import DATABASES, ROOT, Databases, Keys, ProcessorTime, Quick
from benchmarks.peers import NAMES as PEERS
from benchmarks.peers import compare_peer
from benchmarks.targets import ROWS, Row
from benchmarks.workshop import KEYS, Unavailable, Workshop

FULL = Plan(seconds=6, rounds=9)
QUICK = Plan(seconds=0.2, rounds=3)

CASES: dict[str, Callable[[Workshop], Pair]] = {
    "validate_warm": cases.validate_warm,
    "validate_ruled": cases.validate_ruled,
    "validate_sustained": cases.validate_sustained,
    "validate_cold": cases.validate_cold,
    "wrong_checksum": cases.wrong_checksum,
    "create_key": cases.create_key,
    "usage": cases.record_usage,
    "usage_floor": cases.usage_floor,
    "async_warm": cases.async_warm,
    "fastapi": routes.in_process,
    "fastapi_wrk": routes.behind_uvicorn,
    "fastapi_wrk_floor": routes.floor_behind_uvicorn,
    "fastapi_floor": routes.floor,
    "scale_warm": cases.scale_warm,
    "scale_cold": cases.scale_cold,
    "scale_floor": cases.scale_floor,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="Rows, by name; all by default.")] = None,
    quick: Quick = False,
    processor_time: ProcessorTime = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a row is short.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for RESULTS.md and results.json.")
    ] = None,
    databases: Databases = DATABASES,
    keys: Keys = KEYS,
) -> None:
    """Compares Keysmith with the bare things beneath it, and with its peers.

    A full run, with default settings, renews the results in the checkout; any other writes nothing
    without --output.
    """
    rows = _chosen(only)
    console = Console()
    plan = replace(QUICK if quick else FULL, processor=processor_time)
    shop = Workshop(databases, keys, _progress(console))
    machine = Machine.here()
    if machine.busy and not processor_time:
        console.print("The machine is busy: ratios will be rough. Or use --processor-time.")
    outcomes = []
    for row in rows:
        with console.status(f"{row.name} …"):
            outcomes.append(_measure(shop, row, plan))
    report.show(console, outcomes)
    if output is None and (rows, plan, keys) == (ROWS, FULL, KEYS):
        output = ROOT / "benchmarks"
    if output is not None:
        report.write(output, outcomes, plan, machine)
    if strict and report.short(outcomes):
        raise typer.Exit(1)


def _chosen(only: Iterable[str] | None) -> tuple[Row, ...]:
    """The rows of those names; each may be several, with commas between them."""
    names = {name for part in only or () for name in part.split(",")}
    unknown = names - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are only {known}.")
    return tuple(row for row in ROWS if not names or row.name in names)


def _measure(shop: Workshop, row: Row, plan: Plan) -> report.Outcome:
    try:
        with shop:
            return report.Outcome(row, _compare(shop, row.name, plan))
    except Unavailable as missing:
        return report.Outcome(row, missing=str(missing))


def _compare(shop: Workshop, name: str, plan: Plan) -> Comparison:
    if name in PEERS:
        return compare_peer(shop, name, plan)
    return compare(CASES[name](shop), plan)


def _progress(console: Console) -> Callable[[Sequence[int], str], Iterable[int]]:
    return lambda steps, what: track(steps, what, console=console, transient=True)


if __name__ == "__main__":
    app()
