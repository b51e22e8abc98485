"""What the `keysmith` command and its server say to whom is at the other end, and to the log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from tests.test_server import keysmith_serve

KEYSMITH = (sys.executable, "-m", "keysmith.cli")


def shown_by_the_command(folder: Path, raw_keys: list[str]) -> str:
    """All that it printed, given keys that are good, unknown and in the wrong place."""
    shown = []

    def run(*arguments: str, sent: str = "") -> None:
        done = subprocess.run(
            [*KEYSMITH, *arguments],
            cwd=folder,
            input=sent,
            env={"KEYSMITH_DATABASE_URL": "sqlite:///command.db"},
            capture_output=True,
            text=True,
            check=False,
        )
        shown.extend((done.stdout, done.stderr))

    run("keys", "validate", sent=raw_keys[0])
    run("migrate")
    for raw_key in raw_keys[:3]:
        for sent in (raw_key, raw_key[:-1]):
            run("keys", "validate", "--json", sent=sent)
            run("keys", "validate", "--cost", "x", sent=sent)
        run("keys", "validate", raw_key)
        run("keys", "show", raw_key)
        run("keys", raw_key)
        run("keys", "list", f"--tenant={raw_key}", "--limit", raw_key)
    return "".join(shown)


def shown_by_the_server(folder: Path, raw_keys: list[str]) -> str:
    """All that it logged and answered, but for the answers that issue keys: those are added."""
    answers = []
    with keysmith_serve(folder, "--log-level", "debug") as served:
        url, root_key = served.url(), served.root_key()
        with httpx.Client(base_url=f"{url}/v1", trust_env=False) as client:
            root = {"Authorization": f"Bearer {root_key}"}
            issued = client.post("/keys", json={"name": "n"}, headers=root).json()["raw_key"]
            raw_keys += [issued, root_key]
            for raw_key in raw_keys:
                for sent in (raw_key, raw_key[:-1]):
                    mine = {"X-API-Key": sent}
                    answers += [
                        client.post("/keys/validate", json={"raw_key": sent}, headers=root),
                        client.post("/keys/validate", json={"raw_key": [sent]}, headers=root),
                        client.get("/keys", headers=mine),
                        client.get("/keys", headers={**mine, **root}),
                        client.get(f"/keys/{sent}", headers=root),
                        client.get("/keys", params={"cursor": sent}, headers=root),
                        client.get("/keys", params={"api_key": sent}, headers=root),
                    ]
        logged = served.logged()
    return logged + "".join(answer.text for answer in answers)
