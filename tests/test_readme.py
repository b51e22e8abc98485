"""Every command and every snippet of the README, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving import client

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def bash(script: str, folder: Path, **variables: str) -> str:
    binaries = Path(sys.executable).parent
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **variables, "PATH": f"{binaries}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def found_in(log: Path, pattern: str, process: subprocess.Popen[Any]) -> re.Match[str]:
    """What a process that was started writes into the file, once it is there."""
    deadline = time.monotonic() + 120
    while not (found := re.search(pattern, log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """`make serve` in a copy of the checkout; gives the root key that it prints, and the port."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / ".ready").touch()
    with (tmp_path / "out").open("w") as out, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["make", "serve", "ARGS=--port 0"],
            cwd=tmp_path,
            env={
                k: v
                for k, v in os.environ.items()
                if k not in {"KEYSMITH_DATABASE_URL", "MAKEFLAGS"}
            },
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
    try:
        port = found_in(tmp_path / "log", r"running on http://127\.0\.0\.1:(\d+)", process)[1]
        root_key = found_in(tmp_path / "out", r"\w+_live_\w{49}", process)[0]
        yield root_key, int(port)
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def test_five_minutes_with_the_server(served: tuple[str, int], tmp_path: Path) -> None:
    root_key, port = served
    start, *rest = blocks("Five minutes with the server", "bash")
    assert start == "make serve\n"
    script = "\n".join(rest).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    lines = bash(script, tmp_path, ROOT_KEY=root_key).split("\n")
    assert lines[0].startswith("akey_")
    assert '"tenant_id":"acme"' in "".join(lines)
    assert lines[-5:] == ["False", "True", "revoked", "key_revoked", ""]
    assert (tmp_path / "keysmith.db").exists()


def test_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = "\n".join([*blocks("In Python", "python"), *blocks("In tests", "python")])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[1:-1] == [
        "Production ('users', 'users:read', 'users:write')",
        "key_revoked - The API key has been revoked, or replaced by a newer secret.",
        "ip_not_allowed",
    ]


def run_python(script: str, folder: Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


STANDING_STILL = """
import datetime, keysmith.clock
class Still(datetime.datetime):
    moment = datetime.datetime.now(datetime.UTC)
    now = classmethod(lambda cls, _: cls.moment)
keysmith.clock.datetime = Still
"""
"""Neither the second of a burst ends meanwhile, nor the day."""


def test_limits_and_metering(tmp_path: Path) -> None:
    sections = ("In Python", "Limits", "Metering")
    snippets = [block for section in sections for block in blocks(section, "python")]
    script = "\n".join([STANDING_STILL, *snippets])
    left, again, *metered = run_python(script, tmp_path)[-6:]
    assert left.startswith("90 left until ")
    assert re.fullmatch(r"again in [01]\.\d+ seconds", again)
    assert (tmp_path / "keysmith.db-counters").exists()
    assert metered == [
        "404 /v1/users/{id}",
        "200 /v1/users/{id}",
        "200 /v1/users/{id}",
        "3 requests, 1 failed, 12 ms",
    ]


def test_in_asynchronous_code(tmp_path: Path) -> None:
    [script] = blocks("In asynchronous code", "python")
    assert run_python(script, tmp_path) == ["1"]


@contextmanager
def fastapi_service(folder: Path) -> Iterator[str]:
    """The service, run as it is told there, on a free port; gives its URL."""
    service, _alembic = blocks("In a FastAPI service", "python")
    (folder / "service.py").write_text(service)
    with (folder / "service.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "uvicorn", "service:app", "--port", "0"],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        yield found_in(folder / "service.log", r"running on (http://\S+)", process)[1]
    finally:
        process.terminate()
        process.wait(60)


def test_in_a_fastapi_service(tmp_path: Path) -> None:
    _install, script = blocks("In a FastAPI service", "bash")
    with fastapi_service(tmp_path) as url:
        answer, _heading, request = bash(
            script.replace("http://127.0.0.1:8000", url), tmp_path
        ).splitlines()
        other = bash('keysmith keys create "Other" --json', tmp_path)
        with client(url) as anyone, client(url, json.loads(other)["raw_key"]) as without_scope:
            assert anyone.get("/users").status_code == 401
            assert without_scope.get("/users").status_code == 403
    assert answer == '["users of default"]'
    assert "/users" in request


def test_on_the_command_line(tmp_path: Path) -> None:
    install, script = blocks("On the command line", "bash")
    assert install.startswith("pip install")
    shown = bash(script, tmp_path)
    assert "akey_" in shown
    assert "revoked" in shown
    scope = "keysmith scopes create keysmith --tenant keysmith"
    first, another = re.findall(r"`(keysmith keys create root .*?)`", README)
    assert re.search(rf"`{scope}`, then\n`{first}`", README)
    assert first == another
    assert "sk_live_" in bash(f"{scope}\n{first}", tmp_path)


def test_what_is_to_be_installed_is_a_checkout_with_extras_that_exist() -> None:
    known = (ROOT / "pyproject.toml").read_text()
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    found = set()
    for document in documents:
        told = re.findall(r"pip install '?([^\s'`]+)", document.read_text())
        assert not [each for each in told if each.startswith("keysmith")], "another on PyPI"
        found |= {extra for each in told for extra in re.findall(r"[\w-]+", each.partition("[")[2])}
    assert found >= {"server", "cli", "fastapi", "metrics", "limits", "testing"}
    assert all(f"\n{extra} = [" in known for extra in found)


def test_links_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if not target.startswith("https://"):
                path, _, anchor = target.partition("#")
                there = document.parent / path if path else document
                assert there.exists(), f"{document.name}: {target}"
                assert not anchor or anchor in anchors(there.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_table_of_targets_is_the_makefiles() -> None:
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    documented = set(re.findall(r"^\| `make (\w+)`", guide, re.MULTILINE))
    assert documented <= targets
    assert targets - documented <= {"help", "clean"}
