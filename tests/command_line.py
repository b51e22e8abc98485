"""What tests of the `keysmith` command share: a filled database, and a way to run a line."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from keysmith import Engine, KeyCreate, PolicyCreate, ScopeCreate, SqliteStore
from keysmith.cli.app import app


class Result(NamedTuple):
    """What a command line came to."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]
GROUP: Any = typer.main.get_command(app)

FAR = "2999-01-01T00:00:00Z"


class Template:
    """A database with a little of everything, made once; each test gets a copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with Engine(SqliteStore(path)) as engine:
            engine.store.migrate()
            scope, *_ = engine.ensure_scopes(["read", "read:users", "write"])
            child = engine.create_scope(ScopeCreate(name="below", parent="write", app_id="web"))
            policy = engine.create_policy(
                PolicyCreate(
                    name="office",
                    app_id="web",
                    allowed_ips=["10.0.0.0/8"],
                    max_key_lifetime=timedelta(days=365_000),
                    rotation_period=timedelta(days=90),
                )
            )
            unused = engine.create_policy(PolicyCreate(name="unused", tenant_id="acme"))
            main = engine.create_key(
                KeyCreate(name="main", scopes=["read"], created_by="alice", expires_at=FAR)
            )
            office = engine.create_key(
                KeyCreate(
                    name="office", policy_id=policy.id, app_id="web", environment="test", prefix="o"
                )
            )
            asleep = engine.create_key(KeyCreate(name="asleep", tenant_id="acme"))
            engine.suspend_key(asleep.key.id)
            engine.rotate_key(office.key.id, reason="scheduled", rotated_by="cron")
            engine.rotate_key(asleep.key.id)
        self.raw_keys = {"main": main.raw_key, "office": office.raw_key}
        self.ids = {
            "main": main.key.id,
            "office": office.key.id,
            "asleep": asleep.key.id,
            "policy": policy.id,
            "unused": unused.id,
            "scope": scope.id,
            "child": child.id,
        }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("cli") / "template.db")


@pytest.fixture
def database(template: Template, tmp_path: Path) -> Path:
    return Path(shutil.copy(template.path, tmp_path / "keys.db"))


@pytest.fixture
def run(template: Template, database: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line, in which `{main}` stands for the ID of the key called main."""
    monkeypatch.setenv("KEYSMITH_DATABASE_URL", f"sqlite:///{database}")

    def invoke(line: str, *more: str, input: str | bytes | None = None) -> Result:
        arguments = [word.format(**template.ids) for word in shlex.split(line)]
        with CliRunner().isolation(input) as (stdout, stderr, _):
            with pytest.raises(SystemExit) as exited:
                GROUP.main([*arguments, *more], prog_name="keysmith")
            sys.stdout.flush()
            texts = stdout.getvalue().decode(), stderr.getvalue().decode()
        return Result(int(exited.value.code or 0), *texts)

    return invoke


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below the group, by the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(GROUP))
"""All commands, by the words that call them, such as `keys create`."""
