"""`keysmith keys import`: the keys of another system, by their hashes."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from keysmith import Engine, SqliteStore
from keysmith.cli.imports import SHOWN
from tests.command_line import Run, Template
from tests.test_cli_process import KEYSMITH, _heed_interrupts, environment

RAW_KEYS = [f"other-system-{number}" for number in range(5)]


def sha256(raw_key: str) -> str:
    return hashlib.sha256(raw_key.encode()).hexdigest()


def line(raw_key: str, /, **fields: Any) -> dict[str, Any]:
    hint = raw_key[-4:]
    return {"name": raw_key, "key_hash": sha256(raw_key), "hint": hint, **fields}


def written(path: Path, *lines: Any) -> str:
    path.write_text(
        "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    )
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def count(database: Path) -> int:
    with Engine(SqliteStore(database)) as engine:
        return engine.count_keys()


def test_owners_notice_nothing(run: Run, file: Path, database: Path, template: Template) -> None:
    more = {
        "tenant_id": "default",
        "app_id": "web",
        "scopes": ["read"],
        "policy_id": template.ids["policy"],
        "metadata": {"old_id": 17},
        "expires_at": "2999-01-01T00:00:00Z",
        "environment": "test",
    }
    first, second, *_ = RAW_KEYS
    lines = ["\ufeff" + json.dumps(line(first)), "\r", line(second, **more)]
    result = run("keys import", written(file, *lines))
    assert result == (0, "2 keys imported.\n", "")
    with Engine(SqliteStore(database)) as engine:
        assert engine.validate_key(first).key.hint == first[-4:]
        imported = engine.validate_key(second, ip="10.0.0.1", scopes=["read:users"]).key
    assert (imported.meta, imported.environment) == (more["metadata"], "test")
    assert (imported.app_id, imported.policy_id) == ("web", template.ids["policy"])


def test_an_import_goes_on_where_it_stopped(run: Run, file: Path) -> None:
    assert run("keys import --json", written(file, line(RAW_KEYS[0]))).exit_code == 0
    result = run("keys import --json", written(file, *map(line, RAW_KEYS)))
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"imported": 4, "known": 1, "failed": [], "left": 0}
    again = run("keys import", str(file))
    assert again == (0, "0 keys imported.\n5 there already, and left as they are.\n", "")


def test_mistakes_are_told_by_line_and_nothing_is_imported(
    run: Run, file: Path, database: Path
) -> None:
    before = count(database)
    secret = "sk_live_this-is-no-hash"
    wrong = [
        line(RAW_KEYS[0]),
        line(RAW_KEYS[1], key_hash=secret),
        line(RAW_KEYS[2], raw_key=secret),
        line(RAW_KEYS[3], hint="longer than four"),
        "{no json",
        {"key_hash": sha256(RAW_KEYS[4])},
        line(RAW_KEYS[0], name="again"),
        line(RAW_KEYS[4], **{f"{secret}\x1b[31m": 1}),
    ]
    result = run("keys import", written(file, *wrong))
    assert (result.exit_code, result.stdout) == (2, "")
    for told in (
        "Nothing was imported",
        "2: key_hash",
        "3: another field",
        "4: hint",
        "5: Inv",
        "6: na",
        "7: key_hash: it is that of line 1",
        "8: another field",
    ):
        assert told in result.stderr
    assert secret not in result.stderr
    assert "\x1b" not in result.stderr
    assert count(database) == before


def test_of_many_mistakes_some_are_told(run: Run, file: Path) -> None:
    result = run("keys import", written(file, *["[]"] * (SHOWN + 7)))
    assert result.stderr.count("line ") == SHOWN
    assert "and 7 more" in result.stderr


def test_what_cannot_be_imported_is_reported(
    run: Run, file: Path, template: Template, database: Path
) -> None:
    with Engine(SqliteStore(database)) as engine:
        rotated_out = sha256(template.raw_keys["main"])
        engine.rotate_key(template.ids["main"])
    lines = [
        line(RAW_KEYS[0], scopes=["nope"]),
        line(RAW_KEYS[1], policy_id=template.ids["policy"][:5] + "0" * 26),
        line(RAW_KEYS[2], expires_at="2001-01-01T00:00:00Z"),
        {"name": "back", "key_hash": rotated_out},
        line(RAW_KEYS[3]),
    ]
    result = run("keys import --json", written(file, *lines))
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["imported"], report["known"], report["left"]) == (1, 0, 0)
    assert [(each["line"], each["code"]) for each in report["failed"]] == [
        (1, "scope_not_found"),
        (2, "policy_not_found"),
        (3, "invalid_input"),
        (4, "conflict"),
    ]
    shown = run("keys import", str(file))
    assert "Line 1: Unknown in this tenant: nope." in shown.stderr
    for told in (shown.stderr, report["failed"][0]["message"]):
        assert "`keysmith scopes create`" in told
    assert "0 keys imported.\n1 there already" in shown.stdout


def test_a_key_that_another_tenant_has_is_not_there_already(run: Run, file: Path) -> None:
    lines = [line(RAW_KEYS[0], tenant_id="acme"), line(RAW_KEYS[0], tenant_id="other")]
    result = run("keys import --json", written(file, *lines))
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["imported"], report["known"], report["left"]) == (1, 0, 0)
    assert [(each["line"], each["code"]) for each in report["failed"]] == [(2, "conflict")]


def test_from_standard_input_and_an_empty_one(run: Run) -> None:
    assert run("keys import -", input=json.dumps(line(RAW_KEYS[0]))).stdout == "1 key imported.\n"
    assert run("keys import -", input="") == (0, "0 keys imported.\n", "")
    assert run("keys import missing.jsonl").exit_code == 2


@pytest.mark.slow
def test_ctrl_c_ends_it_between_two_keys(database: Path, file: Path) -> None:
    lines, before = [line(f"many-{number}") for number in range(20_000)], count(database)
    written(file, *lines)
    with subprocess.Popen(
        [KEYSMITH, "keys", "import", str(file), "--json"],
        env=environment(KEYSMITH_DATABASE_URL=f"sqlite:///{database}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509  there are no other threads
    ) as process:
        while count(database) == before:
            assert process.poll() is None, "stopped before the end"
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    report = json.loads(stdout)
    assert process.returncode == 130
    assert 0 < report["imported"] == count(database) - before
    assert report["imported"] + report["left"] == len(lines)
