"""What the documents say of plugins: every snippet, run as it stands there, and every event."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import uvicorn

from keysmith import KeyCreate, Plugin, SqliteStore
from keysmith.plugins import AuditLog, EventPlugin, Metrics, Webhooks
from keysmith.plugins.events import EVENT_TYPES
from tests.test_plugins_metrics import Statistics, WithCache

pytestmark = pytest.mark.usefixtures("unhurried")

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "plugins.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(document: str, heading: str) -> list[str]:
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


Run = Callable[[str], tuple[dict[str, Any], list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a snippet in an empty folder; gives its names, and the lines that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    stores: list[SqliteStore] = []

    def snippet(script: str) -> tuple[dict[str, Any], list[str]]:
        names: dict[str, Any] = {}
        shown = io.StringIO()
        with redirect_stdout(shown):
            exec(compile(script, "snippet", "exec"), names)
        stores.extend(thing for thing in names.values() if isinstance(thing, SqliteStore))
        return names, shown.getvalue().splitlines()

    yield snippet
    for store in stores:
        store.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application on a real server; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def entries(folder: Path) -> list[tuple[str, str | None]]:
    lines = (folder / "audit.jsonl").read_text().splitlines()
    return [(entry["what"], entry["who"]) for entry in map(json.loads, lines)]


def test_plugins(run: Run, tmp_path: Path) -> None:
    [snippet] = blocks(DOCUMENT, "Plugins")
    run(snippet)
    assert entries(tmp_path) == [("key.created", "alice")]


def test_the_readme(run: Run, tmp_path: Path) -> None:
    [snippet] = blocks(README, "Plugins")
    run(f"from keysmith import *\n{snippet}")
    assert entries(tmp_path) == [("key.created", "alice")]


def test_audit_trail(run: Run) -> None:
    [snippet] = blocks(DOCUMENT, "Audit trail")
    shown = [json.loads(line) for line in run(snippet)[1] if line]
    assert [entry["what"] for entry in shown] == ["key.created", "key.revoked"]
    section = DOCUMENT.partition("## Audit trail")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| .+ \|$", section, re.MULTILINE) == list(shown[0])


def test_metrics(run: Run) -> None:
    [snippet] = blocks(DOCUMENT, "Metrics")
    names, _ = run(snippet)
    names["engine"].create_key(KeyCreate(name="n"))
    with served(names["app"]) as url, urlopen(f"{url}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        assert 'keysmith_events_total{event="key.created"} 1.0' in answer.read().decode()
    section = DOCUMENT.partition("## Metrics")[2].partition("\n## ")[0]
    names["metrics"].watch(WithCache(Statistics()))
    exposed = re.findall(r"^# TYPE (\w+) ", names["metrics"].exposition()[0].decode(), re.MULTILINE)
    documented = re.findall(r"`(keysmith_\w+)", section)
    assert set(documented) == {name for name in exposed if not name.endswith("_created")}


def test_webhooks_from_end_to_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = blocks(DOCUMENT, "Webhooks")
    monkeypatch.setenv("WEBHOOK_SECRET", Webhooks.new_secret())
    names, _ = run(receiver)
    with served(names["app"]) as url:
        _, shown = run(sender.replace("https://example.com", url))
    assert shown == ["key.created Production None", "key.revoked Production contract ended"]


def test_one_of_your_own(run: Run) -> None:
    pager, ticker = blocks(DOCUMENT, "One of your own")
    assert run(pager)[1] == ["A secret of Production was used that alice had rotated out"]
    assert run(ticker)[1] == ["INFO key.created acme", "WARNING key.suspended acme"]


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
