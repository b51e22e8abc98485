"""Runs the tests that come by a mutant, each mutant in a process of its own, until one fails.

All processes are forked from one that has imported what they need. What is outside of functions is
changed before Keysmith is imported; else the process has all tests collected already, and functions
get the code of the mutant. A test that fails is run once without a mutant, and does not count if it
fails there, too.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import pytest

from proofs.alterations import Codes, Finder, alter, changed, functions
from proofs.knowledge import MEMORY, Knowledge, learn
from proofs.mutations import Mutant

HEAVY = (
    *("alembic.command", "alembic.autogenerate", "ddsketch", "fastapi.testclient", "httpx"),
    *("hypothesis", "limits", "prometheus_client", "rich.progress", "sqlalchemy.dialects.sqlite"),
    *("sqlmodel", "typeid", "typer.testing", "uvicorn", "fastapi.openapi.utils", "websockets"),
)
"""What tests import: imported once, before the first child."""

QUIET = (
    *("-q", "-x", "-s", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"),
    *("--tb=no", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
)

MANY, FEW, FILES = 200, 50, 6
"""Tests for a mutant; where they must be collected first, those run at a time, and their files."""

UNREACHED = 77
"""The exit code of a child that found no function to change."""

STILL, BUSY, LONG = 20.0, 45.0, 120.0
"""Seconds: a mutant hangs if it hardly works for so long, works so long, or takes so long."""


@dataclass(frozen=True)
class Job:
    """What a child is to do."""

    mutant: Mutant
    tests: list[str]
    codes: Codes
    """Of the functions that are changed."""
    doubted: str = ""
    """A test that has failed: to be run without the mutant."""


Way = Callable[[Job, list[str], Path], int]
"""Runs tests, in a child, with a folder for them; returns an exit code."""

Note = Callable[[Mutant, str], None]


def run(
    chosen: Sequence[Mutant], *, workers: int = 2, note: Note | None = None
) -> dict[Mutant, str]:
    """What became of each mutant: "killed", "survived" or "hung".

    `note` is told as soon as it is known.
    """
    knowledge = learn()
    _prepare()
    jobs = [_job(mutant, knowledge) for mutant in chosen]
    fresh = [job for job in jobs if not job.codes]
    hunt = _Hunt(workers, note, len(jobs))
    hunt.run(fresh, _collecting, FEW)
    collected = _Collected(lambda way: hunt.run([job for job in jobs if job.codes], way, MANY))
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        ended = pytest.main([*QUIET, "tests"], plugins=[collected])
    assert collected.done, f"the tests cannot be collected: {ended!r}"
    return hunt.results


def _job(mutant: Mutant, knowledge: Knowledge) -> Job:
    codes = {} if knowledge.imported(mutant) else changed(mutant)
    found = knowledge.tests(mutant) if codes else knowledge.tests(mutant, haste=0)
    tests = [knowledge.names[test] for test in found[:MANY]]
    return Job(mutant, tests if codes else _of_few_files(tests), codes)


def _of_few_files(tests: list[str]) -> list[str]:
    """Those of the files that come first: to collect them takes longer than to run them."""
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))[:FILES]
    return [test for test in tests if test.partition("::")[0] in files]


def _prepare() -> None:
    """Imports what children need, and nothing of Keysmith."""
    for name in HEAVY:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "keysmith"]:
        del sys.modules[name]


# ---------------------------------------------------------------------------- in a child


class _Witness:
    """Notes which test failed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            (self._folder / "witness").write_text(report.nodeid)


def _collecting(job: Job, tests: list[str], folder: Path) -> int:
    """Has pytest find the tests, after the mutant was put in place."""
    if not job.doubted:
        sys.meta_path.insert(0, Finder(job.mutant))
    return int(pytest.main([*QUIET, f"--basetemp={folder}/t", *tests], plugins=[_Witness(folder)]))


class _Collected:
    """In the place of running the tests that pytest has found, lets children run some of them."""

    def __init__(self, work: Callable[[Way], None]) -> None:
        self._work = work
        self.done = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert session.testsfailed == 0
        self._session = session
        self._items = {item.nodeid: item for item in session.items}
        self._functions = functions()
        gc.freeze()  # or children would copy all of it, to count references
        self._work(self._way)
        self.done = True
        return True

    def _way(self, job: Job, tests: list[str], folder: Path) -> int:
        if not job.doubted and not alter(self._functions, job.codes):
            return UNREACHED
        config = self._session.config
        config.option.basetemp = folder / "t"
        config._tmp_path_factory = pytest.TempPathFactory.from_config(config, _ispytest=True)  # type: ignore[attr-defined]  # noqa: SLF001
        config.pluginmanager.register(_Witness(folder))
        items = [self._items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._session.testsfailed:
                return 1
        return 0


class _Child:
    """A process that runs some tests of a job."""

    def __init__(self, job: Job, tests: list[str], way: Way) -> None:
        self.job = job
        self._folder = Path(tempfile.mkdtemp(prefix="keysmith-mutant-", dir=MEMORY))
        self._began = self._moved = time.monotonic()
        self._worked = 0.0
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(self._run(tests, way))

    def _run(self, tests: list[str], way: Way) -> int:
        os.setsid()
        with open(os.devnull, "r+") as nothing:
            for stream in (0, 1, 2):
                os.dup2(nothing.fileno(), stream)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(self._folder)
        try:
            return way(self.job, tests, self._folder)
        except BaseException:  # noqa: BLE001  also what ends a process
            return 1

    def ended(self) -> tuple[str, str] | None:
        """How it went, and which test failed; `None` while it goes on."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0 and not self._hangs():
            return None
        witness = self._folder / "witness"
        test = witness.read_text() if witness.exists() else ""
        self.stop(reap=pid == 0)
        if pid == 0:
            return "hung", test
        code = os.waitstatus_to_exitcode(status)
        assert code != UNREACHED, f"not there: {self.job.mutant}"
        return "survived" if code == 0 else "killed", test

    def stop(self, *, reap: bool = True) -> None:
        """Ends it, and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if reap:
            os.waitpid(self._pid, 0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hangs(self) -> bool:
        """By the time of the processor that it has had: on a busy machine all takes long."""
        now = time.monotonic()
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        worked = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        if worked > self._worked + STILL / 20:
            self._worked, self._moved = worked, now
        return worked > BUSY or now > min(self._moved + STILL, self._began + LONG)


# ---------------------------------------------------------------------------- all children


class _Hunt:
    """Has children do jobs, a few at once."""

    def __init__(self, workers: int, note: Note | None, size: int) -> None:
        self._workers, self._note, self._size = workers, note, size
        self.results: dict[Mutant, str] = {}
        self._sound: set[str] = set()
        self._unsound: set[str] = set()

    def run(self, jobs: Sequence[Job], way: Way, at_once: int) -> None:
        """Does these, running so many tests at once."""
        waiting = list(reversed(jobs))
        running: list[_Child] = []
        try:
            while waiting or running:
                while waiting and len(running) < self._workers:
                    job = waiting.pop()
                    tests = [job.doubted] if job.doubted else job.tests[:at_once]
                    running.append(_Child(job, tests, way))
                time.sleep(0.02)
                for child in list(running):
                    if (how := child.ended()) is not None:
                        running.remove(child)
                        waiting += self._after(child.job, *how, at_once)
        finally:
            for child in running:
                child.stop()

    def _after(self, job: Job, result: str, test: str, at_once: int) -> list[Job]:
        """What is still to be done."""
        if job.doubted:
            if result == "survived":
                self._sound.add(job.doubted)
                self._settle(job.mutant, "killed")
                return []
            self._unsound.add(job.doubted)
            tests = [each for each in job.tests if each not in self._unsound]
            return [replace(job, tests=tests, doubted="")]
        if result == "killed" and test and test not in self._sound:
            return [replace(job, doubted=test)]
        if result == "survived" and job.tests[at_once:]:
            return [replace(job, tests=job.tests[at_once:])]
        self._settle(job.mutant, result)
        return []

    def _settle(self, mutant: Mutant, result: str) -> None:
        self.results[mutant] = result
        if self._note is not None:
            self._note(mutant, result)
        _show(sys.stderr, f"{len(self.results)}/{self._size} {result}: {mutant}")


def _show(stream: TextIO, line: str) -> None:
    if stream.isatty():
        stream.write(f"\r\x1b[K{line[:110]}")
    elif "survived" in line or "00/" in line:
        stream.write(f"{line}\n")
    stream.flush()
