"""`keysmith serve` with several processes on one file: what is granted is counted, and once."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from keysmith import CreatedKey, Engine, KeyCreate, PolicyCreate, SqliteStore
from tests.test_server import Served, keysmith_serve

CLIENTS = 8
"""Threads that ask, each on a connection of its own."""


class Answer(NamedTuple):
    """What became of a request."""

    path: str
    """What it told of itself; no two tell the same."""
    status: int | None
    """`None` where the connection ended without an answer."""
    code: str | None


class Clients:
    """Have one key validated, as services elsewhere would."""

    def __init__(self, served: Served, workers: int, raw_key: str) -> None:
        self._address = urlsplit(served.url(workers)).netloc
        self._root_key = served.root_key()
        self._raw_key = raw_key
        self.answers: list[Answer] = []

    def ask(self, paths: Iterator[int]) -> None:
        """Each asks again and again, until there are no paths any more, or no server."""
        with ThreadPoolExecutor(CLIENTS) as threads:
            for client in [threads.submit(self._ask, paths) for _ in range(CLIENTS)]:
                client.result()

    def _ask(self, paths: Iterator[int]) -> None:
        headers = {
            "Authorization": f"Bearer {self._root_key}",
            "Content-Type": "application/json",
        }
        connection = http.client.HTTPConnection(self._address, timeout=60)
        for number in paths:
            path = f"/{number}"
            asked = json.dumps({"raw_key": self._raw_key, "path": path, "method": "GET"})
            try:
                connection.request("POST", "/v1/keys/validate", asked, headers)
                answer = connection.getresponse()
                document = json.load(answer)
            except (OSError, http.client.HTTPException):
                self.answers.append(Answer(path, None, None))
                break
            self.answers.append(Answer(path, answer.status, document.get("code")))
        connection.close()


def create_key(folder: Path, daily_quota: int = 0) -> CreatedKey:
    with Engine(SqliteStore(folder / "served.db")) as engine:
        engine.store.migrate()
        policy = engine.create_policy(PolicyCreate(name="trial", daily_quota=daily_quota))
        return engine.create_key(KeyCreate(name="customer", policy_id=policy.id))


def recorded_paths(folder: Path, key_id: str) -> list[str]:
    """Of the requests that the database tells of, once the server has gone."""
    with Engine(SqliteStore(folder / "served.db")) as engine:
        records = engine.query_usage(key_id=key_id)
        assert {(record.method, record.status_code) for record in records} == {("GET", 200)}
        assert sum(day.request_count for day in engine.aggregate_usage(key_id=key_id)) == len(
            records
        )
    return [record.endpoint for record in records]


def assert_a_quota_is_exact(folder: Path, workers: int, requests: int, quota: int) -> float:
    """Sends more requests than the quota grants; gives how many were answered in a second."""
    day = datetime.now(UTC).date()
    folder.mkdir()
    created = create_key(folder, quota)
    with keysmith_serve(folder, "--workers", str(workers)) as served:
        clients = Clients(served, workers, created.raw_key)
        began = time.perf_counter()
        clients.ask(iter(range(requests)))
        seconds = time.perf_counter() - began
    if datetime.now(UTC).date() != day:  # a quota for each of them
        return assert_a_quota_is_exact(folder / "again", workers, requests, quota)
    outcomes = Counter((answer.status, answer.code) for answer in clients.answers)
    assert outcomes == {(200, None): quota, (429, "quota_exceeded"): requests - quota}
    granted = {answer.path for answer in clients.answers if answer.status == 200}
    recorded = recorded_paths(folder, created.key.id)
    assert len(recorded) == quota
    assert set(recorded) == granted
    return requests / seconds


def assert_a_stop_loses_nothing(folder: Path, workers: int, requests: int) -> int:
    """Stops the server when so many requests are answered; gives how many were in the end."""
    folder.mkdir()
    created = create_key(folder)
    with keysmith_serve(folder, "--workers", str(workers)) as served:
        clients = Clients(served, workers, created.raw_key)

        def stop() -> None:
            while len(clients.answers) < requests:
                time.sleep(0.001)
            served.process.send_signal(signal.SIGTERM)

        stopping = threading.Thread(target=stop)
        stopping.start()
        clients.ask(count())
        stopping.join()
        assert served.process.wait(60) in {0, -signal.SIGTERM}
    assert "Traceback" not in served.logged()
    answered = {answer.path for answer in clients.answers if answer.status is not None}
    sent = {answer.path for answer in clients.answers}
    recorded = recorded_paths(folder, created.key.id)
    assert {answer.status for answer in clients.answers} == {200, None}
    assert len(set(recorded)) == len(recorded)
    assert answered <= set(recorded) <= sent
    return len(answered)


def test_two_workers_grant_a_quota_and_no_more(tmp_path: Path) -> None:
    assert_a_quota_is_exact(tmp_path / "quota", workers=2, requests=400, quota=150)


@pytest.mark.slow
def test_a_stop_amid_the_load_loses_nothing(tmp_path: Path) -> None:
    for number in range(3):
        assert_a_stop_loses_nothing(tmp_path / str(number), workers=3, requests=500)
