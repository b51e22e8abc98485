"""`keysmith requests list`: the records that there are, and no others, page by page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from tests.command_line import Run

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def keys(run: Run, database: Path) -> dict[str, str]:
    """The IDs of two keys, by their tenants: three requests of the one, and one of the other."""
    found = {}
    with Engine(SqliteStore(database)) as engine:
        for tenant, times in (("acme", 3), ("other", 1)):
            data = KeyCreate(name="n", tenant_id=tenant, app_id=f"{tenant}'s")
            found[tenant] = engine.create_key(data).key.id
            for hour in range(times):
                engine.record_usage(
                    UsageCreate(
                        key_id=found[tenant],
                        endpoint=f"/{tenant}/{hour}",
                        method="GET",
                        status_code=200,
                        created_at=NOON + timedelta(hours=hour),
                    )
                )
    return found


def listed(run: Run, *options: str) -> list[Any]:
    result = run("requests list --json", *options)
    assert result.exit_code == 0, result.stderr
    return [record["endpoint"] for record in json.loads(result.stdout)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["/acme/2", "/acme/1", "/acme/0", "/other/0"]),
        (["--tenant", "other"], ["/other/0"]),
        (["--app", "other's"], ["/other/0"]),
        (["--key", "acme", "--limit", "2"], ["/acme/2", "/acme/1"]),
        (["--since", "2026-03-01T14:00:00+01:00", "--until", "2026-03-01T14:00Z"], ["/acme/1"]),
    ],
)
def test_which_are_listed(
    run: Run, keys: dict[str, str], options: list[str], expected: list[str]
) -> None:
    found = listed(run, *(keys.get(word, word) if word == "acme" else word for word in options))
    assert sorted(found) == sorted(expected)
    assert found[0] == expected[0]


def test_page_by_page(run: Run, keys: dict[str, str]) -> None:
    seen: list[str] = []
    after: list[str] = []
    while page := json.loads(run("requests list --json --limit 1", *after).stdout):
        seen.extend(record["endpoint"] for record in page)
        after = ["--after", page[-1]["id"]]
    assert seen == listed(run)
    assert len(seen) == 4


def test_for_people(run: Run, keys: dict[str, str]) -> None:
    heading, *rows = run("requests list --key", keys["acme"]).stdout.splitlines()
    assert heading.split()[0] == "ID"
    assert ["/acme/2" in rows[0], "GET" in rows[0], "200" in rows[0]] == [True] * 3
    assert keys["acme"] not in rows[0], "which was asked for"
    assert keys["other"] in run("requests list").stdout
    nothing = run("requests list --until 2000-01-01T00:00Z")
    assert (nothing.stdout, nothing.exit_code) == ("", 0)
    assert "no such requests" in nothing.stderr


def test_what_is_refused(run: Run, keys: dict[str, str]) -> None:
    assert run("requests list --key", "akey_" + "0" * 26).exit_code == 1
    for wrong in ("yesterday", "2026-03-01T12:00:00", "9999-12-31T23:00:00-05:00"):
        result = run("requests list --since", wrong)
        assert result.exit_code == 2
        assert "must be a time with a time zone" in result.stderr
