"""`keysmith doctor`, `backup`, `restore`, and completion in shells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import COMMANDS, Run


def test_doctor_where_all_is_well(run: Run, database: Path) -> None:
    database.chmod(0o600)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"ok"}
    result = run("doctor --json")
    assert {finding["verdict"] for finding in json.loads(result.stdout)} == {"ok"}


def test_doctor_where_something_is_wrong(run: Run, database: Path) -> None:
    database.chmod(0o606)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    first, advice, *rest = result.stdout.splitlines()
    assert first.split() == ["problem", "files", "Everybody", "may", "write", "to", "keys.db."]
    assert advice.strip() == f"chmod o-w {database}"
    assert {line.split()[0] for line in rest} == {"ok"}
    result = run("doctor --json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)[0] == {
        "check": "files",
        "verdict": "problem",
        "found": "Everybody may write to keys.db.",
        "advice": f"chmod o-w {database}",
    }


def test_doctor_without_a_database(run: Run, tmp_path: Path) -> None:
    result = run("doctor --database-url", f"sqlite:///{tmp_path / 'none.db'}")
    assert result.exit_code == 1
    assert "`keysmith migrate`" in result.stdout


def test_backup_and_restore(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    result = run("backup", str(copy))
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{copy.stat().st_size:,} bytes, checked" in result.stdout
    assert run("keys delete {main} --yes").exit_code == 0
    refused = run("backup", str(copy), "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stderr)["error"]["code"] == "conflict"
    assert "or give --force" in refused.stderr
    refused = run("restore", str(copy), input="n\n")
    assert refused.exit_code == 1
    assert "revocations too" in refused.stderr
    assert run("keys show {main}").exit_code == 1
    result = run("restore", str(copy), input="y\n")
    assert result.exit_code == 0
    assert "at the newest revision" in result.stdout
    assert run("keys show {main}").exit_code == 0
    run("keys delete {main} --yes")
    result = run("backup --force --json", str(copy))
    assert json.loads(result.stdout) == {"path": str(copy), "bytes": copy.stat().st_size}
    run("keys delete {office} --yes")
    result = run("restore --yes --json", str(copy))
    assert json.loads(result.stdout)["path"] == str(copy)
    assert [key["name"] for key in json.loads(run("keys list --json").stdout)] == [
        "asleep",
        "office",
    ]


def test_a_backup_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    for command, path in (("backup", "no/copy.db"), ("restore --yes", "copy.db")):
        result = run(command, str(tmp_path / path))
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.startswith("Error: The")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("keysmith pol", ["policies"]),
        ("keysmith keys rev", ["revoke", "revoke-all"]),
        ("keysmith keys list --st", ["--state"]),
        ("keysmith keys list --state s", ["suspended"]),
    ],
)
def test_completion(
    run: Run, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_KEYSMITH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    result = run("")
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(result.stdout.split()) == sorted(offered)


def test_every_command_is_offered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KEYSMITH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "keysmith ")
    monkeypatch.setenv("COMP_CWORD", "1")
    offered = set(run("").stdout.split())
    assert offered == {name.split()[0] for name in COMMANDS}
