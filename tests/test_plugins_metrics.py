"""Metrics: the numbers that Prometheus reads, from one process and from several."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keysmith import (
    AsyncEngine,
    Engine,
    InvalidKeyError,
    KeyCreate,
    KeyUpdate,
    PolicyCreate,
    SqliteStore,
)
from keysmith.engine import Limits, buffer, validation
from keysmith.plugins import Metrics
from keysmith.plugins import metrics as metrics_module
from keysmith.plugins.events import EVENT_TYPES, VALIDATIONS
from tests.conftest import TurnableClock
from tests.plugin_helpers import HAPPENED, everything_happens

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def scrape(metrics: Metrics) -> Samples:
    return samples(metrics.exposition()[0].decode())


def value(scraped: Samples, name: str, **labels: str) -> float:
    return scraped[name, frozenset(labels.items())]


class TestEvents:
    def test_each_is_counted_once(self, memory: SqliteStore, clock: TurnableClock) -> None:
        metrics = Metrics()
        everything_happens(Engine(memory, plugins=[metrics], clock=clock), clock)
        happened = Counter(HAPPENED)
        counted = {
            dict(labels)["event"]: number
            for (name, labels), number in scrape(metrics).items()
            if name == "keysmith_events_total"
        }
        assert counted == {
            type: happened[type] for type in EVENT_TYPES.values() if type not in VALIDATIONS
        }

    def test_they_are_there_before_they_happen(self) -> None:
        scraped = scrape(Metrics())
        assert value(scraped, "keysmith_events_total", event="key.reused") == 0

    def test_no_label_grows_with_keys_or_tenants(
        self, memory: SqliteStore, clock: TurnableClock
    ) -> None:
        metrics = Metrics()
        engine = Engine(memory, plugins=[metrics], clock=clock)
        everything_happens(engine, clock)
        series = set(scrape(metrics))
        for tenant in ("one", "two", "three"):
            bound = engine.for_tenant(tenant)
            bound.validate_key(bound.create_key(KeyCreate(name=tenant)).raw_key)
        assert set(scrape(metrics)) == series
        labels = {name for _, labels in series for name, _ in labels}
        assert labels == {"event", "outcome", "le"}


class TestValidations:
    def test_a_histogram_by_outcome(
        self, memory: SqliteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quarters = count()
        monkeypatch.setattr(validation, "perf_counter", lambda: next(quarters) / 4)
        metrics = Metrics()
        engine = Engine(memory, plugins=[metrics])
        raw_key = engine.create_key(KeyCreate(name="n")).raw_key
        for _ in range(3):
            engine.validate_key(raw_key)
        with pytest.raises(InvalidKeyError):
            engine.validate_key("nope")
        scraped = scrape(metrics)
        name = "keysmith_validation_seconds"
        assert value(scraped, f"{name}_count", outcome="ok") == 3
        assert value(scraped, f"{name}_count", outcome="invalid_key") == 1
        assert value(scraped, f"{name}_sum", outcome="ok") == 3 / 4

    def test_buckets_from_a_microsecond_to_a_second(self) -> None:
        metrics = Metrics()
        for seconds in (0.9e-6, 1e-6, 1.1e-6, 0.003, 0.9, 1.1):
            metrics.on_validation_timed("ok", seconds)
        buckets = {
            float(dict(labels)["le"]): number
            for (name, labels), number in scrape(metrics).items()
            if name == "keysmith_validation_seconds_bucket"
        }
        bounds = sorted(buckets)
        assert (bounds[0], bounds[-2:]) == (1e-6, [1.0, float("inf")])
        assert len(bounds) == 20
        assert buckets[1e-6] == 2
        assert buckets[2.5e-6] == buckets[2.5e-3] == 3
        assert buckets[5e-3] == buckets[0.5] == 4
        assert (buckets[1.0], buckets[float("inf")]) == (5, 6)


class TestRegistry:
    def test_one_of_its_own(self) -> None:
        assert Metrics().registry is not Metrics().registry
        assert scrape(Metrics())
        assert "keysmith" not in prometheus_client.generate_latest().decode()

    @pytest.mark.parametrize("auto_describe", [True, False])
    def test_one_that_is_given(self, memory: SqliteStore, auto_describe: bool) -> None:
        registry = prometheus_client.CollectorRegistry(auto_describe=auto_describe)
        metrics = Metrics(registry)
        metrics.watch(engine := WithCache(Statistics(hits=2)))
        Engine(memory, plugins=[metrics]).create_key(KeyCreate(name="n"))
        assert metrics.registry is registry
        text = prometheus_client.generate_latest(registry).decode()
        assert value(samples(text), "keysmith_events_total", event="key.created") == 1
        assert value(samples(text), "keysmith_cache_hits_total") == 2
        assert metrics.exposition() == (text.encode(), prometheus_client.CONTENT_TYPE_LATEST)
        del engine


@dataclass
class Statistics:
    hits: int = 0
    misses: int = 0
    entries: int = 0


class WithCache:
    """As much of an engine as there is to watch."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def cache_statistics(self) -> Statistics:
        return self.statistics


class TestCaches:
    @staticmethod
    def numbers(metrics: Metrics) -> tuple[float, float, float]:
        scraped = scrape(metrics)
        return (
            value(scraped, "keysmith_cache_hits_total"),
            value(scraped, "keysmith_cache_misses_total"),
            value(scraped, "keysmith_cache_entries"),
        )

    def test_none_is_watched_unless_asked(self) -> None:
        assert "keysmith_cache" not in Metrics().exposition()[0].decode()

    def test_what_a_scrape_sees_is_of_this_moment(self) -> None:
        metrics = Metrics()
        statistics = Statistics(hits=5, misses=2, entries=2)
        engine = WithCache(statistics)
        metrics.watch(engine)
        assert self.numbers(metrics) == (5, 2, 2)
        statistics.hits, statistics.misses, statistics.entries = 7, 3, 1
        assert self.numbers(metrics) == (7, 3, 1)
        metrics.watch(engine)
        assert self.numbers(metrics) == (7, 3, 1)

    def test_several_are_added_up_and_counters_outlive_them(self) -> None:
        metrics = Metrics()
        lasting = WithCache(Statistics(hits=1, misses=1, entries=1))
        passing = WithCache(Statistics(hits=10, misses=10, entries=10))
        metrics.watch(lasting)
        metrics.watch(passing)
        assert self.numbers(metrics) == (11, 11, 11)
        del passing
        gc.collect()
        lasting.statistics.hits += 1
        assert self.numbers(metrics) == (12, 11, 1)

    def test_those_of_an_engine_for_event_loops(self, memory: SqliteStore) -> None:
        metrics = Metrics()
        engine = AsyncEngine(Engine(memory))
        metrics.watch(engine)
        engine.engine.validate_key(engine.engine.create_key(KeyCreate(name="n")).raw_key)
        assert self.numbers(metrics) == (0, 1, 1)

    def test_a_validation_that_waits_counts_when_it_is_answered(
        self, memory: SqliteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(buffer, "INTERVAL", 3600.0)
        metrics, limiter = Metrics(), Stalling()
        engine = AsyncEngine(Engine(memory, rate_limiter=limiter))
        metrics.watch(engine)

        async def test() -> None:
            policy = await engine.create_policy(PolicyCreate(name="p", daily_quota=100))
            created = await engine.create_key(KeyCreate(name="n", policy_id=policy.id))
            for _ in range(3):
                await engine.validate_key(created.raw_key)
            assert self.numbers(metrics) == (2, 1, 1)
            limiter.flows.clear()
            await engine.update_key(created.key.id, KeyUpdate(name="changed"))
            validations = [
                asyncio.create_task(engine.validate_key(created.raw_key)) for _ in range(5)
            ]
            await asyncio.sleep(0)
            assert self.numbers(metrics) == (2, 1, 1)
            limiter.flows.set()
            await asyncio.gather(*validations)
            assert self.numbers(metrics) == (6, 2, 1)

        asyncio.run(test())


class Stalling:
    """A limiter that may not answer for a while."""

    def __init__(self) -> None:
        self.flows = threading.Event()
        self.flows.set()

    def take(self, key_id: str, limits: Limits, cost: int) -> None:
        self.flows.wait()


class TestSeveralProcesses:
    """prometheus_client's multiprocess mode, as workers of a server use it."""

    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        shared = tmp_path / "shared"
        shared.mkdir()
        return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared)}

    def test_any_of_them_answers_for_all(self, environment: dict[str, str], tmp_path: Path) -> None:
        def run(script: str) -> str:
            return subprocess.run(
                [sys.executable, "-c", script],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout

        with SqliteStore(tmp_path / "keys.db") as store:
            store.migrate()
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER], cwd=tmp_path, env=environment)
            for _ in range(2)
        ]
        assert [worker.wait(120) for worker in workers] == [0, 0]
        scraped = samples(run(SCRAPE))
        # Two workers, each of which has forked one more; the fifth process only scrapes.
        assert value(scraped, "keysmith_events_total", event="key.created") == 4
        assert value(scraped, "keysmith_validation_seconds_count", outcome="ok") == 12
        bucket = "keysmith_validation_seconds_bucket"
        assert value(scraped, bucket, outcome="ok", le="+Inf") == 12
        assert value(scraped, "keysmith_cache_hits_total") == 14
        assert value(scraped, "keysmith_cache_misses_total") == 0
        held = ("keysmith_cache_entries", frozenset())
        assert held not in scraped, "whoever held any has ended"


WORKER = """
import os
from keysmith import Engine, KeyCreate, SqliteStore
from keysmith.plugins import Metrics, metrics as module

module.REFRESH_INTERVAL = 0

class Statistics:
    hits = misses = 0
    entries = 1

class WithCache:
    def cache_statistics(self):
        return Statistics

def work():
    engine = Engine(SqliteStore("keys.db"), plugins=[metrics])
    raw_key = engine.create_key(KeyCreate(name="n")).raw_key
    for _ in range(3):
        Statistics.hits += 1
        engine.validate_key(raw_key)
    engine.close()

metrics = Metrics()
cached = WithCache()
metrics.watch(cached)
work()
child = os.fork()
if child == 0:
    work()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
Statistics.hits += 1
metrics.exposition()
"""

SCRAPE = """
from keysmith.plugins import Metrics
print(Metrics().exposition()[0].decode())
"""


def test_a_worker_that_is_not_scraped_looks_at_its_caches_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = [100.0]
    monkeypatch.setattr(metrics_module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    statistics = Statistics(hits=1)
    metrics = Metrics()
    engine = WithCache(statistics)
    metrics.watch(engine)
    metrics._several_processes = True
    caches = metrics._caches
    assert caches is not None

    def seen_at(moment: float) -> float:
        seconds[0] = moment
        metrics.on_validation_timed("ok", 0.1)
        return caches._hits._value.get()

    assert seen_at(100.0) == 1
    statistics.hits = 5
    assert seen_at(100.9) == 1
    assert seen_at(101.0) == 5
    statistics.hits = 9
    with caches._lock:  # somebody else is looking, which is not waited for
        assert seen_at(102.0) == 5
    assert seen_at(102.0) == 9


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
from keysmith.plugins import AuditLog, Metrics, Webhooks
try:
    Metrics()
except ImportError as error:
    print(error)
"""


def test_without_the_extra_it_says_what_to_install() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True
    ).stdout
    assert shown == (
        "Metrics needs prometheus-client, the extra `metrics`: install Keysmith with it.\n"
    )
