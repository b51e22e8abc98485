"""What the `keysmith` command and its server say to whoever is at the other end, and keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx

from keysmith import Hasher
from tests.test_server import ROOT_KEY as RAW_KEY
from tests.test_server import keysmith_serve

KEYSMITH = (sys.executable, "-m", "keysmith")


class Door:
    """A folder to work in, the raw keys that were issued, and all else that was shown."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.raw_keys: list[str] = []
        self.shown = ""
        self.files: dict[str, bytes] = {}

    def show(self, text: str, *, issued: int = 0) -> list[str]:
        """Gives the raw keys that are to be in there: so many, and each once."""
        found = RAW_KEY.findall(text)[:issued]
        for raw_key in found:
            text = text.replace(raw_key, "", 1)
        assert len(set(found)) == issued, f"{len(found)} raw keys were shown, not {issued}: {text}"
        self.raw_keys += found
        self.shown += text
        return found

    def keep(self, when: str) -> None:
        """Takes the databases and backups as they are, to be looked through."""
        name = self.folder.name
        self.files |= {
            f"{file.name} of the {name} {when}": file.read_bytes()
            for file in self.folder.glob("*.db*")
        }


class Command(Door):
    """The command in processes of its own, with a database of its own."""

    def run(self, *arguments: str, sent: str = "", code: int = 0, issued: int = 0) -> str:
        """Gives what it printed; it is to end so, and to print so many new raw keys."""
        done = subprocess.run(
            [*KEYSMITH, *arguments],
            cwd=self.folder,
            input=sent,
            env={**os.environ, "KEYSMITH_DATABASE_URL": "sqlite:///command.db"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{arguments[:2]}: {done.returncode}, not {code}: {said}"
        assert said, f"{arguments[:2]} said nothing"
        self.show(said, issued=issued)
        return done.stdout


def use_the_command(folder: Path, strange: str) -> Command:
    """Gives it keys that are good, `strange` to it, cut off and in the wrong place."""
    command = Command(folder)
    run = command.run
    run("keys", "validate", sent=strange, code=3)
    run("migrate")
    create = ("keys", "create", "n", "--idempotency-key", "once")
    run(*create, "--json", issued=1)
    run(*create)
    [key] = json.loads(run("keys", "list", "--json"))
    run("keys", "rotate", key["id"], "--grace", "1d", issued=1)
    good, newer = command.raw_keys
    run("keys", "validate", sent=newer)
    run("keys", "validate", "--json", sent=good)
    run("keys", "validate", "--json", sent=good[:-1], code=1)
    run("keys", "validate", "--json", sent=strange, code=1)
    run("keys", "validate", "--cost", "x", sent=good, code=2)
    run("keys", "validate", good, code=2)
    run("keys", "show", good, code=1)
    run("keys", good, code=2)
    run("keys", "list", f"--tenant={good}", "--limit", good, code=2)
    line = {"name": "n", "key_hash": Hasher().hash(strange), "hint": strange[-4:]}
    run("keys", "import", "-", sent=json.dumps({**line, "key_hash": good, good: good}), code=2)
    run("keys", "import", "-", sent=json.dumps(line))
    run("keys", "import", "-", sent=json.dumps(line))
    run("keys", "validate", sent=strange)
    run("keys", "rotate-all", "--all-tenants", "--yes", "--output", "new.csv")
    run("keys", "validate", sent=strange, code=1)
    run("backup", "backup.db")
    [latest, _] = command.show((folder / "new.csv").read_text(), issued=2)
    run("keys", "validate", sent=latest)
    command.keep("at the end")
    return command


def use_the_server(folder: Path, strange: list[str]) -> Door:
    """Asks it with keys that are good, `strange` to it, cut off and in the wrong place."""
    server = Door(folder)
    statuses: Counter[int] = Counter()

    def shown(answer: httpx.Response, *, issued: int = 0) -> None:
        statuses[answer.status_code] += 1
        server.show(f"{answer.headers.multi_items()} {answer.text}", issued=issued)

    with keysmith_serve(folder, "--log-level", "debug") as served:
        url, root_key = served.url(), served.root_key()
        with httpx.Client(base_url=f"{url}/v1", trust_env=False, timeout=60) as client:
            root = {"Authorization": f"Bearer {root_key}"}
            created = client.post("/keys", json={"name": "n"}, headers=root)
            shown(created, issued=1)
            key_id = created.json()["key"]["id"]
            shown(client.post(f"/keys/{key_id}/rotate", headers=root), issued=1)
            latest = {"raw_key": server.raw_keys[-1]}
            validated = client.post("/keys/validate", json=latest, headers=root)
            assert validated.status_code == 200, validated.text
            shown(validated)
            for raw_key in (root_key, *server.raw_keys, *strange):
                for sent in (raw_key, raw_key[:-1]):
                    mine = {"X-API-Key": sent}
                    shown(client.post("/keys/validate", json={"raw_key": sent}, headers=root))
                    shown(client.post("/keys/validate", json={"raw_key": [sent]}, headers=root))
                    shown(client.get("/keys", headers=mine))
                    shown(client.get("/keys", headers={**mine, **root}))
                    shown(client.get(f"/keys/{sent}", headers=root))
                    shown(client.get("/keys", params={"cursor": sent}, headers=root))
                    shown(client.get("/keys", params={"api_key": sent}, headers=root))
        server.keep("as it ran")
        server.show(served.logged())
    server.show(served.shown(), issued=1)
    server.keep("at the end")
    met = {200, 201, 400, 401, 403, 404, 422}
    assert set(statuses) == met, f"{statuses}, where {met} were to be met"
    return server
