"""The table: for people on a terminal and in Markdown, for programs as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Comparison, Plan, Spread
from benchmarks.machine import Machine
from benchmarks.targets import Row

RESULTS = "RESULTS.md"
JSON_RESULTS = "results.json"

_COLUMNS = ("", "takes", "against", "takes", "ratio", "quartiles", "target", "")
_RIGHT = (1, 3, 4, 5, 6)

_EXPLANATION = """\
Two ways of doing a thing take turns in batches of some milliseconds. Times are medians of batches;
the ratio is the median of the ratios within each round, between its quartiles. Where rates are
shown, the ratio is that of the rates. Absolute times drift from machine to machine and from hour to
hour; ratios within a run hardly do. `make bench` makes this table; [PROFILE.md](PROFILE.md) shows
where the time goes."""

_PROCESSOR_TIME = " Times are the processor's, without any waiting."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: a comparison, or why there is none."""

    row: Row
    comparison: Comparison | None = None
    missing: str = ""

    @property
    def ratio(self) -> Spread | None:
        """The ratio as the row gives it: of times, or of rates."""
        if self.comparison is None:
            return None
        times = self.comparison.ratio
        return Spread(1 / times.q3, 1 / times.median, 1 / times.q1) if self.row.rates else times

    @property
    def met(self) -> bool | None:
        """Whether the target is; `None` where there is no target, or nothing was measured."""
        if self.ratio is None or self.row.target is None:
            return None
        return self.row.target.met(self.ratio.median)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        row, comparison, ratio = self.row, self.comparison, self.ratio
        target = "" if row.target is None else str(row.target)
        if comparison is None or ratio is None:
            return (row.work, "", row.against, "", "", "", target, f"not available: {self.missing}")
        verdict = {True: "met", False: "falls short", None: ""}[self.met]
        return (
            row.work,
            _amount(comparison.subject.median, row),
            row.against,
            _amount(comparison.bare.median, row),
            _number(ratio.median),
            f"{_number(ratio.q1)} – {_number(ratio.q3)}",
            target,
            verdict,
        )

    def to_json(self) -> dict[str, Any]:
        """The row for programs. Times are microseconds."""
        target = self.row.target
        return {
            "name": self.row.name,
            "work": self.row.work,
            "against": self.row.against,
            "ratio_of": "rates" if self.row.rates else "times",
            "ratio": None if self.ratio is None else self.ratio.median,
            "target": None if target is None else str(target),
            "met": self.met,
            "missing": self.missing or None,
            "measured": None if self.comparison is None else self.comparison.to_json(),
        }


def short(outcomes: list[Outcome]) -> list[Outcome]:
    """Those that fall short of their target."""
    return [outcome for outcome in outcomes if outcome.met is False]


def show(console: Console, outcomes: list[Outcome]) -> None:
    """The table on a terminal, by the names that `--only` takes, and what falls short."""
    table = Table(
        "row", "takes", "bare", "ratio", "quartiles", "target", box=SIMPLE, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for outcome in outcomes:
        _, takes, _, bare, ratio, quartiles, target, _ = outcome.cells
        style = {True: "green", False: "red", None: None}[outcome.met]
        table.add_row(outcome.row.name, takes, bare, ratio, quartiles, target, style=style)
    console.print(table)
    for outcome in outcomes:
        if outcome.missing:
            console.print(f"{outcome.row.name} is not available: {outcome.missing}")
    console.print(*_verdict(outcomes), sep="\n", highlight=False)


def write(folder: Path, outcomes: list[Outcome], plan: Plan, machine: Machine) -> None:
    """Writes `RESULTS.md` and `results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(_markdown(outcomes, plan, machine))
    data = {
        "machine": asdict(machine),
        "plan": asdict(plan),
        "rows": [outcome.to_json() for outcome in outcomes],
    }
    (folder / JSON_RESULTS).write_text(json.dumps(data, indent=2) + "\n")


def _markdown(outcomes: list[Outcome], plan: Plan, machine: Machine) -> str:
    rules = ["-:" if place in _RIGHT else "-" for place in range(len(_COLUMNS))]
    table = [_COLUMNS, rules, *(outcome.cells for outcome in outcomes)]
    return "\n".join(
        [
            "# How fast",
            "",
            _EXPLANATION,
            "",
            *(f"| {' | '.join(cells)} |" for cells in table),
            "",
            *_verdict(outcomes),
            "",
            f"Measured on {machine}." + (_PROCESSOR_TIME if plan.processor else ""),
            "",
        ]
    )


def _verdict(outcomes: list[Outcome]) -> list[str]:
    failing = short(outcomes)
    if not failing:
        return ["Nothing that was measured falls short of its target."]
    return [
        "Short of the target:",
        *(
            f"- {each.row.name}: {_number(each.ratio.median)}, to be {each.row.target}"
            + (f"; {each.row.why}" if each.row.why else "")
            for each in failing
            if each.ratio
        ),
    ]


def _amount(microseconds: float, row: Row) -> str:
    """A time, or how many that makes in a second."""
    if row.rates:
        return f"{1e6 / microseconds:,.0f}/s"
    return f"{_number(microseconds)} µs"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
