"""What tests of usage share: keys, requests, and a buffer that hurries or waits."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest

from keysmith import (
    Engine,
    KeyCreate,
    Period,
    SqliteStore,
    UsageCreate,
)
from keysmith.engine import buffer
from keysmith.engine.hooks import Hooks
from keysmith.plugins import Webhooks, webhooks

FOREVER = timedelta(seconds=30)
BRIEF = timedelta(milliseconds=20)

PROMPT = 60.0
"""Seconds in which what should happen at once has happened, on a busy machine, too."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written because time has passed."""
    monkeypatch.setattr(buffer, "INTERVAL", 3600.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any time has to pass."""
    monkeypatch.setattr(buffer, "INTERVAL", 0.005)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins are waited for until they are done: a busy machine may pause for seconds."""
    for wait in (Hooks.flush, Hooks.close, Webhooks.flush):
        monkeypatch.setattr(wait, "__defaults__", (2 * PROMPT,))
    monkeypatch.setattr(webhooks, "PATIENCE", 2 * PROMPT)


def a_key(engine: Engine, **fields: Any) -> str:
    return engine.create_key(KeyCreate(name="production", **fields)).key.id


def request(key_id: str, **fields: Any) -> UsageCreate:
    return UsageCreate(
        **{"key_id": key_id, "endpoint": "/users", "method": "GET", "status_code": 200, **fields}
    )


def writer(engine: Engine) -> threading.Thread | None:
    return engine._context.usage._thread


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PROMPT
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def exact(latencies: Sequence[float], fraction: float) -> float:
    """The least of them that so large a part of them does not exceed."""
    enough = Fraction(str(fraction)) * len(latencies)
    return next(each for place, each in enumerate(sorted(latencies), 1) if place >= enough)


def assert_adds_up(store: SqliteStore) -> None:
    """That days and months are exactly what the records say."""
    records = store.usages.query()
    for period in Period:
        counted = Counter((r.key_id, period.start(r.created_at)) for r in records)
        failed = Counter((r.key_id, period.start(r.created_at)) for r in records if r.failed)
        found = store.usages.aggregate(period=period)
        assert {(a.key_id, a.period_start): a.request_count for a in found} == counted
        for each in found:
            members = sorted(
                r.latency_ms
                for r in records
                if r.key_id == each.key_id and period.start(r.created_at) == each.period_start
            )
            assert each.error_count == failed[each.key_id, each.period_start]
            assert math.isclose(each.total_latency, sum(members), abs_tol=1e-9)
            for fraction, percentile in ((0.5, each.p50_latency), (0.99, each.p99_latency)):
                assert percentile == pytest.approx(exact(members, fraction), rel=0.02, abs=1e-6)
            assert each.tenant_id == store.keys.get(each.key_id).tenant_id
    for record in records:
        assert record.tenant_id == store.keys.get(record.key_id).tenant_id
