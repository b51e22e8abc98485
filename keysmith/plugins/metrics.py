"""Metrics for Prometheus: what happens, how long validations take, how well the cache does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from keysmith.engine import AsyncEngine, Plugin
from keysmith.engine.listeners import renew_after_fork
from keysmith.plugins.events import EVENT_TYPES, VALIDATIONS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

BUCKETS = (
    *(1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
"""Upper bounds in seconds, from one microsecond to one second."""

REFRESH_INTERVAL = 1.0
"""Seconds between two looks at the caches, where it is another process that is scraped."""


class CacheStatistics(Protocol):
    """How well a cache does, since the engine was made."""

    @property
    def hits(self) -> int:
        """Validations that were answered from memory."""

    @property
    def misses(self) -> int:
        """Validations that had to ask the store."""

    @property
    def entries(self) -> int:
        """Secrets that the cache holds now."""


class Caching(Protocol):
    """What has a cache to watch: an engine."""

    def cache_statistics(self) -> CacheStatistics:
        """How well the cache does."""


class Metrics(Plugin):
    """Counts events and measures validations, for Prometheus to scrape.

    - `keysmith_events_total{event}`: events by type, such as `key.revoked`; without validations,
      which the histogram counts.
    - `keysmith_validation_seconds{outcome}`: a histogram, by `ok` or the code of the error.
    - `keysmith_cache_hits_total`, `keysmith_cache_misses_total` and `keysmith_cache_entries`, of
      the engines that are watched.

    No label has a value that a key, a tenant or a request could add to. Needs `prometheus-client`,
    the extra `metrics`. Its multiprocess mode adds up the numbers of several processes.
    """

    inline = True

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """`registry` defaults to one of its own. Raises `ImportError` without the extra."""
        try:
            import prometheus_client  # noqa: PLC0415  an extra
        except ImportError:
            raise ImportError(
                "Metrics needs prometheus-client, the extra `metrics`: install Keysmith with it."
            ) from None
        self._prometheus = prometheus_client
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        """Where the metrics are registered; in multiprocess mode, scrape `exposition()` instead."""
        self._several_processes = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._seconds = prometheus_client.Histogram(
            "keysmith_validation_seconds",
            "How long validations took, by outcome.",
            ["outcome"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._outcomes: dict[str, Histogram] = {}
        events = prometheus_client.Counter(
            "keysmith_events",
            "What has happened to keys and policies.",
            ["event"],
            registry=self.registry,
        )
        for hook, type in EVENT_TYPES.items():
            if type not in VALIDATIONS:
                setattr(self, hook, _counting(events.labels(type)))
        self._caches: _Caches | None = None

    def hears(self, hook: str) -> bool:
        """Every hook that is counted, and how long validations took."""
        return hook in vars(self) or super().hears(hook)

    def on_validation_timed(self, outcome: str, seconds: float) -> None:
        """Observes the time, by outcome."""
        histogram = self._outcomes.get(outcome)
        if histogram is None:
            histogram = self._outcomes[outcome] = self._seconds.labels(outcome)
        histogram.observe(seconds)
        if self._several_processes and self._caches is not None:
            self._caches.refresh_at_times()

    def watch(self, engine: Caching | AsyncEngine) -> None:
        """Exposes how well the engine's cache does, for as long as the engine exists."""
        if isinstance(engine, AsyncEngine):
            engine = engine.engine
        if self._caches is None:
            self._caches = _Caches(self.registry)
        self._caches.watch(engine)

    def exposition(self) -> tuple[bytes, str]:
        """What to answer Prometheus with: the text, and its content type.

        In multiprocess mode these are the numbers of all processes, whichever is asked.
        """
        registry = self.registry
        if self._several_processes:
            from prometheus_client import multiprocess  # noqa: PLC0415  an extra

            if self._caches is not None:
                self._caches.refresh()
            for process in _ended():
                with suppress(FileNotFoundError):  # another one was at it
                    multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
            registry = self._prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = self._prometheus.generate_latest(registry)
        return text, self._prometheus.CONTENT_TYPE_LATEST


def _ended() -> set[int]:
    """The processes that left gauges of the living behind, and live no more."""
    files = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db")
    owners = {file.stem.rpartition("_")[2] for file in files}
    return {int(owner) for owner in owners if owner.isdecimal() and not _lives(int(owner))}


def _lives(process: int) -> bool:
    if sys.platform == "win32":  # pragma: no cover
        return True  # to ask would be to end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _counting(counter: Counter) -> Callable[..., None]:
    def count(*_: object) -> None:
        counter.inc()

    return count


class _Caches:
    """The caches of the engines that are watched, added up.

    The numbers are copied into metrics, as only those are shared among processes: before each
    scrape of this process, and now and then where it is another that is scraped.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge  # noqa: PLC0415  an extra

        self._seen: WeakKeyDictionary[Caching, tuple[int, int]] = WeakKeyDictionary()
        self._next_refresh = 0.0
        self.renew()
        renew_after_fork(self)
        registry.register(self)  # before the metrics, as they are collected in this order
        self._hits = Counter(
            "keysmith_cache_hits", "Validations answered from memory.", registry=registry
        )
        self._misses = Counter(
            "keysmith_cache_misses", "Validations that had to ask the store.", registry=registry
        )
        self._entries = Gauge(
            "keysmith_cache_entries",
            "Secrets that the caches hold.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def renew(self) -> None:
        self._lock = Lock()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        """Called when the registry is scraped; what there is to collect, the metrics have."""
        self.refresh()
        return []

    def watch(self, engine: Caching) -> None:
        with self._lock:
            self._seen.setdefault(engine, (0, 0))

    def refresh_at_times(self) -> None:
        """Never waits: a validation is under way."""
        if time.monotonic() >= self._next_refresh and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()

    def refresh(self) -> None:
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        self._next_refresh = time.monotonic() + REFRESH_INTERVAL
        entries = 0
        for engine, (hits, misses) in list(self._seen.items()):
            now = engine.cache_statistics()
            self._hits.inc(now.hits - hits)
            self._misses.inc(now.misses - misses)
            self._seen[engine] = (now.hits, now.misses)
            entries += now.entries
        self._entries.set(entries)
