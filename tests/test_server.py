"""`keysmith serve`: real processes, started and stopped as an operator would; and its settings."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import Engine, KeyCreate, PolicyCreate, SqliteStore
from keysmith.cli import main
from keysmith.fastapi.authority import SCOPES
from keysmith.server import Settings, create_app, prepare, require_address
from keysmith.server.app import from_environment
from keysmith.server.logs import JsonFormatter, log_config, without_query
from tests.redis_server import redis_server, with_redis
from tests.serving import client, is_problem, serving

ROOT_KEY = re.compile(r"sk_live_\w{49}")
KEYSMITH = Path(sys.executable).parent / "keysmith"


class Served:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def shown(self) -> str:
        """Standard output."""
        return (self.folder / "out").read_text()

    def logged(self) -> str:
        """Standard error."""
        return (self.folder / "log").read_text()

    def root_key(self) -> str:
        [key] = ROOT_KEY.findall(self.shown())
        return key

    def url(self, workers: int = 1) -> str:
        deadline = time.monotonic() + 120
        while True:
            log = self.logged()
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", log)
            if found and log.count("Application startup complete") >= workers:
                return found[1]
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.02)


@contextmanager
def keysmith_serve(folder: Path, *options: str, **variables: str) -> Iterator[Served]:
    with (folder / "log").open("w") as log, (folder / "out").open("w") as out:
        process = subprocess.Popen(
            [KEYSMITH, "serve", *options],
            cwd=folder,
            env={
                **os.environ,
                "KEYSMITH_DATABASE_URL": "sqlite:///served.db",
                "KEYSMITH_PORT": "0",
                **variables,
            },
            stdout=out,
            stderr=log,
            text=True,
        )
    try:
        yield Served(process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def test_what_is_done_is_noted_by_the_server_and_by_commands(tmp_path: Path) -> None:
    trail = tmp_path / "audit.jsonl"
    with keysmith_serve(tmp_path, "--audit-log", str(trail), "--workers", "2") as served:
        with client(served.url(workers=2), served.root_key()) as api:
            key_id = api.post("/v1/keys", json={"name": "n"}).json()["key"]["id"]
            api.post(f"/v1/keys/{key_id}/rotate")

    def run(*line: str, noting: Path) -> subprocess.CompletedProcess[str]:
        url = f"sqlite:///{tmp_path}/served.db"
        variables = {"KEYSMITH_AUDIT_LOG": str(noting), "KEYSMITH_DATABASE_URL": url}
        return subprocess.run(
            [KEYSMITH, *line],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
        )

    assert run("keys", "revoke", key_id, "--reason", "leaked", noting=trail).returncode == 0
    entries = [json.loads(line) for line in trail.read_text().splitlines()]
    noted = [(each["what"], each["reason"]) for each in entries if each["key_id"] == key_id]
    assert noted == [("key.created", None), ("key.rotated", "manual"), ("key.revoked", "leaked")]
    assert served.root_key() not in trail.read_text()
    assert entries[0]["what"] == "scope.created", "before it served"

    refused = run("keys", "create", "another", noting=tmp_path / "no" / "audit.jsonl")
    assert refused.returncode == 1
    assert "no/audit.jsonl: No such file" in refused.stderr
    with Engine(SqliteStore(tmp_path / "served.db")) as engine:
        assert "another" not in [key.name for key in engine.list_keys()]


def test_serve(tmp_path: Path) -> None:
    foreign_key = "key-of-another-format-" + "x" * 40
    with keysmith_serve(tmp_path) as served:
        url, root_key = served.url(), served.root_key()
        with client(url, root_key) as api:
            assert api.get("/healthz").json() == api.get("/readyz").json() == {"status": "ok"}
            made = api.post("/v1/keys", json={"name": "n"}).json()
            raw_key = made["raw_key"]
            answer = api.post("/v1/keys/validate", json={"raw_key": raw_key})
            assert answer.json()["key"] == made["key"]
            api.get("/v1/keys", headers={"Authorization": "Bearer sk_test_wrong"})
            for path in (f"/v1/keys/{raw_key}", f"/v1/keys?raw_key={raw_key}", f"/{foreign_key}"):
                assert raw_key not in api.get(path).text
            upgrade = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }
            assert api.get(f"/hooks?key={foreign_key}", headers=upgrade).status_code == 404
            metrics = api.get("/metrics")
            assert 'keysmith_events_total{event="key.created"} 1.0' in metrics.text
            assert metrics.headers["content-type"].startswith("text/plain")
        with client(url) as anyone:
            is_problem(anyone.get("/metrics"), 401, "missing_key")
            is_problem(anyone.get("/nowhere"), 404, "http_404")
    log = served.logged()
    for secret in (root_key, raw_key, "sk_test_wrong", foreign_key):
        assert secret not in log
    assert served.shown() == f"Root key: {root_key}\n"
    assert '"GET /v1/keys HTTP/1.1" 422' in log
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert not (tmp_path / "served.db-wal").exists(), "closed, so the log is in the database"
    with Engine(SqliteStore(tmp_path / "served.db")) as engine:
        assert engine.validate_key(root_key, scopes=["keysmith"]).key.name == "root"
        held = {scope.name for scope in engine.list_scopes(tenant_id="keysmith")}
        assert held == set(SCOPES)


def test_several_processes(tmp_path: Path) -> None:
    options = ("--workers", "2", "--log-format", "json", "--metrics", "open")
    (tmp_path / "tmp").mkdir()
    with keysmith_serve(tmp_path, *options, TMPDIR=str(tmp_path / "tmp")) as served:
        url, root_key = served.url(workers=2), served.root_key()

        def post(path: str, **sent: Any) -> Any:
            with client(url, root_key) as api:  # a connection, and so perhaps a process, each
                answer = api.post(path, **sent)
                return answer.status_code, answer.json()

        def create(_: int) -> Any:
            return post("/v1/keys", json={"name": "n"}, headers={"Idempotency-Key": "once"})

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(create, range(12)))
        assert sorted(status for status, _ in answers) == [200] * 11 + [201]
        assert len({body["key"]["id"] for _, body in answers}) == 1
        [raw_key] = {body["raw_key"] for _, body in answers} - {None}
        for _ in range(8):
            assert post("/v1/keys/validate", json={"raw_key": raw_key})[0] == 200
        with client(url) as anyone:
            text = anyone.get("/metrics").text
        counted = re.search(r'validation_seconds_count{outcome="ok"} (\d+)', text)
        assert counted is not None
        assert int(counted[1]) == 12 + 2 * 8, "whichever process is asked, it is all of them"
    lines = [json.loads(line) for line in served.logged().split("\n")[1:-1]]
    requests = [line for line in lines if line["logger"] == "uvicorn.access"]
    assert {(line["method"], line["path"]) for line in requests} == {
        ("POST", "/v1/keys"),
        ("POST", "/v1/keys/validate"),
        ("GET", "/metrics"),
    }
    assert requests[0]["client"].startswith("127.0.0.1:")
    assert {line["status"] for line in requests} == {200, 201}
    assert raw_key not in served.logged()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--metrics", "sometimes"], {}, "metrics"),
        (["--trusted-proxy", "proxy.example"], {}, "trusted_proxies"),
        (["--rate-limiter", "nonsense://u:secret@host"], {}, "such as redis://"),
        ([], {"KEYSMITH_RATE_LIMITER_URL": "redis"}, "such as redis://"),
        (["--rate-limiter", "memory://"], {}, "each process would count by itself"),
        ([], {"KEYSMITH_PORT": "http"}, "port"),
        ([], {"KEYSMITH_DATABASE_URL": "sqlite://"}, "must name a file"),
        ([], {"KEYSMITH_LOG_FORMAT": "xml"}, "log_format"),
    ],
)
def test_wrong_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    variables: dict[str, str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["keysmith", "serve", *options])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert "secret" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def occupied() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def serve_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `serve` where it cannot serve: its exit code, and what it has shown and told."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keysmith", "serve", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(tmp_path: Path, serve_ends: Any, occupied: int, workers: str) -> None:
    code, shown, told = serve_ends("--port", str(occupied), "--workers", workers)
    assert (code, shown) == (1, ""), "no root key is shown"
    assert told == f"Error: 127.0.0.1, port {occupied}: Address already in use.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["host.invalid", "a..b", "x" * 64])
def test_a_host_that_there_is_not(serve_ends: Any, host: str) -> None:
    code, _, told = serve_ends("--host", host)
    assert code == 1
    assert told.startswith(f"Error: {host}, port 8000: ")
    assert told.count("\n") == 1


def test_no_host_stands_for_all_addresses() -> None:
    require_address(Settings(host="", port=0))


def test_a_redis_that_does_not_answer(serve_ends: Any) -> None:
    code, shown, told = serve_ends("--port", "0", "--rate-limiter", "redis://u:secret@127.0.0.1:1")
    assert (code, shown) == (3, ""), "no root key is shown"
    assert told == "Error: Limits are counted in redis, and it does not answer.\n"


def test_a_shared_rate_limiter_takes_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limits", "limits.errors", "limits.storage"):
        monkeypatch.setitem(sys.modules, name, None)
    assert Settings(rate_limiter_url="").rate_limiter_url is None
    with pytest.raises(ValidationError, match="the extra `limits`: install Keysmith with it"):
        Settings(rate_limiter_url="redis://localhost")


@with_redis
def test_servers_on_several_machines_count_together(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Engine(SqliteStore(tmp_path / "a.db")) as engine:
        engine.store.migrate()
        root_key = prepare(engine)
        policy = engine.create_policy(
            PolicyCreate(name="p", rate_limit=2, rate_limit_window="PT1H")
        )
        raw_key = engine.create_key(KeyCreate(name="n", policy_id=policy.id)).raw_key
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    caplog.set_level("DEBUG")
    with ExitStack() as stack:
        with redis_server(tmp_path_factory.mktemp("redis"), password="secret") as uri:
            monkeypatch.setenv("KEYSMITH_RATE_LIMITER_URL", uri)
            clients = []
            for name in "ab":
                monkeypatch.setenv("KEYSMITH_DATABASE_URL", f"sqlite:///{tmp_path}/{name}.db")
                url = stack.enter_context(serving(from_environment()))
                clients.append(stack.enter_context(client(url, root_key)))
            asked = {"raw_key": raw_key}
            for api in clients:
                assert api.post("/v1/keys/validate", json=asked).status_code == 200
            for api in clients:
                answer = api.post("/v1/keys/validate", json=asked)
                is_problem(answer, 429, "rate_limited")
            monkeypatch.setattr(sys, "argv", ["keysmith", "keys", "validate"])
            monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(raw_key.encode())))
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 1, "the command counts with them"
        answer = clients[0].post("/v1/keys/validate", json=asked)
        assert "secret" not in is_problem(answer, 503, "store_unavailable")["detail"]
    assert "secret" not in caplog.text


def test_metrics_can_be_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSMITH_METRICS", "off")
    monkeypatch.setenv("KEYSMITH_DATABASE_URL", f"sqlite:///{tmp_path}/keys.db")
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    with serving(from_environment()) as url, client(url) as anyone:
        is_problem(anyone.get("/metrics"), 404, "http_404")
        assert anyone.get("/readyz").status_code == 200


def test_readiness_is_that_of_the_store(tmp_path: Path) -> None:
    engine = Engine(SqliteStore(tmp_path / "keys.db"))
    engine.store.migrate()
    with serving(create_app(engine, Settings())) as url, client(url) as anyone:
        assert anyone.get("/readyz").status_code == 200
        engine.close()
        is_problem(anyone.get("/readyz"), 503, "store_unavailable")
        assert anyone.get("/healthz").status_code == 200


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        port=9000,
        workers=3,
        rate_limiter_url="redis://localhost/0",
        trusted_proxies=("10.0.0.0/8", "::1"),
        log_format="json",
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert Settings(port=1).port == 1, "a flag wins"
    monkeypatch.setenv("KEYSMITH_TRUSTED_PROXIES", " 10.0.0.1 , 2001:db8::/32,")
    assert Settings().trusted_proxies == ("10.0.0.1/32", "2001:db8::/32")
    with pytest.raises(ValidationError) as raised:
        Settings(database_url="postgresql://u:secret@host", port="secret")  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)
    assert "sqlite" not in repr(settings)


def test_the_root_key_is_made_once(tmp_path: Path) -> None:
    with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
        engine.store.migrate()
        with ThreadPoolExecutor(4) as threads:
            made = [key for key in threads.map(lambda _: prepare(engine), range(8)) if key]
        [root] = made
        result = engine.validate_key(root, scopes=["keysmith:keys:read"])
        assert result.key.tenant_id == "keysmith"
        engine.revoke_key(result.key.id)
        assert prepare(engine) is None, "whoever revokes it wants none"


def test_what_a_log_shows_of_a_path() -> None:
    raw_key = "sk_live_" + "aB3" * 16 + "x"
    assert without_query(f"/v1/keys?raw_key={raw_key}") == "/v1/keys"
    assert without_query("/v1/keys/akey_01m87qex77eq69w6031fysr1fb/rotate").endswith("fb/rotate")
    assert raw_key not in without_query(f"/v1/keys/{raw_key}")
    assert without_query("/" + "k" * 50 + "/x") == "/…/x"


def test_a_log_in_json_keeps_tracebacks_and_no_keys() -> None:
    raw_key = "sk_live_" + "aB3" * 16 + "x"
    error = ValueError(raw_key)
    failure = (ValueError, error, None)
    record = logging.LogRecord(
        "keysmith", logging.ERROR, __file__, 1, "lost %s", (raw_key,), failure
    )
    line = JsonFormatter().format(record)
    document = json.loads(line)
    assert raw_key not in line
    assert document["level"] == "error"
    assert document["message"].startswith("lost sk_live_…")
    assert "ValueError" in document["exception"]
    assert set(log_config(Settings())["loggers"]) == {"uvicorn.access"}
