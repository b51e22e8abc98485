"""The `keysmith` command, in this process: what each command and option does, and what is said."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keysmith import Engine
from keysmith.cli import main
from keysmith.cli.options import parse_duration
from tests.adversity import as_nobody, as_root
from tests.command_line import COMMANDS, FAR, GROUP, Run, Template
from tests.conftest import TurnableClock

FOREIGN = "somebody-elses-secret-4711"
UNKNOWN_KEY = "akey_" + "0" * 26
IN_ONE_PROCESS = {name: command for name, command in COMMANDS.items() if name != "serve"}
"""`serve` does not come back."""


def holds(document: Any, expected: Any) -> bool:
    """Whether a JSON document has what is expected; of objects, more may be there."""
    if isinstance(expected, re.Pattern):
        return isinstance(document, str) and expected.search(document) is not None
    if isinstance(expected, Mapping):
        return all(name in document and holds(document[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(document) == len(expected) and all(map(holds, document, expected))
    return bool(document == expected)


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


RAW_KEY = re.compile(r"^sk_live_[0-9A-Za-z]{49}$")

RULES = (
    "--rate-limit 5 --rate-limit-window 10s --burst-limit 2 --allowed-scope read "
    "--allowed-scope write --allowed-ip 10.0.0.0/8 --allowed-ip ::1 "
    "--allowed-origin https://EXAMPLE.org:443 --allowed-method get --allowed-path '/v1/**' "
    "--max-key-lifetime P30D --rotation-period 7d --grace-period 90m --daily-quota 100 "
    "--monthly-quota 1000 --description 'of the house' --meta '{{\"floor\": 3}}'"
)
RULED = {
    "rate_limit": 5,
    "rate_limit_window": "PT10S",
    "burst_limit": 2,
    "allowed_scopes": ["read", "write"],
    "allowed_ips": ["10.0.0.0/8", "::1/128"],
    "allowed_origins": ["https://example.org"],
    "allowed_methods": ["GET"],
    "allowed_paths": ["/v1/**"],
    "max_key_lifetime": "P30D",
    "rotation_period": "P7D",
    "grace_period": "PT1H30M",
    "daily_quota": 100,
    "monthly_quota": 1000,
    "description": "of the house",
    "metadata": {"floor": 3},
}
EMPTIED = {name: [] for name in RULED if name.startswith("allowed_")} | {
    "max_key_lifetime": None,
    "rotation_period": None,
}
CLEAR = " ".join(f"--clear {name.replace('_', '-')}" for name in EMPTIED)

CASES: dict[str, Any] = {
    "migrate": {"database_url": re.compile("^sqlite:///.*keys.db$")},
    "keys create Full --tenant default --app web --scope read --scope write --policy {policy} "
    "--environment staging --prefix pk --description 'a text' --expires-at 2998-01-01T01:00+01:00 "
    "--created-by bob --meta '{{\"a\": [1]}}'": {
        "key": {
            "name": "Full",
            "tenant_id": "default",
            "app_id": "web",
            "environment": "staging",
            "prefix": "pk",
            "description": "a text",
            "expires_at": "2998-01-01T00:00:00Z",
            "created_by": "bob",
            "metadata": {"a": [1]},
        },
        "raw_key": re.compile(r"^pk_staging_"),
    },
    "keys create Brief --expires-in 1h": {
        "key": {"expires_at": re.compile(r"^20\d\d-")},
        "raw_key": RAW_KEY,
    },
    "keys list": named("asleep", "office", "main"),
    "keys list --tenant acme": named("asleep"),
    "keys list --tenant nobody": [],
    "keys list --app web": named("office"),
    "keys list --state suspended": named("asleep"),
    "keys list --environment test": named("office"),
    "keys list --policy {policy}": named("office"),
    "keys list --created-by alice": named("main"),
    f"keys list --expires-by {FAR}": named("main"),
    "keys list --expires-by 2998-01-01T00:00:00Z": [],
    f"keys list --rotation-due-by {FAR}": named("office"),
    "keys list --rotation-due-by 2026-01-01T00:00:00Z": [],
    "keys list --unused-since 2998-01-01T00:00:00Z": named("asleep", "office", "main"),
    "keys list --unused-since 2026-01-01T00:00:00Z": [],
    "keys list --limit 1": named("asleep"),
    "keys list --after {office}": named("main"),
    "keys count": {"count": 3},
    "keys count --tenant acme": {"count": 1},
    "keys count --app web": {"count": 1},
    "keys count --state active": {"count": 2},
    "keys count --environment test --policy {policy}": {"count": 1},
    "keys count --created-by nobody": {"count": 0},
    f"keys count --expires-by {FAR}": {"count": 1},
    f"keys count --rotation-due-by {FAR} --app web": {"count": 1},
    f"keys count --unused-since {FAR} --state active": {"count": 1},
    "keys show {main}": {"name": "main", "scopes": ["read"], "policy_id": None},
    "keys update {main} --name new --description '' --meta '{{}}' --policy {policy} "
    "--expires-at 2998-01-01T00:00:00Z": {
        "name": "new",
        "policy_id": re.compile("^kpol_"),
        "expires_at": "2998-01-01T00:00:00Z",
    },
    "keys update {main} --expires-in 1d": {"name": "main", "expires_at": re.compile(r"^20")},
    "keys update {main} --no-expiry": {"expires_at": None},
    "keys update {office} --no-policy": {"policy_id": None},
    "keys delete {main} --yes": {"deleted": re.compile("^akey_")},
    "keys rotate {main} --reason compromise --by alice": {"raw_key": RAW_KEY},
    "keys rotate {main} --grace PT5M": {"key": {"name": "main"}, "raw_key": RAW_KEY},
    "keys revoke {main} --reason 'contract ended'": {"state": "revoked"},
    "keys suspend {main}": {"state": "suspended"},
    "keys reactivate {asleep}": {"state": "active"},
    f"policies create house --tenant acme --app web {RULES}": {
        "name": "house",
        "tenant_id": "acme",
        "app_id": "web",
        **RULED,
    },
    "policies create bare": {"rate_limit": 0, "grace_period": "P1D", **EMPTIED},
    "policies list": named("unused", "office"),
    "policies list --tenant acme": named("unused"),
    "policies list --app web": named("office"),
    "policies list --limit 1": named("unused"),
    "policies list --after {unused}": named("office"),
    "policies show {policy}": {"name": "office", "allowed_ips": ["10.0.0.0/8"]},
    f"policies update {{policy}} --name house {RULES}": {"name": "house", **RULED},
    f"policies update {{policy}} {CLEAR}": {"name": "office", **EMPTIED},
    "policies delete {unused}": {"deleted": re.compile("^kpol_")},
    "scopes create read:books --tenant default --app web --parent write --description Books "
    "--meta '{{\"a\": 1}}'": {
        "name": "read:books",
        "tenant_id": "default",
        "app_id": "web",
        "parent": "write",
        "description": "Books",
        "metadata": {"a": 1},
    },
    "scopes list": named("below", "read", "read:users", "write"),
    "scopes list --tenant acme": [],
    "scopes list --app web": named("below"),
    "scopes list --parent write": named("below"),
    "scopes list --limit 2": named("below", "read"),
    "scopes list --after {scope}": named("read:users", "write"),
    "scopes show {child}": {"name": "below", "parent": "write"},
    "scopes update {child} --parent read --description D --meta '{{\"b\": 2}}'": {
        "name": "below",
        "parent": "read",
        "description": "D",
        "metadata": {"b": 2},
    },
    "scopes update {child} --no-parent": {"parent": None},
    "scopes delete {scope}": {"deleted": re.compile("^kscp_")},
    "scopes assign {main} write below": named("below", "read", "write"),
    "scopes remove {main} read": [],
    "rotations list": [{"reason": "manual"}, {"reason": "scheduled"}],
    "rotations list --key {office}": [{"reason": "scheduled", "rotated_by": "cron"}],
    "rotations list --tenant acme": [{"reason": "manual"}],
    "rotations list --app web": [{"reason": "scheduled"}],
    "rotations list --reason scheduled": [{"rotated_by": "cron"}],
    "rotations list --limit 1": [{"reason": "manual"}],
    "maintain --usage-retention 90d --unused-days 30": {
        "expired": 0,
        "due_for_rotation": [],
        "unused": [],
    },
    "usage --key {main} --period monthly": [],
    "usage --tenant acme --app web --last 7d": [],
}


@pytest.mark.parametrize("line", CASES)
def test_for_programs(run: Run, line: str) -> None:
    result = run(line, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert holds(document, CASES[line]), document


@pytest.mark.parametrize("line", CASES)
def test_for_people(run: Run, line: str) -> None:
    result = run(line)
    assert result.exit_code == 0
    assert not result.stdout.startswith(("{", "["))
    expected = CASES[line]
    if isinstance(expected, list):
        lines = result.stdout.splitlines()
        assert len(lines) == (len(expected) + 1 if expected else 0)
        assert expected or result.stderr
        for row, each in zip(lines[1:], expected, strict=bool(expected)):
            assert all(value in row for value in each.values())
    else:
        for name, value in {**expected, **expected.get("key", {})}.items():
            if isinstance(value, str) and value:
                assert re.search(rf"{re.escape(value)}$", result.stdout, re.MULTILINE), (
                    name,
                    value,
                )


TRIED_ELSEWHERE = {
    "keys validate": {
        *("--scope", "--ip", "--origin", "--method", "--path", "--cost", "--json"),
        *("--database-url", "--rate-limiter"),
    },
    "keys create": {"--idempotency-key"},
    "keys rotate": {"--idempotency-key"},
    "rotations list": {"--after"},
    "requests list": {"--key", "--tenant", "--app", "--since", "--until", "--limit", "--after"},
    "usage": {"--by-key", "--since", "--until", "--limit"},
    "maintain": {"--every"},
    "backup": {"--force"},
    "restore": {"--yes"},
    "keys rotate-all": {
        *("--tenant", "--all-tenants", "--app", "--before", "--output", "--reason", "--grace"),
        *("--by", "--dry-run", "--yes"),
    },
    "keys revoke-all": {
        *("--tenant", "--all-tenants", "--app", "--before", "--reason", "--dry-run", "--yes"),
    },
}


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_every_option_is_tried_above(name: str) -> None:
    tried = {"--json", "--database-url", *TRIED_ELSEWHERE.get(name, ())}
    for line in CASES:
        if line.startswith(f"{name} ") or line == name:
            tried.update(word for word in shlex.split(line) if word.startswith("--"))
    options = {
        option
        for parameter in COMMANDS[name].params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert options <= tried


@as_root
def test_a_key_can_be_validated_on_a_read_only_database(
    run: Run, template: Template, open_folder: Path
) -> None:
    path = Path(shutil.copy(template.path, open_folder / "keys.db"))
    path.chmod(0o444)
    with as_nobody():
        result = run(
            "keys validate --json --database-url",
            f"sqlite:///{path}",
            input=template.raw_keys["main"],
        )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["key"]["name"] == "main"
    assert "could not be written" in result.stderr


@pytest.mark.parametrize("line", ["keys create n", "keys rotate {main}"])
def test_what_is_asked_for_twice_is_done_once(run: Run, line: str) -> None:
    first, again = (json.loads(run(f"{line} --idempotency-key 1 --json").stdout) for _ in range(2))
    assert first["raw_key"]
    assert (again["raw_key"], again["key"]) == (None, first["key"])
    shown = run(f"{line} --idempotency-key 1")
    assert "the raw key shown then" in shown.stderr
    assert "sk_" not in shown.stdout + shown.stderr
    other = run("keys create other --idempotency-key 1 --json")
    assert ("request_mismatch" in other.stderr) == (line == "keys create n")


def test_the_next_page_of_rotations(run: Run) -> None:
    newest, oldest = json.loads(run("rotations list --json").stdout)
    assert json.loads(run("rotations list --json --after", newest["id"]).stdout) == [oldest]


def test_the_database_of_the_option_comes_first(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert run("migrate --database-url", url).exit_code == 0
    assert json.loads(run("keys list --json --database-url", url).stdout) == []
    assert len(json.loads(run("keys list --json").stdout)) == 3


# ---------------------------------------------------------------------------- validating


REQUEST = "--ip 10.1.1.1 --origin https://a.org --method GET --path /x --cost 2"


def test_validating(run: Run, template: Template) -> None:
    result = run("keys validate --scope read:users --json", input=template.raw_keys["main"] + "\n")
    document = json.loads(result.stdout)
    assert document["key"]["name"] == "main"
    assert document["scopes"] == ["read", "read:users"]
    assert not document["rotated"]
    shown = run("keys validate", REQUEST, input=template.raw_keys["main"])
    assert shown.exit_code == 2, "one word is no option"
    for line in (f"keys validate {REQUEST}", f"keys validate {REQUEST} --json"):
        result = run(line, input=template.raw_keys["office"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert template.raw_keys["office"] not in result.stdout + result.stderr
    shown = run(f"keys validate {REQUEST}", input=template.raw_keys["office"]).stdout
    assert shown.startswith("The key is valid.\n")
    assert re.search("^Rotated +yes$", shown, re.MULTILINE)
    assert re.search("^Grace ends +20", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--scope write", "insufficient_scope"),
        ("--ip 11.0.0.1", "ip_not_allowed"),
        ("", "ip_not_allowed"),
    ],
)
def test_a_key_that_is_not_good_for_it(
    run: Run, template: Template, options: str, code: str
) -> None:
    key = "main" if "scope" in options else "office"
    result = run(f"keys validate --json {options}", input=template.raw_keys[key])
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["tenant_id"]) == (code, "default")
    told = run(f"keys validate {options}", input=template.raw_keys[key]).stderr
    assert f"key_id: {error['key_id']}" in told.splitlines()


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("--rate-limit 1", {"code": "rate_limited", "retry_after": r"^\d\d\.\d+$"}),
        (
            "--daily-quota 1",
            {
                "code": "quota_exceeded",
                "period": "^daily$",
                "resets_at": r"^20\d\d-\d\d-\d\dT00:00:00Z$",
            },
        ),
    ],
)
def test_a_key_that_has_reached_a_limit(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    clock: TurnableClock,
    rule: str,
    told: dict[str, str],
) -> None:
    monkeypatch.setattr("keysmith.cli.session.Engine", partial(Engine, clock=clock))
    policy = json.loads(run(f"policies create limited {rule} --json").stdout)["id"]
    raw_key = json.loads(run("keys create n --json --policy", policy).stdout)["raw_key"]
    assert run("keys validate", input=raw_key).exit_code == 0
    result = run("keys validate --json", input=raw_key)
    assert result.exit_code == 1
    error = json.loads(result.stderr)["error"]
    shown = run("keys validate", input=raw_key).stderr
    for name, pattern in told.items():
        assert re.search(pattern, str(error[name])), error
        if name != "code":
            assert f"\n{name}: " in shown


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", FOREIGN.encode(), b"x" * 1_000_000, b"sk_live_" + b"a" * 49, b"a\nb"]
)
def test_what_is_no_key(run: Run, text: bytes) -> None:
    result = run("keys validate", input=text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: The API key is not valid.\n"


# ---------------------------------------------------------------------------- what goes wrong


FAILURES: dict[str, tuple[int, str, str]] = {
    f"keys show {UNKNOWN_KEY}": (1, "key_not_found", "`keysmith keys list`"),
    "keys show {policy}": (1, "key_not_found", "akey_"),
    "scopes show read": (1, "scope_not_found", "kscp_.*`keysmith scopes list`"),
    "scopes delete read": (1, "scope_not_found", "kscp_.*`keysmith scopes list`"),
    "keys create n --scope nope": (1, "scope_not_found", "nope.*`keysmith scopes create`"),
    "keys create n --policy nope": (1, "policy_not_found", "kpol_"),
    "keys reactivate {main}": (1, "invalid_state_transition", "active"),
    "policies create office": (1, "conflict", "name"),
    "policies delete {policy}": (1, "policy_in_use", "key"),
    "scopes update {scope} --parent read:users": (1, "scope_loop", "below"),
    "scopes assign {main} nope": (1, "scope_not_found", "nope"),
    "keys create ''": (2, "invalid_input", "^name: "),
    "keys create n --expires-at 2030-01-01": (2, "invalid_input", "^expires_at: .*time"),
    "keys create n --expires-in 0s": (2, "invalid_input", "^expires_at: .*future"),
    "keys create n --expires-in 99999999d": (2, "usage", "9999"),
    "keys create n --expires-in 3": (2, "usage", "--expires-in.*duration such as 30s"),
    "keys create n --expires-in 1h --expires-at x": (2, "usage", "--expires-at or --expires-in"),
    "keys create n --meta '[]'": (2, "usage", "--meta.*must be a JSON object"),
    "keys create n --meta nope": (2, "usage", "--meta.*must be a JSON object"),
    "keys create": (2, "usage", "NAME"),
    "keys create a b": (2, "usage", "argument"),
    "keys list --state asleep": (2, "usage", "active.*suspended"),
    "keys list --policy trial": (2, "usage", "--policy.*must be an ID: kpol_"),
    "keys count --policy {main}": (2, "usage", "--policy.*must be an ID: kpol_"),
    "rotations list --key foo": (2, "usage", "--key.*must be an ID: akey_"),
    "requests list --key foo": (2, "usage", "--key.*must be an ID: akey_"),
    "usage --key foo": (2, "usage", "--key.*must be an ID: akey_"),
    "keys list --limit 0": (2, "usage", "--limit"),
    "keys list --after x": (2, "invalid_input", "^after: "),
    "keys list --unused-since 90d": (2, "usage", "--unused-since.*time zone"),
    "keys lits": (2, "usage", "list"),
    "keys update {main}": (2, "usage", "nothing to change"),
    "keys update {main} --policy {policy} --no-policy": (2, "usage", "not both"),
    "keys update {main} --expires-in 1h --no-expiry": (2, "usage", "not both"),
    "keys update {main} --expires-in 1h --expires-at x": (2, "usage", "not both"),
    "keys rotate {main} --grace -PT1S": (2, "usage", "--grace.*duration"),
    "keys rotate {main} --reason whim": (2, "usage", "compromise"),
    "keys validate": (2, "usage", "Standard input is empty"),
    "keys validate --cost -1": (2, "usage", "--cost"),
    "policies create n --allowed-ip 10.0.0.1/8": (2, "invalid_input", "^allowed_ips.0: .*host"),
    "policies create n --rate-limit -1": (2, "invalid_input", "^rate_limit: "),
    "policies update {policy}": (2, "usage", "nothing to change"),
    "policies update {policy} --clear allowed-ips --allowed-ip ::1": (2, "usage", "allowed-ips"),
    "policies update {policy} --clear name": (2, "usage", "allowed-ips"),
    "scopes update {scope}": (2, "usage", "nothing to change"),
    "scopes update {scope} --no-parent --parent write": (2, "usage", "not both"),
    "scopes create 'Bad Name'": (2, "invalid_input", "^name: "),
    "keys list --database-url sqlite:////no/such/folder.db": (3, "store_unavailable", "folder"),
    "migrate --database-url postgresql://u:hunter2@h/d": (3, "store_unavailable", "sqlite:///"),
    "nope": (2, "usage", "nope"),
    "--nope": (2, "usage", "--nope"),
}


@pytest.mark.parametrize("line", FAILURES)
def test_failures(run: Run, line: str, database: Path) -> None:
    exit_code, code, message = FAILURES[line]
    before = database.read_bytes()
    for_people = run(line)
    assert (for_people.exit_code, for_people.stdout) == (exit_code, "")
    assert for_people.stderr.startswith("Error: ")
    assert (exit_code == 2 and code == "usage") == ("--help' for help" in for_people.stderr)
    for_programs = run(line, "--json")
    assert (for_programs.exit_code, for_programs.stdout) == (exit_code, "")
    error = json.loads(for_programs.stderr)["error"]
    assert error["code"] == code
    assert re.search(message, error["message"])
    assert "hunter2" not in for_people.stderr + for_programs.stderr
    assert database.read_bytes() == before


def test_a_database_without_tables(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    result = run("keys list --database-url", f"sqlite:///{tmp_path / 'empty.db'}")
    assert result.exit_code == 3
    assert "`keysmith migrate`" in result.stderr


@pytest.mark.parametrize("where", ["keys validate", "keys show", "keys create x", "keys list -x"])
@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_a_raw_key_in_the_wrong_place_is_not_repeated(
    run: Run, template: Template, where: str, kind: str
) -> None:
    secret = template.raw_keys["main"] if kind == "ours" else FOREIGN
    for more in ([secret], [f"--nope={secret}"], [secret, "--json"]):
        result = run(where, *more)
        assert result.exit_code in (1, 2)
        assert secret not in result.stdout + result.stderr
        assert secret.rpartition("_")[2] not in result.stdout + result.stderr
        if kind == "ours" and result.exit_code == 2:
            assert "no command takes it as an argument" in result.stdout + result.stderr


def test_deleting_asks(run: Run) -> None:
    for answer in ("n\n", "\n", ""):
        refused = run("keys delete {main}", input=answer)
        assert refused.exit_code == 1
        assert "nothing was done" in refused.stderr
        assert run("keys show {main}").exit_code == 0
    refused = run("keys delete {main} --json", input="n\n")
    assert json.loads(refused.stderr[refused.stderr.index("{") :])["error"]["code"] == "aborted"
    assert run("keys delete {main}", input="y\n").exit_code == 0
    assert run("keys show {main}").exit_code == 1


# ---------------------------------------------------------------------------- help and the rest


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run: Run, name: str) -> None:
    result = run(f"{name} --help")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.replace("│", " ").split())
    command = COMMANDS[name]
    assert command.help.split("\n")[0] in shown
    for parameter in command.params:
        assert parameter.help, "every parameter says what it is for"
        assert parameter.opts[0] in shown or parameter.metavar in shown


@pytest.mark.parametrize("name", ["", "keys", "policies", "scopes", "rotations", "requests"])
def test_a_group_alone_shows_its_help(run: Run, name: str) -> None:
    result = run(name)
    assert (result.exit_code, result.stderr) == (2, "")
    assert "Commands" in result.stdout


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/keysmith", "--version"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 0
    assert re.fullmatch(r"keysmith \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_module_of_ours_that_is_missing_is_no_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "keysmith.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"keysmith\.cli\.app"):
        main()


@pytest.mark.parametrize("line", ["keys list --json", "--help", "keys nope", "keys nope --json"])
def test_a_reader_that_has_gone(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stderr" if "nope" in line else "stdout", broken)
        with pytest.raises(SystemExit) as exited:
            GROUP.main(line.split(), prog_name="keysmith")
    assert exited.value.code == 141


@pytest.mark.parametrize(("line", "code"), [("keys validate", 2), ("keys import -", 0)])
def test_without_standard_input(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, code: int
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as exited:
        GROUP.main(line.split(), prog_name="keysmith")
    assert exited.value.code == code


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("30s", 30),
        ("10m", 600),
        ("24h", 86_400),
        ("7d", 604_800),
        ("PT10M", 600),
        ("P1DT1H", 90_000),
        ("PT0.5S", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "5", "5 m", "1w", "1.5h", "10M", "12:30", "P", "-5m", "-PT1S", "٣s", "9" * 30 + "d"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30s"):
        parse_duration(text)


def test_columns_of_a_table_stand_below_each_other(run: Run) -> None:
    heading, *rows = run("keys list").stdout.splitlines()
    at = heading.index("State")
    assert [row[at:].split()[0] for row in rows] == ["suspended", "active", "active"]
    assert os.linesep not in heading


def test_text_with_line_ends_does_not_pass_for_fields(run: Run) -> None:
    run("keys update {main} --description", "one\nState  revoked\r\tx")
    shown = run("keys show {main}").stdout
    assert re.findall("^State.*", shown, re.MULTILINE) == ["State         active"]
