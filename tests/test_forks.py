"""Forks: a child shares nothing with its parent that would harm either."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from keysmith import SqliteStore, forks
from tests.elsewhere import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="takes a system that forks")

SCENE = """
import multiprocessing, os, sys, threading
from datetime import timedelta
from keysmith import Engine, KeyCreate, Plugin, PolicyCreate, SqliteStore, UsageCreate
from keysmith.engine import buffer

store = SqliteStore(sys.argv[1])
engine = Engine(store)
created = engine.create_key(KeyCreate(name="production"))
key_id = created.key.id

def record(times, endpoint):
    for _ in range(times):
        engine.record_usage(
            UsageCreate(key_id=key_id, endpoint=endpoint, method="GET", status_code=200))

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""


def run(path: Path, script: str, *, code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCENE + script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=180,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    return tmp_path / "keys.db"


def counts(path: Path) -> dict[str, int]:
    with SqliteStore(path) as store:
        found: dict[str, int] = {}
        for record in store.usages.query():
            found[record.endpoint] = found.get(record.endpoint, 0) + 1
        assert sum(day.request_count for day in store.usages.aggregate()) == sum(found.values())
    return found


def test_what_the_parent_recorded_the_parent_writes_and_the_child_works(path: Path) -> None:
    run(
        path,
        """
buffer.INTERVAL = 3600.0
engine.validate_key(created.raw_key)
record(900, "parent")

def work():
    assert engine.validate_key(created.raw_key).key.id == key_id
    record(30, "child")
    engine.flush()
    assert engine.dropped_usage == 0
    engine.suspend_key(key_id)
    engine.close()

in_child(work)
assert store.keys.get(key_id).state == "suspended"
try:
    engine.validate_key(created.raw_key)
except Exception as error:
    print(error.code)
in_child(lambda: (record(5, "second"), store.close()))
record(1, "parent")
engine.close()
""",
    )
    assert counts(path) == {"parent": 901, "child": 30, "second": 5}


def test_a_child_has_threads_of_its_own_for_coroutines(path: Path) -> None:
    run(
        path,
        """
import asyncio
from keysmith import AsyncEngine
asynchronous = AsyncEngine(engine)
bound = asynchronous.for_tenant("default")
assert len(asyncio.run(asynchronous.list_keys())) == 1

async def use():
    assert len(await asynchronous.list_keys()) == 1
    assert (await bound.get_key(key_id)).name == "production"
    assert (await bound.validate_key(created.raw_key)).key.id == key_id

in_child(lambda: asyncio.run(asyncio.wait_for(use(), 50)))
asyncio.run(use())
asyncio.run(asynchronous.close())
""",
    )


def test_a_transaction_that_a_child_is_forked_in_stays_the_parents(path: Path) -> None:
    shown = run(
        path,
        """
told = []
class Telling(Plugin):
    inline = True
    def on_policy_created(self, policy):
        told.append(policy.name)
engine = Engine(store, plugins=[Telling()])
with store.transaction():
    engine.create_policy(PolicyCreate(name="outer"))
    with store.transaction():
        engine.create_policy(PolicyCreate(name="inner", meta={"long": "x" * 15_000}))
        pid = os.fork()
        if pid == 0:
            assert not store.in_transaction
            assert engine.list_policies() == []
            assert engine.validate_key(created.raw_key).key.id == key_id
        else:
            status = os.waitpid(pid, 0)[1]
if pid == 0:
    # It has left the blocks, and nothing was committed or told by that.
    assert told == []
    try:
        engine.revoke_key(key_id)
    except Exception as error:
        print("child:", error, flush=True)
    os._exit(0)
assert status == 0
assert told == ["outer", "inner"], told
class Undone(Exception): pass
try:
    with store.transaction():
        engine.create_policy(PolicyCreate(name="kept"))
        pid = os.fork()
        if pid == 0:
            raise Undone
except Undone:
    print("undone", flush=True)
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    with store.snapshot():
        engine.count_keys()
        pid = os.fork()
    if pid == 0:
        engine.create_policy(PolicyCreate(name="of a child of a snapshot"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
""",
    )
    first, second = shown.splitlines()
    assert "forked within a transaction" in first
    assert second == "undone"
    with SqliteStore(path) as store:
        names = {policy.name for policy in store.policies.list()}
        assert names == {"outer", "inner", "kept", "of a child of a snapshot"}
        with store.db.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_fork_does_not_wait_forever_for_a_transaction_of_another_thread(path: Path) -> None:
    shown = run(
        path,
        """
from keysmith import forks
forks.PATIENCE = 0.05
begun, enough = threading.Event(), threading.Event()
def hold():
    with store.transaction():
        begun.set()
        enough.wait()
thread = threading.Thread(target=hold)
thread.start()
begun.wait()
def work():
    assert engine.count_keys() == 1
    try:
        engine.revoke_key(key_id)
    except Exception as error:
        print(error, flush=True)
in_child(work)
enough.set()
thread.join()
in_child(lambda: engine.suspend_key(key_id))
assert store.keys.get(key_id).state == "suspended"
""",
    )
    assert "forked within a transaction" in shown


@pytest.mark.parametrize(
    "ends", ["os._exit(0)", pytest.param("store.close()", marks=pytest.mark.slow)]
)
def test_a_child_that_outlives_its_parent_has_locks_of_its_own(path: Path, ends: str) -> None:
    """Else others would believe to be the last, and take the log away under the child."""
    run(
        path,
        f"""
import subprocess
from keysmith import KeyRevokedError

def elsewhere(call):
    code = "import sys; from keysmith import *\\nwith Engine(SqliteStore(sys.argv[1])) as engine: "
    done = subprocess.run([sys.executable, "-c", code + call, sys.argv[1]], capture_output=True,
                          text=True, check=True)
    return done.stdout.strip()

engine.validate_key(created.raw_key)
gone, told = os.pipe(), os.pipe()
between = os.fork()
if between == 0:
    if os.fork():
        engine.validate_key(created.raw_key)
        {ends}
        os._exit(0)
    os.close(told[0])
    os.read(gone[0], 1)  # until nobody else has the store open
    engine.validate_key(created.raw_key)
    elsewhere(f"engine.revoke_key({{key_id!r}})")
    try:
        engine.validate_key(created.raw_key)
        os.write(told[1], b"still valid")
    except KeyRevokedError:
        engine.create_key(KeyCreate(name="by the child"))
        os.write(told[1], elsewhere("print(engine.count_keys())").encode())
    os._exit(0)
os.waitpid(between, 0)
store.close()
os.close(told[1])
os.write(gone[1], b"x")
assert os.read(told[0], 100) == b"2"
""",
    )


def test_workers_of_multiprocessing_write_what_they_recorded(path: Path) -> None:
    run(
        path,
        """
def work(endpoint):
    buffer.INTERVAL = 3600.0
    record(7, endpoint)
    engine.validate_key(created.raw_key)
context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(f"worker {n}",)) for n in range(2)]
record(3, "parent")
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
    assert worker.exitcode == 0
record(1, "parent")
""",
    )
    assert counts(path) == {"parent": 4, "worker 0": 7, "worker 1": 7}


def test_parent_and_child_make_ids_of_their_own_under_a_clock_that_stands_still(path: Path) -> None:
    run(
        path,
        """
from datetime import datetime, UTC
engine = Engine(store, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
def work():
    record(2, "both")
    engine.flush()
    engine.create_key(KeyCreate(name="another"))
work()
in_child(work)
work()
assert engine.count_keys() == 4
""",
    )
    assert counts(path) == {"both": 6}


def test_a_memory_store_is_copied(path: Path) -> None:
    run(
        path,
        """
memory = SqliteStore(":memory:")
memory.migrate()
engine = Engine(memory)
created = engine.create_key(KeyCreate(name="production"))
key_id = created.key.id
engine.validate_key(created.raw_key)
def work():
    engine.revoke_key(key_id)
    record(5, "child")
    assert len(engine.query_usage()) == 5
in_child(work)
assert engine.validate_key(created.raw_key).key.state == "active"
assert engine.query_usage() == []
""",
    )


def test_a_fork_waits_for_the_transactions_of_other_threads_and_not_for_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 60.0
    monkeypatch.setattr(forks, "PATIENCE", patience)
    begun, end = threading.Event(), threading.Event()
    with SqliteStore(path) as store:
        store.migrate()

        def work() -> None:
            with store.transaction():
                begun.set()
                end.wait()

        with store.transaction():
            began = time.monotonic()
            store._database.pause()
            assert time.monotonic() - began < patience / 2
            store._database.resume()
        worker = threading.Thread(target=work)
        worker.start()
        begun.wait()
        forking = threading.Thread(target=store._database.pause)
        forking.start()
        forking.join(0.1)
        assert forking.is_alive()
        end.set()
        forking.join(patience / 2)
        assert not forking.is_alive()
        worker.join()
        store._database.resume()
