"""Maintenance: what is due, what nobody uses, and clean-ups that report each thing once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    AsyncEngine,
    Engine,
    Key,
    KeyCreate,
    KeyState,
    KeyUpdate,
    PolicyCreate,
    SqliteStore,
    UsageCreate,
)
from keysmith.cli import maintain, output
from keysmith.clock import utc_now
from keysmith.engine import lifecycle, rotation
from tests.command_line import Run
from tests.conftest import START, Recorder, TurnableClock

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
LONG = timedelta(days=10**8)


@pytest.fixture
def engine(store: SqliteStore, clock: TurnableClock, recorder: Recorder) -> Engine:
    """On both kinds of store."""
    return Engine(store, clock=clock, plugins=[recorder])


def names(keys: Iterable[Any]) -> list[str]:
    return [key.name for key in keys]


class TestDueForRotation:
    @pytest.fixture
    def make(self, engine: Engine) -> Callable[..., Key]:
        def make(name: str, period: timedelta | None, **fields: Any) -> Key:
            policy = engine.create_policy(
                PolicyCreate(
                    name=name,
                    rotation_period=period,
                    **{each: fields[each] for each in ("tenant_id", "app_id") if each in fields},
                )
            )
            return engine.create_key(KeyCreate(name=name, policy_id=policy.id, **fields)).key

        return make

    def test_the_longest_due_come_first(
        self, engine: Engine, clock: TurnableClock, make: Callable[..., Key]
    ) -> None:
        make("thirty", 30 * DAY)
        make("ten", 10 * DAY)
        make("never", None)
        make("for ever", LONG)
        engine.create_key(KeyCreate(name="without a policy"))
        assert engine.list_keys_due_for_rotation() == []
        clock.turn(days=10, microseconds=-1)
        assert engine.list_keys_due_for_rotation() == []
        clock.turn(microseconds=1)
        assert names(engine.list_keys_due_for_rotation()) == ["ten"]
        clock.turn(days=30)
        assert names(engine.list_keys_due_for_rotation()) == ["ten", "thirty"]

    def test_a_rotation_begins_a_period_anew(
        self, engine: Engine, clock: TurnableClock, make: Callable[..., Key]
    ) -> None:
        first, second = make("first", 10 * DAY), make("second", 10 * DAY)
        clock.turn(days=9)
        engine.rotate_key(first.id)
        clock.turn(days=1)
        assert names(engine.list_keys_due_for_rotation()) == ["second"]
        clock.turn(days=9)
        assert names(engine.list_keys_due_for_rotation()) == ["second", "first"]
        engine.rotate_key(second.id)
        assert names(engine.list_keys_due_for_rotation()) == ["first"]

    def test_only_keys_that_live(
        self, engine: Engine, clock: TurnableClock, make: Callable[..., Key]
    ) -> None:
        made = {
            name: make(name, DAY, expires_at=START + 9 * DAY)
            for name in ("active", "suspended", "revoked", "expired", "expired unnoticed")
        }
        for name in ("expired", "expired unnoticed"):
            engine.update_key(made[name].id, KeyUpdate(expires_at=START + HOUR))
        engine.suspend_key(made["suspended"].id)
        engine.revoke_key(made["revoked"].id)
        clock.turn(days=2)
        engine._lifecycle.expire(made["expired"].id)
        assert names(engine.list_keys_due_for_rotation()) == ["active", "suspended"]

    def test_of_one_tenant_and_app(
        self, engine: Engine, clock: TurnableClock, make: Callable[..., Key]
    ) -> None:
        for tenant in ("acme", "other"):
            for app in ("web", "job"):
                make(f"{tenant} {app}", DAY, tenant_id=tenant, app_id=app)
        clock.turn(days=1)
        acme = engine.for_tenant("acme")
        assert names(acme.list_keys_due_for_rotation()) == ["acme web", "acme job"]
        web = engine.for_tenant("acme", app_id="web")
        assert names(web.list_keys_due_for_rotation()) == ["acme web"]
        assert engine.for_tenant("nobody").list_keys_due_for_rotation() == []


class TestUnused:
    def test_those_that_are_older_and_were_not_used_since(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        engine.create_key(KeyCreate(name="never"))
        once, often = (engine.create_key(KeyCreate(name=name)) for name in ("once", "often"))
        engine.validate_key(once.raw_key)
        clock.turn(days=5)
        engine.validate_key(often.raw_key)
        engine.create_key(KeyCreate(name="young"))
        assert names(engine.list_keys(unused_since=clock.now)) == ["once", "never"]
        assert names(engine.list_keys(unused_since=clock.now + DAY)) == [
            "young",
            "often",
            "once",
            "never",
        ]
        assert engine.list_keys(unused_since=START) == []
        assert names(engine.list_keys(unused_since=START + timedelta(microseconds=1))) == [
            "once",
            "never",
        ]

    def test_also_within_a_transaction(self, engine: Engine, clock: TurnableClock) -> None:
        engine.create_key(KeyCreate(name="k"))
        with engine.store.transaction():
            assert names(engine.list_keys(unused_since=clock.now + DAY)) == ["k"]

    def test_only_keys_that_live(self, engine: Engine, clock: TurnableClock) -> None:
        made = {
            name: engine.create_key(KeyCreate(name=name)).key
            for name in ("active", "suspended", "revoked", "expired")
        }
        engine.suspend_key(made["suspended"].id)
        engine.revoke_key(made["revoked"].id)
        engine.update_key(made["expired"].id, KeyUpdate(expires_at=START + HOUR))
        clock.turn(days=1)
        assert names(engine.list_keys(unused_since=clock.now)) == ["suspended", "active"]

    def test_of_one_tenant_and_app(self, engine: Engine, clock: TurnableClock) -> None:
        for tenant in ("acme", "other"):
            for app in ("web", "job"):
                engine.create_key(KeyCreate(name=f"{tenant} {app}", tenant_id=tenant, app_id=app))
        clock.turn(days=1)
        acme = engine.for_tenant("acme")
        assert names(acme.list_keys(unused_since=clock.now)) == ["acme job", "acme web"]
        job = engine.for_tenant("acme", app_id="job")
        assert names(job.list_keys(unused_since=clock.now)) == ["acme job"]

    def test_a_moment_without_a_time_zone_is_refused(self, engine: Engine) -> None:
        with pytest.raises(ValidationError):
            engine.list_keys(unused_since=datetime(2026, 1, 1))


class TestCleanUps:
    """Some rows at a time, so that others can write in between; all of them in the end."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (lifecycle, rotation):
            monkeypatch.setattr(module, "AT_ONCE", 2)

    @pytest.fixture
    def keys(self, engine: Engine, clock: TurnableClock) -> dict[str, Key]:
        """Keys that have expired, and whose former secrets had an hour; those of acme are last."""
        made = {}
        for number in range(5):
            for tenant, app in (("other", "web"), ("acme", "job"), ("acme", "web")):
                later = timedelta(minutes=number + (10 if tenant == "acme" else 0))
                key = KeyCreate(
                    name=f"{tenant} {app} {number}",
                    tenant_id=tenant,
                    app_id=app,
                    expires_at=START + HOUR + later,
                )
                created = engine.create_key(key).key
                engine.rotate_key(created.id, grace=HOUR / 2 + later)
                made[created.name] = created
        clock.turn(hours=2)
        return made

    @pytest.mark.parametrize(
        ("tenant", "app", "count"),
        [(None, None, 15), ("acme", None, 10), ("acme", "web", 5), ("nobody", None, 0)],
    )
    def test_every_key_of_the_caller_s_once(
        self,
        engine: Engine,
        recorder: Recorder,
        keys: dict[str, Key],
        tenant: str | None,
        app: str | None,
        count: int,
    ) -> None:
        bound = engine if tenant is None else engine.for_tenant(tenant, app_id=app)
        assert (bound.cleanup_grace_expired(), bound.cleanup_expired_keys()) == (count, count)
        assert (bound.cleanup_grace_expired(), bound.cleanup_expired_keys()) == (0, 0)
        prefix = " ".join(filter(None, (tenant, app)))
        expected = {key.id for name, key in keys.items() if name.startswith(prefix)}
        for hook in ("on_key_expired", "on_grace_ended"):
            told = [arguments[0].id for name, arguments in recorder.events if name == hook]  # type: ignore[attr-defined]
            assert Counter(told) == Counter(expected if count else ())
        left = [key.state for key in engine.list_keys()].count(KeyState.ACTIVE)
        assert left == len(keys) - count

    def test_within_a_transaction(self, engine: Engine, keys: dict[str, Key]) -> None:
        with engine.store.transaction():
            assert engine.cleanup_expired_keys() == len(keys)

    def test_what_others_have_done_since_it_was_found_is_not_counted(
        self, engine: Engine, recorder: Recorder, keys: dict[str, Key]
    ) -> None:
        deleted, expired, *_ = found = list(keys.values())
        engine.delete_key(deleted.id)
        engine.store.keys.update_state(expired.id, KeyState.EXPIRED, now=START)
        written = lifecycle.write_all(engine.store, engine._lifecycle.expire, found)
        assert written == recorder.names().count("on_key_expired") == len(keys) - 2

    def test_nothing_to_do_is_seen_while_somebody_writes(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.db"
        with (
            SqliteStore(path, busy_timeout=timedelta(0)) as store,
            SqliteStore(path) as other,
        ):
            store.migrate()
            with other.transaction():
                assert Engine(store).cleanup_expired_keys() == 0
                assert Engine(store).cleanup_grace_expired() == 0


class TestReport:
    @pytest.fixture
    def busy(self, engine: Engine, clock: TurnableClock) -> str:
        """A store where a year has passed; gives the raw key that is in use."""
        policy = engine.create_policy(PolicyCreate(name="p", rotation_period=30 * DAY))
        engine.create_key(KeyCreate(name="expiring", expires_at=START + HOUR))
        idle = engine.create_key(KeyCreate(name="idle", policy_id=policy.id)).key
        engine.rotate_key(idle.id)
        used = engine.create_key(KeyCreate(name="used"))
        clock.turn(days=1)
        for _ in range(300):
            clock.turn(days=1)
            engine.record_usage(
                UsageCreate(key_id=used.key.id, endpoint="/", method="GET", status_code=200)
            )
        clock.turn(days=5)
        engine.validate_key(used.raw_key)
        return used.raw_key

    def test_tells_what_was_done_and_what_is_to_do(
        self, engine: Engine, clock: TurnableClock, busy: str
    ) -> None:
        report = engine.maintain(usage_retention=90 * DAY, unused_for=30 * DAY)
        assert report.at == clock.now
        assert (report.expired, report.grace_ended, report.usage_purged) == (1, 1, 214)
        assert names(report.due_for_rotation) == names(report.unused) == ["idle"]
        assert "hash" not in repr(report)
        assert len(engine.query_usage()) == 86
        again = engine.maintain(usage_retention=90 * DAY, unused_for=30 * DAY)
        assert (again.expired, again.grace_ended, again.usage_purged) == (0, 0, 0)
        assert again.due_for_rotation == report.due_for_rotation

    def test_does_no_more_than_was_asked(self, engine: Engine, busy: str) -> None:
        report = engine.maintain()
        assert (report.expired, report.grace_ended, report.usage_purged) == (1, 1, 0)
        assert (names(report.due_for_rotation), report.unused) == (["idle"], ())
        assert len(engine.query_usage()) == 300

    def test_durations_longer_than_time_and_shorter_than_none(
        self, engine: Engine, busy: str
    ) -> None:
        report = engine.maintain(usage_retention=LONG, unused_for=LONG)
        assert (report.usage_purged, report.unused) == (0, ())
        for wrong in ({"usage_retention": -DAY}, {"unused_for": -DAY}):
            with pytest.raises(ValidationError):
                engine.maintain(**wrong)
        assert engine.maintain(usage_retention=timedelta(0)).usage_purged == 300

    def test_removes_the_usage_of_the_caller_s_keys_alone(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        for tenant in ("acme", "other"):
            for app in ("web", "job"):
                key = engine.create_key(KeyCreate(name="k", tenant_id=tenant, app_id=app)).key
                engine.record_usage(
                    UsageCreate(key_id=key.id, endpoint="/", method="GET", status_code=200)
                )
        clock.turn(days=2)
        nobody = engine.for_tenant("nobody", app_id="web")
        assert nobody.maintain(usage_retention=DAY).usage_purged == 0
        for bound, count in (
            (engine.for_tenant("acme", app_id="web"), 1),
            (engine.for_tenant("acme"), 1),
            (engine, 2),
        ):
            assert bound.maintain(usage_retention=DAY).usage_purged == count

    def test_for_a_tenant_and_from_an_event_loop(self, engine: Engine, busy: str) -> None:
        async def maintain() -> None:
            engine_ = AsyncEngine(engine)
            elsewhere = await engine_.for_tenant("acme").maintain(unused_for=DAY)
            assert (elsewhere.expired, elsewhere.due_for_rotation, elsewhere.unused) == (0, (), ())
            assert (await engine_.maintain()).expired == 1

        asyncio.run(maintain())


MAINTAIN = """
import sys
from datetime import timedelta
from keysmith import Engine, Plugin, SqliteStore

class Telling(Plugin):
    inline = True
    def on_key_expired(self, key):
        print("expired", key.id)
    def on_grace_ended(self, key, rotation):
        print("ended", rotation.id)

store = SqliteStore(sys.argv[1], busy_timeout=timedelta(minutes=2))
with Engine(store, plugins=[Telling()]) as engine:
    print("ready", flush=True)
    sys.stdin.readline()
    report = engine.maintain()
    print("counted", report.expired + report.grace_ended)
"""


def test_of_several_processes_each_event_is_told_by_one(tmp_path: Path) -> None:
    path, past = tmp_path / "keys.db", TurnableClock()
    with Engine(SqliteStore(path), clock=past) as engine:
        engine.store.migrate()
        with engine.store.transaction():
            for number in range(250):
                created = engine.create_key(KeyCreate(name="k", expires_at=START + HOUR))
                if number % 5 == 0:
                    engine.rotate_key(created.key.id, grace=HOUR)
        expected = {f"expired {key.id}" for key in engine.list_keys()}
        expected |= {f"ended {each.id}" for each in engine.list_rotations()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAINTAIN, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    told = Counter(line for lines in said for line in lines if not line.startswith("counted"))
    assert told == Counter(expected)
    for lines in said:
        assert lines[-1] == f"counted {len(lines) - 1}"


# ---------------------------------------------------------------------------- the command


class TestCommand:
    def test_prints_what_needs_attention(self, run: Run, database: Path) -> None:
        past = TurnableClock(START - 400 * DAY)
        with Engine(SqliteStore(database), clock=past) as engine:
            policy = engine.create_policy(PolicyCreate(name="p", rotation_period=30 * DAY))
            idle = engine.create_key(KeyCreate(name="idle", policy_id=policy.id)).key
            engine.create_key(KeyCreate(name="gone", expires_at=past.now + HOUR))
        result = run("maintain --unused-days 30")
        assert result.exit_code == 0
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["Expired", "1"] in lines
        assert result.stdout.count(idle.id) == 2
        titles = [line for line in lines if line[-1].endswith(":")]
        assert titles == [["Due", "for", "rotation:"], ["Unused:"]]
        assert "Unused" not in run("maintain").stdout

    @pytest.mark.parametrize(
        "options",
        ["--every 0s", "--every nonsense", "--unused-days 0", "--usage-retention -P1D"],
    )
    def test_wrong_options(self, run: Run, options: str) -> None:
        assert run(f"maintain {options}").exit_code == 2

    @pytest.fixture
    def handlers(self) -> Iterator[None]:
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield
        for number, handler in kept.items():
            signal.signal(number, handler)

    def test_goes_on_until_it_is_stopped(
        self, run: Run, database: Path, handlers: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also past a store that fails for a while: here, one that lacks a table."""
        states, reported, failed = [], threading.Event(), threading.Event()

        def report(*arguments: Any, **options: Any) -> None:
            show(*arguments, **options)
            reported.set()

        show = maintain._print
        monkeypatch.setattr(maintain, "_print", report)

        def note(text: str, style: str = "") -> None:
            output.note(text, style)
            failed.set()

        monkeypatch.setattr(maintain, "note", note)

        def meanwhile() -> None:
            try:
                with Engine(SqliteStore(database), clock=lambda: utc_now() - HOUR) as engine:
                    for _ in range(2):
                        past = KeyCreate(name="k", expires_at=utc_now() - HOUR / 2)
                        key = engine.create_key(past).key
                        states.append(wait_for_expiry(engine, key.id))
                        reported.clear()
                        reported.wait(120)  # lest it fails before it has told
                    with engine.store.migration() as connection:
                        connection.exec_driver_sql("ALTER TABLE keysmith_keys RENAME TO away")
                    failed.wait(120)
                    with engine.store.migration() as connection:
                        connection.exec_driver_sql("ALTER TABLE away RENAME TO keysmith_keys")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=meanwhile)
        thread.start()
        result = run("maintain --every PT0.01S --json")
        thread.join()
        assert states == [KeyState.EXPIRED] * 2
        assert result.exit_code == 0
        reports = [json.loads(line) for line in result.stdout.splitlines()]
        assert sum(report["expired"] for report in reports) == 2
        assert "Trying again in 0:00:00.010000" in result.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stops_cleanly(self, database: Path, number: signal.Signals) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "keysmith", "maintain", "--every", "1h", "--json"],
            env={**os.environ, "KEYSMITH_DATABASE_URL": f"sqlite:///{database}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["expired"] == 0
        process.send_signal(number)
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 0

    def test_what_fails_from_the_beginning_ends_it(self, run: Run, database: Path) -> None:
        database.write_text("not a database")
        assert run("maintain --every 1h").exit_code == 3


def wait_for_expiry(engine: Engine, key_id: str) -> KeyState:
    deadline = time.monotonic() + 120
    while engine.get_key(key_id).state is not KeyState.EXPIRED and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.get_key(key_id).state
