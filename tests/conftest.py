"""What the tests share: a clock to turn, and stores of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from keysmith import CreatedKey, Engine, KeyCreate, Plugin, SqliteStore
from keysmith.testing import TurnableClock

pytest_plugins = [
    "keysmith.testing.plugin",
    "pytester",
    "tests.command_line",
    "tests.adversity",
    "tests.recording",
]

settings.register_profile(
    "keysmith",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("keysmith")

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


class Recorder(Plugin):
    """Notes every hook that fires, with its arguments, except how long validations took."""

    inline = True

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[object, ...]]] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def _recording(name: str) -> Callable[..., None]:
    def hook(self: Recorder, *arguments: object) -> None:
        self.events.append((name, arguments))

    return hook


for _name in [name for name in vars(Plugin) if name.startswith("on_") and "timed" not in name]:
    setattr(Recorder, _name, _recording(_name))


def create(engine: Engine, name: str = "n", **fields: Any) -> CreatedKey:
    """A key of which only what is given matters."""
    return engine.create_key(KeyCreate(name=name, **fields))


def mistyped(raw_key: str) -> str:
    """The key with another last character: its checksum is wrong for sure."""
    return raw_key[:-1] + ("a" if raw_key[-1] != "a" else "b")


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock(START)


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteStore]:
    """A migrated store of each kind. The next backend is one more parameter."""
    target = {"file": tmp_path / "keys.db", "memory": ":memory:"}[request.param]
    with SqliteStore(target) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def memory() -> Iterator[SqliteStore]:
    with SqliteStore(":memory:") as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(memory: SqliteStore, clock: TurnableClock, recorder: Recorder) -> Engine:
    return Engine(memory, clock=clock, plugins=[recorder])
