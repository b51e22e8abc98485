"""The file in which all processes count: many keys, damage, death, and files that change hands."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keysmith import (
    SqliteStore,
    StoreCorruptError,
    StoreFullError,
    StoreUnavailableError,
)
from keysmith.stores import counters as module
from keysmith.stores.counters import FileCounters, MemoryCounters

BRIEF = timedelta(milliseconds=50)
as_root = os.geteuid() == 0


def add(cells: array[int]) -> int:
    cells[0] += 1
    return cells[0]


def read(cells: array[int]) -> int:
    return cells[0]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def file(database: Path) -> Path:
    return database.with_name("keys.db-counters")


@pytest.fixture(params=["file", "memory"])
def counters(request: pytest.FixtureRequest, database: Path) -> FileCounters | MemoryCounters:
    return FileCounters(database) if request.param == "file" else MemoryCounters()


@contextmanager
def script(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs this."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(text: str, *arguments: object) -> str:
    with script(text, *arguments) as process:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return output


class TestCounting:
    def test_what_raises_changes_nothing(self, counters: FileCounters | MemoryCounters) -> None:
        assert counters.update("a", add) == 1

        def fail(cells: array[int]) -> None:
            add(cells)
            raise LookupError

        with pytest.raises(LookupError):
            counters.update("a", fail)
        assert counters.update("a", read) == 1
        assert counters.update("b", read) == 0

    def test_threads_lose_nothing(self, counters: FileCounters | MemoryCounters) -> None:
        def work() -> None:
            for _ in range(300):
                counters.update("a", add)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counters.update("a", read) == 8 * 300

    def test_what_was_counted_is_there_after_a_restart(self, database: Path) -> None:
        counters = FileCounters(database)
        counters.update("a", add)
        counters.close()
        counters.close()
        assert counters.update("a", add) == 2, "a closed one opens the file anew"
        assert FileCounters(database).update("a", add) == 3

    @pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
    def test_many_keys_in_one_file(self, database: Path, count: int) -> None:
        counters, other = FileCounters(database), FileCounters(database)
        for number in range(count):
            counters.update(f"akey_{number}", add)
        for number in range(count):
            assert other.update(f"akey_{number}", add) == 2
        offsets = [offset for offset, _ in counters._places.values()]
        assert len(set(offsets)) == count
        assert all(offset % 4096 + module._RECORD_BYTES <= 4096 for offset in offsets)

    def test_keys_that_collide_do_not_share(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_PAGES_IN_FIRST_SEGMENT", module._PAGES_IN_RUN)
        monkeypatch.setattr(module, "_REMEMBERED", 10)
        counters, other = FileCounters(database), FileCounters(database)
        for number in range(300):
            for _ in range(number % 5):
                counters.update(str(number), add)
        assert [other.update(str(number), read) for number in range(300)] == [
            number % 5 for number in range(300)
        ]
        assert len(counters._places) == 10


class TestDamage:
    @given(st.data())
    @settings(max_examples=60)
    def test_two_go_on_counting_together_whatever_happens_to_the_file(
        self, data: st.DataObject
    ) -> None:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            database = Path(folder) / "keys.db"

            def opened() -> FileCounters:
                return stack.enter_context(closing(FileCounters(database)))

            one, two = opened(), opened()
            keys = [str(number) for number in range(6)]
            for key in keys:
                one.update(key, add)
                two.update(key, add)
            path = Path(f"{database}-counters")
            size = path.stat().st_size
            for _ in range(data.draw(st.integers(1, 3))):
                place = data.draw(st.sampled_from([0, 64]) | st.integers(64, size))
                if data.draw(st.booleans()):
                    os.truncate(path, place)
                else:
                    with path.open("r+b") as file:
                        file.seek(max(place, 64))
                        file.write(data.draw(st.binary(max_size=2000)))
            for key in keys:
                counted = one.update(key, read)
                if abs(counted) < 2**62:
                    assert one.update(key, add) == counted + 1
                    assert two.update(key, add) == counted + 2
                    assert opened().update(key, read) == counted + 2

    @pytest.mark.parametrize("left", [0, 1, 15, 16, 17, 100, 655])
    def test_a_record_that_was_cut(self, database: Path, file: Path, left: int) -> None:
        one, two = FileCounters(database), FileCounters(database)
        one.update("a", add)
        two.update("a", add)
        os.truncate(file, one._places["a"][0] + left)
        counted = one.update("a", add)
        assert counted == (1 if left <= 16 else 3)
        assert two.update("a", add) == counted + 1
        assert FileCounters(database).update("a", add) == counted + 2

    def test_what_is_no_file_cannot_be_counted_in(self, database: Path, file: Path) -> None:
        file.mkdir()
        with pytest.raises(StoreUnavailableError, match="cannot be used: Is a directory"):
            FileCounters(database).ping()

    @pytest.mark.parametrize("content", [b"SQLite format 3\0" * 10, b"x", b"keysmith counters 2\n"])
    def test_a_file_of_somebody_else_s_is_left_alone(
        self, database: Path, file: Path, content: bytes
    ) -> None:
        opened = FileCounters(database)
        opened.ping()
        assert not file.exists(), "whoever counts nothing needs none"
        opened.update("a", add)
        opened.ping()
        file.write_bytes(content)
        for counters in (opened, FileCounters(database)):
            with pytest.raises(StoreCorruptError, match="Remove it"):
                counters.ping()
        with pytest.raises(StoreCorruptError, match="Remove it"):
            FileCounters(database).update("a", add)
        assert file.read_bytes() == content

    @pytest.mark.parametrize("content", [b"", b"keysm", bytes(64), bytes(10_000)])
    def test_one_that_was_begun_and_not_finished_is_taken_over(
        self, database: Path, file: Path, content: bytes
    ) -> None:
        file.write_bytes(content)
        assert FileCounters(database).update("a", add) == 1
        assert file.read_bytes().startswith(b"keysmith counters 1\n")


class TestChangingHands:
    """Others remove or replace the file while it is open; after a look, all count together."""

    @pytest.fixture(autouse=True)
    def looking(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        passed = [0.0]
        monkeypatch.setattr(module, "monotonic", lambda: passed[0])
        return passed

    def test_removed(self, database: Path, file: Path, looking: list[float]) -> None:
        one, two = FileCounters(database), FileCounters(database)
        one.update("a", add)
        two.update("a", add)
        file.unlink()
        looking[0] += module.LOOK_INTERVAL
        assert one.update("a", add) == 1
        assert two.update("a", add) == 2

    def test_replaced(self, database: Path, file: Path, looking: list[float]) -> None:
        one = FileCounters(database)
        one.update("a", add)
        backup = shutil.copy(file, file.with_suffix(".backup"))
        one.update("a", add)
        os.replace(backup, file)
        assert one.update("a", add) == 3, "it looks now and then, not always"
        looking[0] += module.LOOK_INTERVAL
        assert one.update("a", add) == 2
        assert FileCounters(database).update("a", read) == 2

    def test_left_in_place(self, database: Path, looking: list[float]) -> None:
        one = FileCounters(database)
        one.update("a", add)
        opened = one._file
        looking[0] += module.LOOK_INTERVAL
        assert one.update("a", add) == 2
        assert one._file == opened

    def test_the_folder_is_gone_and_comes_back(self, tmp_path: Path, looking: list[float]) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        one = FileCounters(folder / "keys.db")
        one.update("a", add)
        shutil.rmtree(folder)
        looking[0] += module.LOOK_INTERVAL
        with pytest.raises(StoreUnavailableError, match="gone"):
            one.update("a", add)
        folder.mkdir()
        assert one.update("a", add) == 1


class TestSharing:
    def test_links_to_a_database_count_where_it_does(self, database: Path) -> None:
        link = database.with_name("link.db")
        link.symlink_to(database)
        with SqliteStore(link) as one, SqliteStore(database) as two:
            assert one.counters.update("a", add) == 1
            assert two.counters.update("a", add) == 2
        assert not link.with_name("link.db-counters").exists()

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [(0o600, 0o600), (0o644, 0o600), (0o660, 0o660), (0o664, 0o660), (0o666, 0o666)],
    )
    def test_who_may_write_the_database_may_count_and_nobody_else(
        self, database: Path, file: Path, mode: int, expected: int
    ) -> None:
        database.touch()
        database.chmod(mode)
        if as_root:
            os.chown(database, 65534, 65533)
        FileCounters(database).update("a", add)
        found = file.stat()
        assert found.st_mode & 0o777 == expected
        assert (found.st_uid, found.st_gid) == (database.stat().st_uid, database.stat().st_gid)

    def test_threads_wait_no_longer_together_than_one_does(self, database: Path) -> None:
        patience = timedelta(seconds=2)
        counters = SqliteStore(database, busy_timeout=patience).counters
        counters.update("a", add)
        waited: list[float] = []

        def wait() -> None:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="locked"):
                counters.update("a", add)
            waited.append(time.monotonic() - began)

        with open(f"{database}-counters") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            threads = [threading.Thread(target=wait) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(waited) == 8
        assert max(waited) < 7 * patience.total_seconds()  # one after the other, it were eight
        assert counters.update("a", add) == 2

    def test_a_process_that_holds_on_is_not_waited_for_for_ever(self, database: Path) -> None:
        holding = """
import sys, time
from pathlib import Path
from keysmith.stores.counters import FileCounters
def hold(cells):
    cells[0] += 1
    print("holding", flush=True)
    time.sleep(60)
FileCounters(Path(sys.argv[1])).update("a", hold)
"""
        counters = FileCounters(database, patience=BRIEF)
        counters.update("a", add)
        with script(holding, database) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            FileCounters(database).ping()  # waits for nobody
            with pytest.raises(StoreUnavailableError, match="stopped"):
                counters.update("a", add)
            with pytest.raises(StoreUnavailableError, match="stopped"):
                FileCounters(database, patience=BRIEF).update("a", add)
        assert counters.update("a", add) == 2, "what it had not written does not count"

    def test_one_that_is_to_count_at_once_waits_for_no_other(self, database: Path) -> None:
        counters = FileCounters(database)

        def meanwhile(other: FileCounters, cells: array[int]) -> None:
            add(cells)
            with pytest.raises(StoreUnavailableError):
                other.update_at_once("a", add)

        assert counters.update_at_once("a", add) == 1
        for other in (counters, FileCounters(database)):
            counters.update("a", partial(meanwhile, other))
        assert counters.update_at_once("a", add) == 4

    def test_an_interrupt_leaves_nothing_locked(self, database: Path) -> None:
        def interrupt(cells: array[int]) -> None:
            raise KeyboardInterrupt

        counters = FileCounters(database)
        with pytest.raises(KeyboardInterrupt):
            counters.update("a", interrupt)
        assert FileCounters(database, patience=BRIEF).update("a", add) == 1
        assert counters.update("a", add) == 2

    def test_parent_and_child_count_together(self, database: Path) -> None:
        forking = """
import os, sys, threading
from pathlib import Path
from keysmith.stores.counters import FileCounters
def add(cells):
    cells[0] += 1
    return cells[0]
counters = FileCounters(Path(sys.argv[1]))
counters.update("a", add)
inside, go_on = threading.Event(), threading.Event()
def hold(cells):
    inside.set()
    go_on.wait()
    return add(cells)
threading.Thread(target=counters.update, args=("a", hold)).start()
inside.wait()
child = os.fork()
if child:
    go_on.set()
for _ in range(2000):
    counters.update("a", add)
if not child:
    os._exit(0)
os.waitpid(child, 0)
print(counters.update("a", add))
"""
        assert run(forking, database) == "4003\n"

    def test_a_child_of_a_store_in_memory_waits_for_no_thread_of_the_parent(self) -> None:
        forking = """
import os, signal, threading
from keysmith.stores.counters import MemoryCounters
counters = MemoryCounters()
inside, go_on = threading.Event(), threading.Event()
def hold(cells):
    inside.set()
    go_on.wait()
threading.Thread(target=counters.update, args=("a", hold)).start()
inside.wait()
child = os.fork()
if not child:
    signal.alarm(60)
    counters.update("a", len)
    os._exit(0)
go_on.set()
print(os.waitpid(child, 0)[1])
"""
        assert run(forking) == "0\n"

    def test_processes_that_are_killed_at_any_moment_lose_nothing(self, database: Path) -> None:
        killing = """
import mmap, os, random, signal, sys, time
from pathlib import Path
from keysmith.stores.counters import FileCounters

def add(cells):
    for place in range(80):
        cells[place] += 1
    return cells[0], len(set(cells))

counters, acknowledged = FileCounters(Path(sys.argv[1])), mmap.mmap(-1, 8)
counters.update("a", add)
kills = 60
def acknowledged_so_far():
    return int.from_bytes(acknowledged, "little")

for number in range(kills):
    child = os.fork()
    if not child:
        while True:
            counters.update("a", add)
            count = acknowledged_so_far() + 1
            acknowledged[:] = count.to_bytes(8, "little")
    time.sleep(random.uniform(0.001, 0.01))
    while acknowledged_so_far() <= number:  # on a machine that is too busy for it to come far
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(acknowledged_so_far() + 2, *counters.update("a", add), kills)
"""
        acknowledged, counted, different, kills = map(int, run(killing, database).split())
        assert acknowledged > kills
        assert acknowledged <= counted <= acknowledged + kills
        assert different == 1, "a record is written whole"


class TestFailing:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes a disk that is full")
    def test_a_full_disk(self, database: Path, file: Path) -> None:
        file.symlink_to("/dev/full")
        with pytest.raises(StoreFullError):
            FileCounters(database).update("a", add)

    def test_a_disk_that_fills_up_leaves_what_is_there_in_use(self, database: Path) -> None:
        filling = """
import os, resource, sys
from pathlib import Path
from keysmith import StoreFullError
from keysmith.stores.counters import FileCounters
def add(cells):
    cells[0] += 1
    return cells[0]
elsewhere, counters = FileCounters(Path(sys.argv[2])), FileCounters(Path(sys.argv[1]))
for key in ("a", "b"):
    elsewhere.update(key, add)
old, new = sorted("ab", key=lambda key: elsewhere._places[key])
counters.update(old, add)
for written in (300, 8, 0):
    size = elsewhere._places[new][0] + written
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        counters.update(new, add)
    except StoreFullError:
        print("full", counters.update(old, add))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(counters.update(new, add), counters.update(old, add))
"""
        said = run(filling, database, database.with_name("other.db")).splitlines()
        assert said == ["full 2", "full 3", "full 4", "1 5"]

    @pytest.mark.skipif(not as_root, reason="takes root to become somebody else")
    def test_a_file_that_cannot_be_written(self) -> None:
        reading = """
import os, sys
from pathlib import Path
from keysmith import StoreError
from keysmith.stores.counters import FileCounters
os.setgid(65534)
os.setuid(65534)
for path in sys.argv[1:]:
    try:
        FileCounters(Path(path)).update("a", lambda cells: None)
    except StoreError as error:
        print(type(error).__name__, error)
"""
        folder = Path(tempfile.mkdtemp())
        try:
            folder.chmod(0o755)
            FileCounters(folder / "keys.db").update("a", add)
            closed = folder / "closed"
            closed.mkdir(mode=0o700)
            paths = folder / "keys.db", folder / "new.db"
            *others, last = run(reading, *paths, closed / "keys.db").splitlines()
            for path, said in zip(paths, others, strict=True):
                assert said.startswith(f"StoreReadOnlyError {path}-counters cannot be written")
            assert last == f"StoreUnavailableError No permission to enter the folder {closed}."
        finally:
            shutil.rmtree(folder)

    def test_a_folder_in_its_place(self, database: Path, file: Path) -> None:
        file.mkdir()
        with pytest.raises(StoreUnavailableError, match="cannot be used"):
            FileCounters(database).update("a", add)
