"""The pytest plugin: a store, an engine with a clock to turn, keys, and clients that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from keysmith.engine import CreatedKey, Engine
from keysmith.extras import from_extra
from keysmith.models import KeyCreate
from keysmith.stores import SqliteStore
from keysmith.testing.callables import IssueKey, KeyedClient
from keysmith.testing.clock import TurnableClock

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.fixture
def keysmith_store() -> Iterator[SqliteStore]:
    """A migrated store in memory, of the test alone."""
    with SqliteStore(":memory:") as store:
        store.migrate()
        yield store


@pytest.fixture
def keysmith_clock() -> TurnableClock:
    """The time of `keysmith_engine`: it stands still until the test turns it."""
    return TurnableClock()


@pytest.fixture
def keysmith_engine(keysmith_store: SqliteStore, keysmith_clock: TurnableClock) -> Iterator[Engine]:
    """An engine on `keysmith_store`, by `keysmith_clock`."""
    with Engine(keysmith_store, clock=keysmith_clock) as engine:
        yield engine


@pytest.fixture
def keysmith_key(keysmith_engine: Engine) -> IssueKey:
    """Issues a key: `keysmith_key(scopes=["users:read"], tenant_id="acme", …)`.

    Takes the fields of `KeyCreate`; scopes that are unknown are declared.
    """

    def issue(**fields: Any) -> CreatedKey:
        data = KeyCreate(**{"name": "test"} | fields)
        keysmith_engine.ensure_scopes(data.scopes, tenant_id=data.tenant_id)
        return keysmith_engine.create_key(data)

    return issue


@pytest.fixture
def keysmith_client(keysmith_key: IssueKey) -> KeyedClient:
    """A client with a key: `keysmith_client(app, scopes=["users:read"])`.

    `app` is an ASGI application that validates with `keysmith_engine`; the rest is as for
    `keysmith_key`.
    """

    def client(app: Any, **fields: Any) -> TestClient:
        with from_extra("fastapi"):
            from starlette.testclient import TestClient  # noqa: PLC0415  for this fixture alone

        issued = keysmith_key(**fields)
        return TestClient(app, headers={"Authorization": f"Bearer {issued.raw_key}"})

    return client
