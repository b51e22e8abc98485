"""Small changes to the engine and the stores, each of which some test must notice: `make mutants`.

Each mutant runs in a child of a process that has imported everything, with the tests that come by
the changed line, the fastest first, until one fails. In the child, the functions of the module get
the code of the mutant; what is no part of a function is changed before Keysmith is imported. Which
tests come by which line is learnt once, from a run with coverage contexts, and kept under build/.
"""

from __future__ import annotations

import argparse
import ast
import gc
import html
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import CO_OPTIMIZED
from math import sqrt
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from proofs.knowledge import KNOWLEDGE, MEMORY, PACKAGES, Knowledge, learn
from proofs.mutations import Mutant, mutants

AT_LEAST = 0.9
"""The share of small mistakes that tests notice."""

JUDGED = Path(__file__).with_name("MUTANTS.md")
"""Tells of changes that are no mistakes, as nobody could tell the difference, or hardly."""

HEAVY = (
    *("alembic.command", "alembic.autogenerate", "ddsketch", "fastapi.testclient", "httpx"),
    *("hypothesis", "limits", "prometheus_client", "rich.progress", "sqlalchemy.dialects.sqlite"),
    *("sqlmodel", "typeid", "typer.testing", "uvicorn", "fastapi.openapi.utils", "websockets"),
)
"""What tests import: imported once, before the first child."""

QUIET = (
    *("-q", "-x", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--tb=no"),
    *("--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
)

FEW, MANY = 50, 200
"""Tests for a mutant at first, and in all."""

UNREACHED = 77
"""The exit code of a child that found no function to change."""

STILL, BUSY, LONG = 30.0, 45.0, 300.0
"""A mutant hangs if it does nothing for so many seconds, works for so many, or takes so many."""


# ---------------------------------------------------------------------------- one mutant


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module that was changed."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002  so it is called
        return compile(self._tree, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, *_: object, **__: object
    ) -> importlib.machinery.ModuleSpec | None:
        """Only for the one module."""
        if fullname != self._mutant.module:
            return None
        file = str(Path(self._mutant.path).absolute())
        loader = _Loader(fullname, file, self._mutant.tree())
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


Codes = dict[tuple[str, int], CodeType]


def _functions(tree: ast.Module, file: str) -> Codes:
    """The code of all functions, by name and line."""
    found: Codes = {}
    waiting = [compile(tree, file, "exec", dont_inherit=True)]
    while waiting:
        for code in waiting.pop().co_consts:
            if isinstance(code, CodeType):
                waiting.append(code)
                found[code.co_qualname, code.co_firstlineno] = code
    return found


def changed(mutant: Mutant) -> Codes:
    """The code of the functions that a mutant changes; none if it changes what is outside."""
    file = str(Path(mutant.path).absolute())
    before = _functions(ast.parse(Path(mutant.path).read_text()), file)
    after = _functions(mutant.tree(), file)
    if before.keys() != after.keys():
        return {}
    return {
        place: code
        for place, code in after.items()
        if code.co_flags & CO_OPTIMIZED and code != before[place]
    }


def _alter(codes: Codes, file: str) -> bool:
    """Gives the functions that there are this code; whether there were any."""
    altered = False
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == file:
            code = codes.get((thing.__code__.co_qualname, thing.__code__.co_firstlineno))
            if code is not None and len(code.co_freevars) == len(thing.__code__.co_freevars):
                thing.__code__ = code
                altered = True
    return altered


class Child:
    """A process that runs tests against a mutant."""

    def __init__(self, mutant: Mutant, tests: list[str]) -> None:
        self.mutant, self.tests = mutant, tests
        self._folder = tempfile.mkdtemp(prefix="keysmith-mutant-", dir=MEMORY)
        self._began = self._moved = time.monotonic()
        self._worked = 0
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run())

    def _run(self) -> int:
        os.setsid()
        with open(os.devnull, "r+") as nothing:
            for stream in (0, 1, 2):
                os.dup2(nothing.fileno(), stream)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = self._folder
        if self.mutant.module in sys.modules:
            if not _alter(changed(self.mutant), str(Path(self.mutant.path).absolute())):
                return UNREACHED
        else:
            sys.meta_path.insert(0, _Finder(self.mutant))
        try:
            return int(pytest.main([*QUIET, f"--basetemp={self._folder}/t", *self.tests]))
        except BaseException:  # noqa: BLE001  also what ends a process
            return 1

    def ended(self) -> str | None:
        """How it went: "killed", "survived" or "hung"; `None` while it goes on."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and not self._hangs():
            return None
        with suppress(ProcessLookupError):  # and whatever it has started
            os.killpg(self.pid, signal.SIGKILL)
        if pid == 0:
            os.waitpid(self.pid, 0)
        shutil.rmtree(self._folder, ignore_errors=True)
        if pid == 0:
            return "hung"
        assert os.waitstatus_to_exitcode(status) != UNREACHED, f"not there: {self.mutant}"
        return "survived" if status == 0 else "killed"

    def _hangs(self) -> bool:
        """By the time of the processor that it has had: on a busy machine all takes long."""
        now = time.monotonic()
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        worked = sum(map(int, fields[11:15]))
        if worked != self._worked:
            self._worked, self._moved = worked, now
        busy = worked > BUSY * os.sysconf("SC_CLK_TCK")
        return busy or now > min(self._moved + STILL, self._began + LONG)


# ---------------------------------------------------------------------------- all of them


def run(
    chosen: Sequence[Mutant],
    *,
    workers: int = 2,
    many: int = MANY,
    note: Callable[[Mutant, str], None] | None = None,
) -> dict[Mutant, str]:
    """What became of each mutant; `note` is told as soon as it is known."""
    knowledge = learn()
    _prepare()
    outside = [each for each in chosen if knowledge.imported(each) or not changed(each)]
    within = sorted(set(chosen) - set(outside), key=chosen.index)
    results = _run(outside, knowledge, workers, many, note)
    # Those tests that are looked at in children, and with them all of Keysmith.
    assert pytest.main([*QUIET, "--collect-only", "tests"]) == 0
    return results | _run(within, knowledge, workers, many, note)


def _run(
    chosen: Sequence[Mutant],
    knowledge: Knowledge,
    workers: int,
    many: int,
    note: Callable[[Mutant, str], None] | None,
) -> dict[Mutant, str]:
    waiting: list[tuple[Mutant, list[int] | None]] = [(each, None) for each in reversed(chosen)]
    running: list[tuple[Child, list[int]]] = []
    results: dict[Mutant, str] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant, tests = waiting.pop()
            tests = tests or knowledge.tests(mutant)[:many]
            names = [knowledge.names[test] for test in tests[:FEW]]
            running.append((Child(mutant, names), tests[FEW:]))
        time.sleep(0.05)
        for child, more in list(running):
            result = child.ended()
            if result is None:
                continue
            running.remove((child, more))
            if result == "survived" and more:
                waiting.append((child.mutant, more))
                continue
            results[child.mutant] = result
            if note is not None:
                note(child.mutant, result)
            _show(f"{len(results)}/{len(chosen)} {result}: {child.mutant}")
    return results


def _prepare() -> None:
    """Imports what children need, and nothing of Keysmith."""
    for name in HEAVY:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "keysmith"]:
        del sys.modules[name]


def _show(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line[:110]}")
    elif "survived" in line or "00/" in line:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def every() -> list[Mutant]:
    """All mutants there are."""
    return [m for folder in PACKAGES for path in sorted(folder.glob("*.py")) for m in mutants(path)]


def sample(size: int, seed: int) -> list[Mutant]:
    """So many of them, by chance."""
    found = every()
    return random.Random(seed).sample(found, min(size, len(found)))


def judged() -> set[tuple[str, str, str]]:
    """Path, place and change of those mutants that are no mistakes."""
    rows = re.findall(r"^\| `(\S+)`(?: `(\S+)`)? \| `(.+)` \| ", JUDGED.read_text(), re.MULTILINE)
    return {(f"keysmith/{path}", place, html.unescape(what)) for path, place, what in rows}


def figure(results: dict[Mutant, str], seed: int | None) -> str:
    """The share that was noticed, in a sentence. Raises `AssertionError` if it is too small.

    Of a sample that is if hardly any of so many would be as bad by chance.
    """
    harmless = judged()
    mistakes = {m: how for m, how in results.items() if (m.path, m.place, m.what) not in harmless}
    survivors = sorted(mutant for mutant, how in mistakes.items() if how == "survived")
    noticed = 1 - len(survivors) / len(mistakes)
    where = "" if seed is None else f" (a sample, seed {seed})"
    told = f"{noticed:.1%} of {len(mistakes):,} mutants were noticed{where}"
    chance = 0.0 if seed is None else 2 * sqrt(AT_LEAST * (1 - AT_LEAST) / len(mistakes))
    assert noticed >= AT_LEAST - chance, "\n".join([told, *map(str, survivors)])
    return told


def main() -> None:
    """All of them, or a sample; survivors go to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="try so many, by chance")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", help="those of paths that have this in them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--results",
        type=Path,
        default=KNOWLEDGE / "results.txt",
        help="where to note what became of each; those noted already are not tried again",
    )
    asked: Any = parser.parse_args()
    chosen = sample(asked.sample or sys.maxsize, asked.seed)
    chosen = [mutant for mutant in chosen if asked.only is None or asked.only in mutant.path]
    results = _noted(asked.results, chosen)
    chosen = [mutant for mutant in chosen if mutant not in results]
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    with asked.results.open("a", buffering=1) as file:
        results |= run(
            chosen,
            workers=asked.workers,
            note=lambda mutant, result: print(f"{result}\t{mutant}", file=file),
        )
    print(figure(results, asked.seed if asked.sample else None))


def _noted(path: Path, chosen: Sequence[Mutant]) -> dict[Mutant, str]:
    """What a run that was stopped has noted already."""
    if not path.exists():
        return {}
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    by_text = {text: result for result, text in rows}
    return {mutant: by_text[str(mutant)] for mutant in chosen if str(mutant) in by_text}


if __name__ == "__main__":
    main()
