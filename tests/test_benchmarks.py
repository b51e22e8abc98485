"""The benchmarks run, and say what they measured. What it was is never asserted: times drift."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks.harness import Comparison, Pair, Plan, Spread, compare
from benchmarks.peers import NAMES as PEERS
from benchmarks.report import Outcome
from benchmarks.targets import ROWS, Row, Target

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = ("--keys", "1000")


def run(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases")


def test_a_quick_run_of_some_rows(databases: Path, tmp_path: Path) -> None:
    only = ("--only", "wrong_checksum,validate_warm", "--only", "usage")
    ran = run(
        "benchmarks", "--quick", *only, *SMALL, "--databases", databases, "--output", tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["validate_warm", "wrong_checksum", "usage"]
    for row in results["rows"]:
        measured, ratio = row["measured"], row["ratio"]
        assert measured["rounds"] >= 3
        for spread in (measured["subject"], measured["bare"], measured["ratio"]):
            assert 0 < spread["q1"] <= spread["median"] <= spread["q3"]
        times = measured["ratio"]["median"]
        assert ratio == pytest.approx(1 / times if row["ratio_of"] == "rates" else times)
        assert row["met"] in (True, False)
        assert row["missing"] is None
    short = [row["name"] for row in results["rows"] if not row["met"]]
    table = (tmp_path / "RESULTS.md").read_text()
    for text in (table, ran.stdout):
        assert re.findall(r"^- (\w+): ", text, re.MULTILINE) == short
    assert table.count(" µs | ") == 4
    for told in ("processor", "cores", "python", "sqlite", "system"):
        assert results["machine"][told]
    assert str(ROOT) not in table + json.dumps(results)
    assert not [*databases.glob("case-*"), *databases.glob("unfinished-*")]


def test_strict_fails_for_what_falls_short(
    databases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("wrong_checksum", "w", "a", Target(1e9))
    options = {"quick": True, "strict": True, "databases": databases, "keys": 1000}
    monkeypatch.setattr(program, "ROWS", (row,))
    program.main(["wrong_checksum"], output=tmp_path, **options)
    monkeypatch.setattr(program, "ROWS", (Row("wrong_checksum", "w", "a", Target(0)),))
    with pytest.raises(program.typer.Exit) as stopped:
        program.main(["wrong_checksum"], output=tmp_path, **options)
    assert stopped.value.exit_code == 1


def test_unknown_rows_are_named() -> None:
    ran = run("benchmarks", "--only", "wrong")
    assert ran.returncode == 2
    assert "wrong_checksum" in ran.stderr


def test_the_stages_add_up(databases: Path, tmp_path: Path) -> None:
    ran = run(
        "benchmarks.stages", "--quick", "--databases", databases, "--output", tmp_path, *SMALL
    )
    assert ran.returncode == 0, ran.stderr
    profile = (tmp_path / "PROFILE.md").read_text()
    for text in (profile, ran.stdout):
        assert len(re.findall(r"the whole .* 100%", text)) == 6
    ways = profile.split("\n## ")[1:]
    for way in ways[:-1]:
        rows = re.findall(r"^\| (.+?) \| (-?[0-9.]+) \| ", way, re.MULTILINE)
        *stages, (_, whole) = [(name, float(cost)) for name, cost in rows]
        parts = sum(cost for name, cost in stages if not name.startswith("…"))
        assert parts == pytest.approx(whole, abs=0.1), way


def test_every_row_is_measured_by_somebody() -> None:
    assert {row.name for row in ROWS} == program.CASES.keys() | set(PEERS)


class Steady:
    """A side that takes as long as it is told, whatever the clock says."""

    def __init__(self, seconds: float, log: list[float]) -> None:
        self.seconds, self.log = seconds, log

    def time(self, operations: int, clock: object) -> float:
        self.log.append(self.seconds)
        return self.seconds


def test_sides_take_turns_and_the_ratio_is_theirs() -> None:
    log: list[float] = []
    result = compare(
        Pair(Steady(2e-3, log), Steady(1e-3, log), batch=1e-3), Plan(seconds=0, rounds=4)
    )
    assert log[-8:] == 2 * [1e-3, 2e-3, 2e-3, 1e-3]
    assert result.rounds == 4
    assert result.ratio == Spread(2, 2, 2)
    assert result.subject.median == pytest.approx(2000)
    assert result.overall == pytest.approx(2)
    assert Comparison.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(("times", "met"), [(0.5, True), (2.0, True), (2.5, False)])
def test_a_bound_from_below_is_one_of_rates(times: float, met: bool) -> None:
    spread = Spread(times, times, times)
    comparison = Comparison(spread, spread, spread, times, 3)
    row = Row("r", "w", "a", Target(0.5, from_below=True), rates=True)
    assert Outcome(row, comparison).met is met
    assert Outcome(row, comparison).ratio == Spread(1 / times, 1 / times, 1 / times)


def test_what_was_not_measured_neither_meets_nor_misses() -> None:
    outcome = Outcome(Row("r", "w", "a", Target(1)), missing="no such thing")
    assert outcome.met is None
    assert outcome.cells[-1] == "not available: no such thing"
