"""The examples, run as their documentation says."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from keysmith import SqliteStore, metadata
from keysmith.stores.schema import VERSION_TABLE
from tests.serving import reserved_port

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
BINARIES = Path(sys.executable).parent
NOTES = (EXAMPLES / "notes_service" / "README.md").read_text()


def bash(script: str, folder: Path) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "KEYSMITH_DATABASE_URL"}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**variables, "PATH": f"{BINARIES}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A copy of the service, so that nothing is left behind."""
    copy = tmp_path / "notes_service"
    shutil.copytree(
        EXAMPLES / "notes_service", copy, ignore=shutil.ignore_patterns("__pycache__", "*.db*")
    )
    return copy


def tables(service: Path) -> set[str]:
    with sqlite3.connect(service / "notes.db") as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def test_the_notes_service(service: Path) -> None:
    install, *steps = re.findall(r"^```bash\n(.*?)^```", NOTES, re.MULTILINE | re.DOTALL)
    assert install.startswith("pip install '../..[server]'")
    *steps, change_the_table = steps
    start = next(step for step in steps if step.startswith("uvicorn"))
    with reserved_port() as port:
        listening = (
            f"for _ in $(seq 600); do (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; "
            "kill -0 $! || exit 9; sleep 0.1; done; trap 'kill %1; wait %1 || true' EXIT\n"
        )
        script = "\n".join(step + (listening if step == start else "") for step in steps)
        shown = bash(script.replace("8001", str(port)), service)
    assert "No new upgrade operations detected." in shown
    assert '"text":"Milk"' in shown
    assert '"written_with":"Laptop"' in shown
    assert shown.count('"text":"Milk"') == 2, "it is written, and read"
    assert "A row of another table refers to this." in shown
    assert "not deleted" in shown
    assert "\nkey_revoked\n" in shown
    assert change_the_table.startswith("alembic revision")


def test_two_histories_in_one_database_do_not_see_each_other(service: Path) -> None:
    def alembic(command: str, folder: Path = service) -> str:
        url = f"sqlite:///{service / 'notes.db'}"
        return bash(f"KEYSMITH_DATABASE_URL={url} alembic {command}", folder)

    alembic("upgrade head")  # either may come first
    assert tables(service) == {"alembic_version", "notes"}
    with SqliteStore(service / "notes.db") as store:
        store.migrate()
    assert "No new upgrade operations" in alembic("check")
    assert "No new upgrade operations" in alembic("check", ROOT)
    models = service / "models.py"
    models.write_text(
        models.read_text().replace("    created_at", "    pinned: bool = False\n    created_at", 1)
    )
    alembic("revision --autogenerate -m pinned")
    [revision] = (service / "migrations" / "versions").glob("*pinned.py")
    assert '"pinned", sa.Boolean()' in revision.read_text().replace("'", '"')
    assert "keysmith_" not in revision.read_text()
    revision.unlink()
    alembic("downgrade base")
    assert tables(service) == {"alembic_version", VERSION_TABLE, *metadata.tables}


def test_the_quickstart(tmp_path: Path) -> None:
    shown = bash(f"{sys.executable} -W error {EXAMPLES / 'quickstart.py'}", tmp_path)
    assert re.fullmatch(
        r"Hand this to the customer: sk_live_\w{49}\n"
        r"It is good for: users:read\n"
        r"The old secret still works: True\n"
        r"Revoked: The API key has been revoked.*\n",
        shown,
    )


def test_the_readme_of_the_service_names_its_files() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", NOTES):
        assert (EXAMPLES / "notes_service" / target).exists()
    assert "[examples/notes_service]" in (ROOT / "README.md").read_text()
