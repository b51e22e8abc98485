"""`keysmith serve`: real processes, started and stopped as an operator would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keysmith import Engine, SqliteStore
from tests.serving import client

ROOT_KEY = re.compile(r"sk_live_\w{49}")


class Served:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def logged(self) -> str:
        return (self.folder / "log").read_text()

    def url(self) -> str:
        deadline = time.monotonic() + 30
        while True:
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", self.logged())
            if found and self.logged().count("Application startup complete") >= 1:
                return found[1]
            assert self.process.poll() is None, self.logged()
            assert time.monotonic() < deadline, self.logged()
            time.sleep(0.02)


@contextmanager
def keysmith_serve(folder: Path, *options: str) -> Iterator[Served]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "keysmith", "serve", "--port", "0", *options],
            cwd=folder,
            env={**os.environ, "KEYSMITH_DATABASE_URL": "sqlite:///served.db"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield Served(process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize("workers", [1, 2])
def test_serve(tmp_path: Path, workers: int) -> None:
    with keysmith_serve(tmp_path, "--workers", str(workers)) as served:
        url = served.url()
        [root_key] = ROOT_KEY.findall(served.logged())
        with client(url, root_key) as api:
            assert api.get("/healthz").status_code == 200
            made = api.post("/v1/keys", json={"name": "n"}).json()
            for _ in range(4):
                answer = api.post("/v1/keys/validate", json={"raw_key": made["raw_key"]})
                assert answer.json()["key"] == made["key"]
            api.get("/v1/keys", headers={"Authorization": "Bearer sk_test_wrong"})
    log = served.logged()
    assert log.count(root_key) == 1
    assert made["raw_key"] not in log
    assert "sk_test_wrong" not in log
    assert "GET /healthz" in log
    assert "Finished server process" in log or "Application shutdown complete" in log
    assert "Traceback" not in log
    assert not (tmp_path / "served.db-wal").exists(), "closed, so the log is in the database"
    with Engine(SqliteStore(tmp_path / "served.db")) as engine:
        assert engine.validate_key(root_key, scopes=["keysmith"]).key.name == "root"


def test_the_second_start_has_no_key_to_show(tmp_path: Path) -> None:
    logs = []
    for _ in range(2):
        with keysmith_serve(tmp_path) as served:
            served.url()
        logs.append(served.logged())
    assert [len(ROOT_KEY.findall(log)) for log in logs] == [1, 0]
