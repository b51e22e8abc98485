"""What a stranger gets: light imports, a whole wheel, documented and typed names."""

from __future__ import annotations

import importlib
import inspect
import os
import sqlite3
import subprocess
import sys
import venv
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

import keysmith
from keysmith import Engine, KeysmithError, Plugin, Store
from keysmith.extras import from_extra
from keysmith.stores import base

ROOT = Path(__file__).parent.parent

LIGHT = """
import sys, logging
before = dict(level=logging.root.level, handlers=list(logging.root.handlers))
import keysmith
heavy = {"alembic", "fastapi", "starlette", "uvicorn", "typer", "rich", "httpx"}
heavy = (heavy | {"limits", "redis"}) & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
from sqlmodel import SQLModel
assert not SQLModel.metadata.tables
assert before == dict(level=logging.root.level, handlers=list(logging.root.handlers))
"""


def test_importing_is_light_and_leaves_the_host_alone() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("keysmith.fastapi", "fastapi", "fastapi"),
        ("keysmith.server", "fastapi", "server"),
        ("keysmith.server", "uvicorn", "server"),
        ("keysmith.server", "pydantic_settings", "server"),
    ],
)
def test_an_extra_that_is_missing_is_named(module: str, missing: str, extra: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    failed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    told = f"{missing} comes with the extra `{extra}`: install Keysmith with it."
    assert failed.stderr.splitlines()[-1] == f"ModuleNotFoundError: {told}"


def test_a_module_of_ours_that_is_missing_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'keysmith\.nothing'$"):
        with from_extra("fastapi"):
            importlib.import_module("keysmith.nothing")


def test_the_version_is_that_of_the_package() -> None:
    assert keysmith.__version__ == version("keysmith")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        keysmith.nothing  # type: ignore[attr-defined]  # noqa: B018


HOST = """
import keysmith
from sqlmodel import Field, Relationship, SQLModel

class Policy(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    keys: list["Key"] = Relationship(back_populates="policy")

class Key(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    policy_id: int | None = Field(default=None, foreign_key="policy.id")
    policy: Policy | None = Relationship(back_populates="keys")

assert Key(policy=Policy()).policy.keys
assert set(SQLModel.metadata.tables) == {"policy", "key"}
"""


def test_a_host_may_have_models_of_the_same_names() -> None:
    subprocess.run([sys.executable, "-c", HOST], check=True)


def test_every_public_name_is_documented_and_exported() -> None:
    for name in keysmith.__all__:
        thing = getattr(keysmith, name)
        if inspect.isclass(thing):
            assert (thing.__doc__ or "").strip(), name
    for owner in (Engine, Store, Plugin, *(v for k, v in vars(base).items() if "Repo" in k)):
        for name, member in vars(owner).items():
            if not name.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, property)
            ):
                assert inspect.getdoc(member), f"{owner.__name__}.{name}"
    assert (ROOT / "keysmith" / "py.typed").exists()


def errors(parent: type[KeysmithError]) -> list[type[KeysmithError]]:
    """Those of the package: tests have some of their own, which live on for a while."""
    ours = [each for each in parent.__subclasses__() if each.__module__.startswith("keysmith.")]
    return [parent, *(error for child in ours for error in errors(child))]


def test_every_error_has_a_code_and_a_message_of_its_own() -> None:
    found = errors(KeysmithError)
    assert len({error.code for error in found}) == len(found)
    for error in found:
        assert error.__name__ in keysmith.__all__
        assert str(error()) == inspect.cleandoc(error.__doc__ or "").split("\n")[0]
        assert str(error("told")) == "told"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_all_that_migrating_takes(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"),
            *("--target", installed, wheel),
        ],
        check=True,
        capture_output=True,
    )
    script = """if True:
        import keysmith
        keysmith.SqliteStore("x.db").migrate()
        print(keysmith.__file__)
    """
    ran = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert ran.stdout.strip() == str(installed / "keysmith" / "__init__.py")
    assert tables(tmp_path / "x.db") == all_tables()


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return sorted(name for (name,) in rows)


def all_tables() -> list[str]:
    return sorted([*keysmith.metadata.tables, "keysmith_alembic_version"])


@pytest.mark.slow
def test_in_an_empty_environment_the_wheel_needs_nothing_more(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean.pop("COVERAGE_PROCESS_START", None)
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "-c",
            ROOT / "constraints.txt",
            wheel,
        ],
        check=True,
        capture_output=True,
        env=clean,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [python, "-c", "from keysmith import SqliteStore; SqliteStore('x.db').migrate()"],
        check=True,
        cwd=empty,
        env=clean,
    )
    assert tables(empty / "x.db") == all_tables()
    without_extras = subprocess.run(
        [environment / "bin" / "keysmith", "--help"],
        capture_output=True,
        text=True,
        env=clean,
        check=False,
    )
    assert without_extras.returncode == 2
    assert "the extra `cli`" in without_extras.stderr
