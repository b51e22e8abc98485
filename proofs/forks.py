"""Forks amid work, and ends of processes with much left to write: `--only forks`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from keysmith import SqliteStore
from tests.test_forks import counts, run

PROMISE = (
    "An engine that was made before a fork works on both sides, over connections of their own; and "
    "a process ends without a deadlock, with all that was recorded written down."
)
BROKEN = (
    "connections were open while the process forked; locks were not made anew in a child; usage "
    "was not written at the end of a process, or at the end by an error alone; a fork emptied the "
    "buffer of the parent"
)

FORKS, QUICK_FORKS = 100, 5
ENDS, QUICK_ENDS = 4, 1
LEFT, QUICK_LEFT = 9_000, 500
"""Records that wait when a process ends; a thousand more would make the next one wait."""

AMID_WORK = """
import gc
import sqlite3
from keysmith import forks
from keysmith.stores import credentials
from keysmith.stores.sqlite_connections import FileConnection

forks.PATIENCE = credentials.PATIENCE = 30.0  # a thread may be kept from going on for seconds

def is_open(connection):
    try:
        return connection.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False

def inherited():
    return [each for each in gc.get_objects() if isinstance(each, FileConnection) and is_open(each)]

stop = threading.Event()
recorded = []
def busy():
    while not stop.is_set():
        engine.validate_key(created.raw_key)
        record(1, "parent")
        recorded.append(1)
        engine.query_usage(limit=1)
        engine.delete_key(engine.create_key(KeyCreate(name="brief")).key.id)
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()

def work():
    assert not inherited()
    engine.validate_key(created.raw_key)
    made = engine.create_key(KeyCreate(name="of a child"))
    engine.validate_key(made.raw_key)
    record(3, "child")
    engine.flush()

for number in range(FORKS):
    in_child(work)
stop.set()
for thread in threads:
    thread.join()
engine.close()
print(len(recorded))
"""

END = """
buffer.INTERVAL = 3600.0
def busy():
    while True:
        engine.validate_key(created.raw_key)
for _ in range(2):
    threading.Thread(target=busy, daemon=True).start()
buffer.BATCH = buffer.CAPACITY
record(LEFT, "left")
if HOW == "after a fork":
    pid = os.fork()
    if pid == 0:
        record(LEFT, "left in a child")
    else:
        assert os.waitpid(pid, 0)[1] == 0
elif HOW == "in a worker":
    worker = multiprocessing.get_context("fork").Process(
        target=record, args=(LEFT, "left in a child")
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0
elif HOW == "by an error":
    sys.excepthook = lambda *_: None
    raise RuntimeError
"""
WAYS = {"at the end": False, "by an error": False, "after a fork": True, "in a worker": True}
"""How a process ends, and whether it has a child that has as much left."""


def _new(folder: Path, name: str) -> Path:
    with SqliteStore(folder / name) as store:
        store.migrate()
    return folder / name


def fork_amid_work(path: Path, forks: int) -> int:
    """Forks so often while threads write, looks at what all have left, and counts the records."""
    recorded = int(run(path, f"FORKS = {forks}\n{AMID_WORK}"))
    found = counts(path)
    assert found == {"parent": recorded, "child": 3 * forks}, (
        f"{found}, of {recorded} in the parent"
    )
    with SqliteStore(path) as store, store.db.connect() as connection:
        made = [key for key in store.keys.list() if key.name == "of a child"]
        assert len(made) == forks
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    return sum(found.values())


def end_with_much_left(path: Path, how: str, left: int) -> None:
    """Ends a process so while its buffer is full, and threads are at work."""
    run(path, f"LEFT, HOW = {left}, {how!r}\n{END}", code=1 if how == "by an error" else 0)
    expected = {"left": left} | ({"left in a child": left} if WAYS[how] else {})
    found = counts(path)
    assert found == expected, f"{found} after an end {how}"


def trial(quick: bool = False) -> str:
    """Tells how many forks and ends there were."""
    forks, ends, left = (QUICK_FORKS, QUICK_ENDS, QUICK_LEFT) if quick else (FORKS, ENDS, LEFT)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        records = fork_amid_work(_new(folder, "forked.db"), forks)
        ways = list(WAYS)[-1:] if quick else list(WAYS)
        for number in range(ends):
            for how in ways:
                end_with_much_left(_new(folder, f"{number} {how}.db"), how, left)
    return (
        f"{forks} forks amid writing threads, no connection shared, none of {records:,} records "
        "lost; "
        f"{ends * len(ways)} ends of a process with {left:,} records waiting: all written, none "
        "stuck"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
