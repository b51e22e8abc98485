"""`keysmith usage`: a plot that adds up, of the right keys and the right time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keysmith import Engine, KeyCreate, Period, SqliteStore, UsageCreate
from keysmith.cli.app import app
from tests.conftest import START as TODAY


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("keysmith.cli.usage.utc_now", lambda: TODAY)
    path = tmp_path / "keys.db"
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        for tenant, days in (("acme", (0, 0, 2)), ("other", (0, 400))):
            data = KeyCreate(name="n", tenant_id=tenant, app_id=f"{tenant}'s")
            key = engine.create_key(data).key
            for number, day in enumerate(days):
                engine.record_usage(
                    UsageCreate(
                        key_id=key.id,
                        endpoint="/",
                        method="GET",
                        status_code=500 if number == 0 else 200,
                        latency_ms=10,
                        created_at=TODAY - timedelta(days=day),
                    )
                )
    return path


def run(path: Path, *arguments: str) -> tuple[int, str, str]:
    url = f"sqlite:///{path}"
    result = CliRunner().invoke(app, ["usage", "--database-url", url, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_plot_shows_each_day_and_what_failed(path: Path) -> None:
    code, shown, _ = run(path)
    assert code == 0
    _, *lines = [line.split() for line in shown.splitlines()]
    assert [line[:3] for line in lines] == [
        [f"{TODAY - timedelta(days=2):%Y-%m-%d}", "1", "0"],
        [f"{TODAY - timedelta(days=1):%Y-%m-%d}", "0", "0"],
        [f"{TODAY:%Y-%m-%d}", "3", "2"],
    ]
    assert [line[5:] for line in lines] == [["█" * 16], [], ["█" * 16 + "▒" * 32]]


def test_months_and_json_of_one_tenant(path: Path) -> None:
    _, shown, _ = run(path, "--tenant", "acme", "--period", "monthly", "--json")
    found = json.loads(shown)
    assert sum(each["request_count"] for each in found) == 3
    assert found[-1]["period_start"] <= f"{Period.MONTHLY.start(TODAY):%Y-%m-%dT%H:%M:%SZ}"
    _, shown, _ = run(path, "--tenant", "acme", "--period", "monthly")
    assert f"{TODAY:%Y-%m} " in shown


def test_how_far_back(path: Path) -> None:
    code, shown, told = run(path, "--tenant", "nobody")
    assert (code, shown) == (0, "")
    assert "Nothing was recorded since" in told
    _, shown, _ = run(path, "--tenant", "other", "--last", "500d", "--json")
    assert len(json.loads(shown)) == 2
    _, shown, _ = run(path, "--tenant", "other", "--last", "7d", "--json")
    assert len(json.loads(shown)) == 1
    with Engine(SqliteStore(path)) as engine:
        [key, *_] = engine.list_keys()
        ahead = datetime.max.replace(tzinfo=UTC)
        engine.record_usage(
            UsageCreate(
                key_id=key.id, endpoint="/", method="GET", status_code=200, created_at=ahead
            )
        )
    for period in ("daily", "monthly"):
        _, shown, _ = run(path, "--period", period)
        assert "9999" not in shown, "that is yet to come"
    _, shown, _ = run(path, "--since", "9999-12-01T00:00Z", "--until", "9999-12-31T23:59Z")
    assert [line.split()[0] for line in shown.splitlines()] == ["Day", "9999-12-31"]
    _, shown, _ = run(path, "--app", "other's", "--last", "7d", "--json")
    assert [day["request_count"] for day in json.loads(shown)] == [1]


def test_each_key_by_itself(path: Path) -> None:
    _, shown, _ = run(path, "--by-key", "--json")
    found = json.loads(shown)
    assert [each["request_count"] for each in found if each["tenant_id"] == "acme"] == [2, 1]
    assert sum(each["request_count"] for each in found) == 4
    _, shown, _ = run(path, "--by-key", "--tenant", "acme", "--limit", "1")
    [_, line] = shown.splitlines()
    assert line.split()[2:4] == ["2", "1"]
    code, shown, told = run(path, "--by-key", "--tenant", "nobody")
    assert (code, shown) == (0, "")
    assert "Nothing was recorded" in told
    code, _, told = run(path, "--limit", "1")
    assert code == 2
    assert "give --by-key" in told


def test_from_when_until_when(path: Path) -> None:
    long_ago = f"{TODAY - timedelta(days=500):%Y-%m-%dT%H:%M:%SZ}"
    midnight = f"{TODAY:%Y-%m-%dT00:00:00Z}"
    _, shown, _ = run(path, "--since", long_ago, "--until", midnight, "--json")
    assert [each["request_count"] for each in json.loads(shown)] == [1, 1]
    assert run(path, "--since", long_ago, "--last", "7d")[0] == 2
    code, _, told = run(path, "--last", "9999999d")
    assert (code, "before the year 1" in told) == (2, True)


def test_an_unknown_key_is_refused(path: Path) -> None:
    with SqliteStore(path) as store:
        [key] = store.keys.list(tenant_id="acme")
    assert json.loads(run(path, "--key", key.id, "--json")[1])[-1]["error_count"] == 1
    assert run(path, "--key", "akey_" + "0" * 26)[0] == 1
