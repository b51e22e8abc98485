"""What the documents say of plugins: every snippet, run as it stands there, and every event."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keysmith import Plugin
from keysmith.plugins import AuditLog, EventPlugin, Metrics, Webhooks
from keysmith.plugins.events import EVENT_TYPES

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "plugins.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(document: str, heading: str) -> list[str]:
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "no_proxy": "127.0.0.1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def entries(folder: Path) -> list[tuple[str, str | None]]:
    lines = (folder / "audit.jsonl").read_text().splitlines()
    return [(entry["what"], entry["who"]) for entry in map(json.loads, lines)]


def test_plugins(tmp_path: Path) -> None:
    [snippet] = blocks(DOCUMENT, "Plugins")
    run(snippet, tmp_path)
    assert entries(tmp_path) == [("key.created", "alice")]


def test_the_readme(tmp_path: Path) -> None:
    [snippet] = blocks(README, "Plugins")
    run(f"from keysmith import *\n{snippet}", tmp_path)
    assert entries(tmp_path) == [("key.created", "alice")]


def test_audit_trail(tmp_path: Path) -> None:
    [snippet] = blocks(DOCUMENT, "Audit trail")
    shown = [json.loads(line) for line in run(snippet, tmp_path).splitlines() if line]
    assert [entry["what"] for entry in shown] == ["key.created", "key.revoked"]
    fields = re.findall(
        r"^\| `(\w+)` \| .+ \|$", DOCUMENT.partition("## Audit trail")[2], re.MULTILINE
    )
    assert fields == list(shown[0])


def test_metrics(tmp_path: Path) -> None:
    [snippet] = blocks(DOCUMENT, "Metrics")
    shown = run(snippet + SCRAPING, tmp_path)
    assert shown.startswith("200 text/plain")
    assert 'keysmith_events_total{event="key.created"} 1.0' in shown


SCRAPING = """
from fastapi.testclient import TestClient
from keysmith import KeyCreate

engine.create_key(KeyCreate(name="n"))
answer = TestClient(app).get("/metrics")
print(answer.status_code, answer.headers["content-type"], answer.text)
"""


def test_webhooks_from_end_to_end(tmp_path: Path) -> None:
    sender, receiver = blocks(DOCUMENT, "Webhooks")
    secret = Webhooks.new_secret()
    shown = run(
        receiver + SERVING.format(sender=sender, secret=secret), tmp_path, WEBHOOK_SECRET=secret
    )
    assert shown.splitlines() == [
        "key.created Production None",
        "key.revoked Production contract ended",
    ]


SERVING = """
import socket, subprocess, sys, threading
import uvicorn

sender = '''{sender}'''
with socket.create_server(("127.0.0.1", 0)) as listening:
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{{listening.getsockname()[1]}}"
    subprocess.run(
        [sys.executable, "-c", sender.replace("https://example.com", url)], check=True
    )
    server.should_exit = True
    thread.join()
"""


def test_one_of_your_own(tmp_path: Path) -> None:
    pager, ticker = blocks(DOCUMENT, "One of your own")
    assert sorted(run(pager, tmp_path).splitlines()) == [
        "A secret of Production was used that alice had rotated out",
        "The API key has been revoked, or replaced by a newer secret.",
    ]
    assert run(ticker, tmp_path).splitlines() == [
        "INFO key.created acme",
        "WARNING key.suspended acme",
    ]


def test_the_table_has_every_event_and_hook() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+)\((.*?)\)` \|", DOCUMENT, re.MULTILINE)
    assert {hook: type for type, hook, _ in rows} == EVENT_TYPES
    for _, hook, parameters in rows:
        code = getattr(Plugin, hook).__code__
        assert tuple(parameters.split(", ")) == code.co_varnames[1 : code.co_argcount]


@pytest.mark.parametrize("plugin", [AuditLog, EventPlugin, Metrics, Webhooks])
def test_every_name_is_documented(plugin: type[Plugin]) -> None:
    assert plugin.__name__ in DOCUMENT
    for name, member in vars(plugin).items():
        if not name.startswith("_") and callable(member):
            assert (member.__doc__ or "").strip(), name
