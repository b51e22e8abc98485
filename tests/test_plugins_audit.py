"""The audit trail: what it says, and that it is there whatever happens to its file."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from keysmith import Engine, InvalidKeyError, KeyCreate, SqliteStore
from keysmith.plugins import AuditLog, Event
from tests.conftest import START, TurnableClock
from tests.plugin_helpers import HAPPENED, everything_happens

pytestmark = pytest.mark.usefixtures("unhurried")

FIELDS = [
    *("when", "what", "who", "key_id", "masked_key", "policy_id", "scope", "tenant_id"),
    *("outcome", "severity", "reason", "code"),
]


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


class TestFile:
    def test_a_life_as_json_lines(
        self, path: Path, memory: SqliteStore, clock: TurnableClock
    ) -> None:
        engine = Engine(memory, plugins=[AuditLog(path, successes=True, clock=clock)], clock=clock)
        secrets = everything_happens(engine, clock)
        engine.close()
        written = entries(path)
        assert [entry["what"] for entry in written] == HAPPENED
        assert all(list(entry) == FIELDS for entry in written)
        for secret in secrets:
            assert secret.split("_")[-1] not in path.read_text()

    def test_an_entry(self, path: Path, memory: SqliteStore, clock: TurnableClock) -> None:
        engine = Engine(memory, plugins=[AuditLog(path, clock=clock)])
        created = engine.create_key(KeyCreate(name="n", tenant_id="acme", created_by="Zoë"))
        engine.flush()
        clock.turn(seconds=1)
        engine.revoke_key(created.key.id, reason='line\nbreak\u2028and "quotes"')
        with pytest.raises(InvalidKeyError):
            engine.validate_key("hunter2")
        engine.close()
        common = {
            "who": None,
            "key_id": created.key.id,
            "masked_key": None,
            "policy_id": None,
            "scope": None,
            "tenant_id": "acme",
            "outcome": "done",
            "reason": None,
            "code": None,
        }
        later = "2026-03-01T12:00:01.123456+00:00"
        assert entries(path) == [
            common
            | {
                "when": "2026-03-01T12:00:00.123456+00:00",
                "what": "key.created",
                "who": "Zoë",
                "severity": "info",
            },
            common
            | {
                "when": later,
                "what": "key.revoked",
                "severity": "warning",
                "reason": 'line\nbreak\u2028and "quotes"',
            },
            common
            | {
                "when": later,
                "what": "key.validation_failed",
                "key_id": None,
                "tenant_id": None,
                "masked_key": "…(7 characters)",
                "outcome": "refused",
                "severity": "warning",
                "reason": "The API key is not valid.",
                "code": "invalid_key",
            },
        ]

    def test_by_default_the_time_is_the_systems(self, path: Path) -> None:
        AuditLog(path).on_event(Event(type="key.created"))
        [entry] = entries(path)
        when = datetime.fromisoformat(entry["when"])
        assert when.utcoffset() is not None
        assert when > START

    def test_only_its_owner_reads_it(self, path: Path) -> None:
        before = os.umask(0)
        try:
            AuditLog(path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_it_is_appended_to(self, path: Path) -> None:
        path.write_text('{"what": "before"}\n')
        path.chmod(0o640)
        for _ in range(2):
            AuditLog(path).on_event(Event(type="key.created"))
        assert [entry["what"] for entry in entries(path)] == ["before", *["key.created"] * 2]
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_file_that_is_moved_away_is_begun_anew(self, path: Path) -> None:
        audit = AuditLog(path)
        audit.on_event(Event(type="key.created"))
        rotated = path.rename(path.with_suffix(".1"))
        audit.on_event(Event(type="key.revoked"))
        assert [entry["what"] for entry in entries(rotated)] == ["key.created"]
        assert [entry["what"] for entry in entries(path)] == ["key.revoked"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_file_that_is_copied_and_emptied_goes_on(self, path: Path) -> None:
        audit = AuditLog(path)
        audit.on_event(Event(type="key.created"))
        os.truncate(path, 0)
        audit.on_event(Event(type="key.revoked"))
        assert [entry["what"] for entry in entries(path)] == ["key.revoked"]

    def test_a_path_stays_where_it_was(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        audit = AuditLog(path.name)
        monkeypatch.chdir("/")
        audit.on_event(Event(type="key.created"))
        assert len(entries(path)) == 1

    def test_where_nothing_can_be_written_it_is_told_at_the_start(self, tmp_path: Path) -> None:
        for wrong in (tmp_path, tmp_path / "missing" / "audit.jsonl"):
            with pytest.raises(OSError, match=str(wrong)):
                AuditLog(wrong)

    def test_several_processes_write_whole_lines(self, path: Path) -> None:
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in ("a", "b")
        ]
        assert [writer.wait(120) for writer in writers] == [0, 0]
        written = [(entry["who"], int(entry["code"])) for entry in entries(path)]
        assert len(written) == 1000
        for name in "ab":
            assert [number for who, number in written if who == name] == list(range(500))

    def test_after_a_full_disk_lines_are_whole_again(self, path: Path) -> None:
        subprocess.run([sys.executable, "-c", FULL_DISK, path], check=True)
        first, torn, *rest = path.read_text().splitlines()
        assert json.loads(first)["who"] == "before"
        with pytest.raises(json.JSONDecodeError):
            json.loads(torn)
        assert [json.loads(line)["who"] for line in rest] == ["after", "later"]

    @pytest.mark.parametrize(("left", "rest"), [("", 0), ('{"who": "x"}\n', 0), ('{"wh', 1)])
    def test_what_others_left_half_written_is_ended(self, path: Path, left: str, rest: int) -> None:
        path.write_text(left)
        audit = AuditLog(path)
        for _ in range(2):
            audit.on_event(Event(type="key.created"))
        lines = path.read_text().splitlines()
        assert len(lines) == len(left.splitlines()) + 2
        for line in lines[rest:]:
            json.loads(line)


WRITER = """
import sys
from keysmith.plugins import AuditLog, Event

audit = AuditLog(sys.argv[1])
for number in range(500):
    audit.on_event(Event(type="key.created", who=sys.argv[2], code=str(number), reason="x" * 900))
"""

FULL_DISK = """
import os, resource, sys
from keysmith.plugins import AuditLog, Event

path = sys.argv[1]
audit = AuditLog(path)
audit.on_event(Event(type="key.created", who="before"))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 20, most))
for _ in range(2):
    try:
        audit.on_event(Event(type="key.created", who="lost"))
    except OSError as error:
        print(error)
    else:
        raise SystemExit("it said nothing")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
audit.on_event(Event(type="key.created", who="after"))
audit.on_event(Event(type="key.created", who="later"))
"""


class TestOtherTargets:
    def test_a_logger(self, memory: SqliteStore, caplog: pytest.LogCaptureFixture) -> None:
        logger = logging.getLogger("host.audit")
        engine = Engine(memory, plugins=[AuditLog(logger)])
        with caplog.at_level(logging.INFO, "host.audit"):
            key = engine.create_key(KeyCreate(name="n")).key
            engine.suspend_key(key.id)
            engine.rotate_key(key.id, reason="compromise")
            engine.flush()
        records = [record for record in caplog.records if record.name == "host.audit"]
        levels = [record.levelno for record in records]
        assert levels == [logging.INFO, logging.WARNING, logging.ERROR]
        for record in records:
            assert json.loads(record.getMessage()) == record.audit  # type: ignore[attr-defined]
        assert records[0].audit["key_id"] == key.id  # type: ignore[attr-defined]

    def test_a_callable(self, memory: SqliteStore) -> None:
        noted: list[dict[str, str | None]] = []
        engine = Engine(memory, plugins=[AuditLog(noted.append)])
        engine.create_key(KeyCreate(name="n"))
        engine.flush()
        [entry] = noted
        assert list(entry) == FIELDS

    def test_nothing_else(self) -> None:
        with pytest.raises(TypeError, match="path"):
            AuditLog(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("successes", [True, False])
@pytest.mark.parametrize("failures", [True, False])
def test_validations_are_a_choice(memory: SqliteStore, successes: bool, failures: bool) -> None:
    noted: list[Any] = []
    audit = AuditLog(noted.append, successes=successes, failures=failures)
    engine = Engine(memory, plugins=[audit])
    engine.validate_key(engine.create_key(KeyCreate(name="n")).raw_key)
    with pytest.raises(InvalidKeyError):
        engine.validate_key("nope")
    engine.flush()
    assert [entry["what"] for entry in noted] == [
        "key.created",
        *["key.validated"] * successes,
        *["key.validation_failed"] * failures,
    ]
    assert engine._context.hooks.hears("on_key_validated") == successes


def test_by_default_only_failures(memory: SqliteStore) -> None:
    audit = AuditLog(print)
    assert not audit.hears("on_key_validated")
    assert audit.hears("on_key_validation_failed")
