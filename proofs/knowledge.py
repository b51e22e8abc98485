"""Which tests come by which line of the engine and the stores: learnt once, by running them all."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import coverage
import pytest

from proofs.mutations import Mutant

PACKAGES = (Path("keysmith/engine"), Path("keysmith/stores"))
KNOWLEDGE = Path("build/mutants")

ELSEWHERE = ("benchmarks", "cli_process", "examples", "package", "readme", "torture")
"""Tests that look at processes of their own, where no mutant is."""

MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # nosec B108
"""Where files of tests do not wait for a disk, if there is such a place."""

HASTE, HOME = 25, 75
"""Tests that come first, and of the module's own after them."""

SLOW = 1.5
"""Seconds: a test that takes longer looks at processes of their own, as a rule."""

STATEMENT = 12
"""Lines of a statement, of which not each is noted as one that a test comes by."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Which tests come by which line, and how long they take."""

    names: list[str]
    seconds: list[float]
    by_line: dict[str, dict[str, list[int]]]
    """Numbers of tests, by path and line."""

    def tests(self, mutant: Mutant, *, haste: int = HASTE) -> list[int]:
        """The tests for a mutant: the fastest first, and one of each function before any other.

        Those in files of the module's name, and of its package's, come after so many: they know
        it best. Then all files take turns.
        """
        found = self._at(mutant) or self._by_use(mutant)
        if not found:
            lines = self.by_line.get(mutant.path, {})
            found = list({test for some in lines.values() for test in some})
        seen: dict[str, int] = defaultdict(int)
        ranked = []
        for test in sorted(found, key=self.seconds.__getitem__):
            function = self.names[test].partition("[")[0]
            ranked.append((seen[function], self.seconds[test], test))
            seen[function] += 1
        fast = [test for _, seconds, test in sorted(ranked) if seconds < SLOW]
        path = Path(mutant.path)
        home = [
            test
            for noun in (path.stem.rpartition("_")[2], path.parent.name)
            for test in [t for t in fast if self.names[t].startswith(_file_of(noun))][:HOME]
        ]
        by_file: dict[str, list[int]] = defaultdict(list)
        for test in fast:
            by_file[self.names[test].partition("::")[0]].append(test)
        turns = (test for turn in zip_longest(*by_file.values()) for test in turn)
        others = [test for test in turns if test is not None]
        return list(dict.fromkeys([*fast[:haste], *home, *others]))

    def _by_use(self, mutant: Mutant) -> list[int]:
        """The tests that come by what uses the line's: a function's body, or a name elsewhere."""
        tree = ast.parse(Path(mutant.path).read_text())
        lines = _body(tree, mutant.line) or _uses(tree, mutant.line)
        known = self.by_line.get(mutant.path, {})
        return list({test for line in lines for test in known.get(str(line), [])})

    def imported(self, mutant: Mutant) -> bool:
        """Whether only an import comes by its line."""
        return self._at(mutant) == []

    def _at(self, mutant: Mutant) -> list[int] | None:
        lines = self.by_line.get(mutant.path, {})
        above = range(mutant.line, max(0, mutant.line - STATEMENT), -1)
        return next((lines[str(line)] for line in above if str(line) in lines), None)


def _file_of(noun: str) -> str:
    """How the names of the tests begin that are in files of that name, in the singular or not."""
    return f"tests/test_{noun.rstrip('s')}"


def _body(tree: ast.Module, line: int) -> set[int]:
    """The lines of the function whose parameters are on that line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.body[0].lineno, node.end_lineno or 0
            if node.lineno <= line < first:
                return set(range(first, last + 1))
    return set()


def _uses(tree: ast.Module, line: int) -> set[int]:
    """The lines that use what a statement of the module on that line gives a name."""
    lines: set[int] = set()
    seen: set[str] = set()
    waiting = [line]
    while waiting:
        for name in _named(tree, waiting.pop()) - seen:
            seen.add(name)
            used = {
                node.lineno
                for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == name
            }
            lines |= used
            waiting += used
    return lines


def _named(tree: ast.Module, line: int) -> set[str]:
    return {
        node.id
        for statement in tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        if statement.lineno <= line <= (statement.end_lineno or 0)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


class _Durations:
    """Notes how long each test takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration


def learn() -> Knowledge:
    """What is known of this state of code and tests; found out if it is not known yet."""
    kept = KNOWLEDGE / f"{_state()}.json"
    if not kept.exists():
        KNOWLEDGE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "proofs.knowledge", str(kept)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | ({} if MEMORY is None else {"TMPDIR": str(MEMORY)}),
        )
    return Knowledge(**json.loads(kept.read_text()))


def _learn(kept: Path) -> None:
    data = kept.with_suffix(".coverage")
    os.environ["COVERAGE_FILE"] = str(data)
    durations = _Durations()
    code = pytest.main(
        [
            "-q",
            "-n",
            "2",
            "-m",
            "",
            "-p",
            "no:cacheprovider",
            "--hypothesis-seed=0",
            "--cov",
            "--cov-report=",
        ]
        + ["--cov-context=test", "--cov-fail-under=0"]
        + [f"--ignore=tests/test_{name}.py" for name in ELSEWHERE],
        plugins=[durations],
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"the tests cannot be run: {code!r}")
    found = coverage.CoverageData(str(data))
    found.read()
    names = sorted(durations.seconds)
    numbers = {name: number for number, name in enumerate(names)}
    by_line: dict[str, dict[int, list[int]]] = {}
    for file in found.measured_files():
        path = Path(file).relative_to(Path.cwd())
        if path.parent in PACKAGES:
            by_line[str(path)] = {
                line: sorted(
                    {numbers[context.rpartition("|")[0]] for context in contexts if context}
                )
                for line, contexts in found.contexts_by_lineno(file).items()
            }
    seconds = [durations.seconds[name] for name in names]
    kept.write_text(json.dumps({"names": names, "seconds": seconds, "by_line": by_line}))
    data.unlink()


def _state() -> str:
    digest = hashlib.sha256()
    for folder in ("keysmith", "tests"):
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    _learn(Path(sys.argv[1]))
