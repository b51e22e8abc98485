"""The trials in brief, and the runner that tells whether a promise was kept."""

from __future__ import annotations

import json
from base64 import b64encode
from importlib import import_module
from pathlib import Path

import pytest
import typer

from keysmith.raw_keys import mask
from proofs import mutants, torture
from proofs.searching import LONG, Search

KEPT = "print('on the way'); print('1 of 1')"
BROKEN = "raise AssertionError('a key came back to life')"
LATER = "import atexit, sys; atexit.register(print, 'and later', file=sys.stderr)"
STUCK = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.mark.parametrize("name", list(torture.TRIALS))
def test_in_brief(name: str) -> None:
    module = import_module(f"proofs.{name}")
    assert module.PROMISE.endswith(".")
    assert "|" not in module.PROMISE + module.BROKEN
    assert module.trial(quick=True)


def test_what_is_judged_to_be_no_mistake_is_still_there() -> None:
    every = {(mutant.path, mutant.place, mutant.what) for mutant in mutants.every()}
    assert mutants.judged() - every == set()
    assert mutants.judged()


RAW_KEY = "sk_live_HdMyMvRqSheCbZXMs1DvP1hIQSRKOpLXB7UwapM2eq8233Jvu"


@pytest.mark.parametrize(
    "shown",
    [
        RAW_KEY.encode(),
        RAW_KEY[-15:].encode(),
        RAW_KEY[20:35].encode(),
        RAW_KEY.encode().hex().encode(),
        b64encode(f"user:{RAW_KEY}".encode()),
        b64encode(RAW_KEY[:30].encode()),
        repr(bytes(range(32))).encode(),
        bytes(range(32)),
        bytes(range(32)).hex()[:31].encode(),
    ],
)
def test_secrets_are_found_in_part_and_wherever_they_are(shown: bytes) -> None:
    body = RAW_KEY.rpartition("_")[2].encode()
    search = Search(("a raw key", [body]), ("a hash", [bytes(range(32))]))
    search.refuse("a log", f"nothing but a mask: {mask(RAW_KEY)}".encode())
    for before in range(LONG):
        with pytest.raises(AssertionError, match="is in a log: "):
            search.refuse("a log", b"?" * before + shown + b"?" * LONG)


def test_the_last_line_of_a_trial_is_its_figure() -> None:
    outcome = torture.run("kept", KEPT, 120)
    assert outcome.passed
    assert outcome.told == "1 of 1"


@pytest.mark.parametrize(
    ("script", "limit", "told"),
    [
        (BROKEN, 120, "AssertionError: a key came back to life"),
        (f"{LATER}; {BROKEN}", 120, "AssertionError: a key came back to life"),
        ("import os; os._exit(3)", 120, "It ended with exit code 3."),
        ("pass", 120, "It printed no figure."),
        (STUCK, 0.5, "It did not end within 0.5 s."),
    ],
)
def test_what_fails_is_told(script: str, limit: float, told: str) -> None:
    outcome = torture.run("broken", script, limit)
    assert not outcome.passed
    assert outcome.told == told


def test_a_broken_promise_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scripts = torture.run, [KEPT, BROKEN, KEPT, KEPT]
    monkeypatch.setattr(torture, "TRIALS", {"crash": 120, "contention": 120})
    monkeypatch.setattr(torture, "run", lambda name, _, limit: run(name, scripts.pop(0), limit))
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{torture.BEGIN}\n{torture.END}\nafter\n")
    monkeypatch.setattr(torture, "DOCUMENT", document)
    with pytest.raises(typer.Exit) as ended:
        torture.main(write=True, json_path=tmp_path / "outcomes.json")
    assert ended.value.exit_code == 1
    found = json.loads((tmp_path / "outcomes.json").read_text())
    assert [outcome["failure"] == "" for outcome in found] == [True, False]
    assert "1 of 1" not in document.read_text()
    assert "BROKEN contention" in capsys.readouterr().out
    torture.main(only=["crash"], write=True)
    torture.main(only=["contention"], write=True)
    rows = [line for line in document.read_text().splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[0] for row in rows] == ["| `crash`", "| `contention`"]
    assert all(" | 1 of 1 | " in row for row in rows)
    assert document.read_text().endswith(f"{torture.END}\nafter\n")
    with pytest.raises(typer.BadParameter, match="nope: there are crash, contention"):
        torture.main(only=["nope"])
