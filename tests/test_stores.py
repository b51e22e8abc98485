"""Every kind of store keeps the contract, and what the contract implies holds for any input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from keysmith import Scope, SqliteStore, Store
from keysmith.stores import scopes
from keysmith.testing.contract import *  # noqa: F403
from keysmith.testing.contract.samples import START, a_key, usage
from tests.recording import exact

segments = st.lists(st.sampled_from(["a", "b", "a.", "a-", "b_"]), min_size=1, max_size=3)
names = segments.map(":".join)


def test_sqlite_store_is_a_store(store: SqliteStore) -> None:
    contract: Store = store
    contract.ping()
    contract.migrate()
    assert contract.keys.list() == []


def test_scopes_below_others_are_found_in_postgresqls_words_too() -> None:
    statement = str(scopes._BELOW.compile(dialect=postgresql.dialect()))
    assert "json_array_elements_text(CAST(" in statement
    assert "json_each" not in statement


@given(
    st.dictionaries(names, st.none() | names, min_size=1, max_size=8),
    st.sets(names, min_size=1, max_size=3),
)
def test_below_agrees_with_a_plain_search(
    memory: SqliteStore, parents: dict[str, str | None], seed: set[str]
) -> None:
    for scope in memory.scopes.list():
        memory.scopes.delete(scope.id)
    for name, parent in parents.items():
        memory.scopes.create(Scope(name=name, parent=parent))
    granted = set(seed)
    while True:
        more = {
            name
            for name, parent in parents.items()
            if parent in granted or any(name.startswith(f"{above}:") for above in granted)
        }
        if more <= granted:
            break
        granted |= more
    assert list(memory.scopes.below("default", seed)) == sorted(granted & parents.keys())


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=300), st.integers(1, 5))
def test_percentiles_are_within_two_percent(
    memory: SqliteStore, latencies: list[float], batches: int
) -> None:
    key = a_key(memory)
    for batch in range(batches):
        memory.usages.record_batch(
            [usage(key, latency_ms=value, created_at=START) for value in latencies[batch::batches]]
        )
    [day] = memory.usages.aggregate(key_id=key.id)
    assert day.request_count == len(latencies)
    assert day.total_latency == pytest.approx(sum(latencies))
    for fraction, found in ((0.5, day.p50_latency), (0.99, day.p99_latency)):
        assert found == pytest.approx(exact(latencies, fraction), rel=0.02, abs=1e-6)
