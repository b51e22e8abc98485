"""What can befall a database file, for a while; and a service that goes on working meanwhile."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from keysmith import (
    Engine,
    InvalidKeyError,
    KeyCreate,
    PolicyCreate,
    SchemaOutdatedError,
    SqliteStore,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UsageCreate,
)
from keysmith.stores.credentials import LOOK_EVERY
from tests.adversity import as_nobody, limited, read_only

THREADS = 3
CALLS = 12
"""That each thread makes between two events."""


@dataclass
class Service:
    """An engine on a file, with threads that use it, and what was acknowledged to them."""

    path: Path
    created: list[str] = field(default_factory=list)
    recorded: int = 0
    errors: list[StoreError] = field(default_factory=list)
    unexpected: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = SqliteStore(self.path)
        self.engine = Engine(self.store)
        self.store.migrate()
        policy = self.engine.create_policy(PolicyCreate(name="p", rate_limit=10**9))
        self.key = self.engine.create_key(KeyCreate(name="n", policy_id=policy.id))
        self.usage = UsageCreate(
            key_id=self.key.key.id, endpoint="/", method="GET", status_code=200
        )
        self._lock = threading.Lock()

    def work(self) -> None:
        """All threads make their calls; errors of the store are kept, any other is unexpected."""
        self.errors.clear()
        threads = [threading.Thread(target=self._use, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread is stuck"
        assert not self.unexpected, repr(self.unexpected[0])

    def _use(self, number: int) -> None:
        for count in range(CALLS):
            try:
                self._call((number + count) % 4)
            except StoreError as error:
                self.errors.append(error)
            except BaseException as error:  # noqa: BLE001  whatever it is, it is none of ours
                self.unexpected.append(error)

    def _call(self, kind: int) -> None:
        match kind:
            case 0:
                key_id = self.engine.create_key(KeyCreate(name="another")).key.id
                self.created.append(key_id)
            case 1:
                self.engine.record_usage(self.usage)
                with self._lock:
                    self.recorded += 1
                self.engine.flush()
            case 2:
                self.engine.validate_key(self.key.raw_key)
            case _:
                self.engine.get_key(self.key.key.id)

    def check(self) -> None:
        """Everything works at once, and all that was acknowledged is there."""
        self.work()
        assert not self.errors, f"the cause is gone, and yet: {self.errors[0]!r}"
        self.engine.flush()
        found = {key.id for key in self.engine.list_keys()}
        lost = set(self.created) - found
        assert not lost, f"{len(lost)} keys are lost"
        counted = self.store.usages.count()
        assert counted == self.recorded, f"{counted} records of {self.recorded}"
        assert self.engine.dropped_usage == 0
        with self.store.db.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


Strike = Callable[[Service], AbstractContextManager[None]]


@contextmanager
def full_disk(service: Service) -> Iterator[None]:
    """SQLite may use no page more than it has."""

    def shrink(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # it becomes as many as there are

    sa.event.listen(service.store.db, "connect", shrink)
    service.store.db.dispose()  # and not before: others may be opening connections
    yield
    sa.event.remove(service.store.db, "connect", shrink)
    service.store.db.dispose()


@contextmanager
def failing_disk(_service: Service) -> Iterator[None]:
    """No file may be written beyond its first bytes."""
    with limited(resource.RLIMIT_FSIZE, 100):
        yield


@contextmanager
def read_only_connections(service: Service) -> Iterator[None]:
    """Every write is refused, once it comes to it."""
    with read_only(service.store):
        yield


@contextmanager
def read_only_file(service: Service) -> Iterator[None]:
    """Nobody but root may write to it."""
    with _only_for_root(service, file_mode=0o444, folder_mode=0o777):
        yield


@contextmanager
def no_permission(service: Service) -> Iterator[None]:
    """Nobody but root may enter its folder."""
    with _only_for_root(service, file_mode=0o666, folder_mode=0o700):
        yield


@contextmanager
def _only_for_root(service: Service, *, file_mode: int, folder_mode: int) -> Iterator[None]:
    service.store.db.dispose()  # the connection that validation keeps open stays
    service.path.chmod(file_mode)
    service.path.parent.chmod(folder_mode)
    with as_nobody():
        yield
    service.path.parent.chmod(0o777)
    service.path.chmod(0o666)


@contextmanager
def vanished_file(service: Service) -> Iterator[None]:
    """It is moved away, and comes back."""
    with _moved_away(service):
        yield


@contextmanager
def vanished_folder(service: Service) -> Iterator[None]:
    """So is the folder that it is in."""
    folder = service.path.parent
    away = folder.rename(folder.with_name("away"))
    yield
    away.rename(folder)


@contextmanager
def replaced_file(service: Service) -> Iterator[None]:
    """Another database is in its place, in which no key of this one exists."""
    with _moved_away(service):
        with SqliteStore(service.path) as other:
            other.migrate()
        _await_notice(service)
        assert service.engine.list_keys() == []
        with Engine(SqliteStore(service.path)) as other_engine:
            raw_key = other_engine.create_key(KeyCreate(name="theirs")).raw_key
        service.engine.validate_key(raw_key)
        service.engine.flush()
        service.engine.store.db.dispose()  # type: ignore[attr-defined]
        service.store.credentials.close()
        for file in _files(service.path):
            file.unlink()
        yield


def _await_notice(service: Service) -> None:
    """Validation may answer from what is gone, for as long as it is told to."""
    end, late = time.monotonic() + LOOK_EVERY, False
    with suppress(InvalidKeyError):
        while not late:
            late = time.monotonic() > end  # when it began, however long it takes
            service.engine.validate_key(service.key.raw_key)
        raise AssertionError("a file that is gone is answered from")


@contextmanager
def corrupt_pages(service: Service) -> Iterator[None]:
    """All pages but the first begin with nonsense; a copy from before is put back."""
    with _moved_away(service) as away:
        for file in away.iterdir():
            shutil.copy(file, service.path.parent)
        with sqlite3.connect(service.path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        content = bytearray(service.path.read_bytes())
        for page in range(4096, len(content), 4096):
            content[page : page + 128] = b"\xff" * 128
        service.path.write_bytes(content)
        yield


@contextmanager
def truncated_log(service: Service) -> Iterator[None]:
    """The end of the write-ahead log is gone: what is left is whole, if less.

    Of a copy, since bytes that are gone do not come back.
    """
    with service.store.db.connect() as connection:  # a log that begins with the tables tells little
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    service.check()
    folder = service.path.parent
    [log] = folder.glob("*.db-wal")
    frames = log.read_bytes()
    for _ in range(5):
        copy = folder / "copy.db"
        shutil.copy(service.path, copy)
        copy.with_name("copy.db-wal").write_bytes(frames[: random.randrange(len(frames))])
        with SqliteStore(copy) as store, store.db.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            found = {key.id for key in store.keys.list()} - {service.key.key.id}
            kept = [key_id in found for key_id in sorted(service.created)]
            gaps = kept.index(False) if False in kept else len(kept)
            assert len(found) - gaps <= THREADS, "it is no beginning of what was"
        for file in _files(copy):
            file.unlink()
    yield


@contextmanager
def no_descriptors(service: Service) -> Iterator[None]:
    """The process has as many files open as it may."""
    service.store.db.dispose()
    with ExitStack() as stack, limited(resource.RLIMIT_NOFILE, 200):
        with suppress(OSError):
            while True:
                stack.enter_context(open(os.devnull))
        yield


@contextmanager
def _moved_away(service: Service) -> Iterator[Path]:
    folder = service.path.parent
    away = folder.with_name("away")
    away.mkdir()
    for file in _files(service.path):
        file.rename(away / file.name)
    yield away
    for file in _files(service.path):
        file.unlink()
    for file in reversed(_files(away / service.path.name)):
        file.rename(folder / file.name)
    away.rmdir()


def _files(path: Path) -> list[Path]:
    """The database, and what lies beside it.

    It is the first to go and the last to come back: whoever opens it meanwhile, such as the thread
    that writes usage, finds none, and not one without its log.
    """
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(path.name))


GONE = (SchemaOutdatedError, StoreUnavailableError)
"""There is no such database; its counters, or `health()`, say so in other words."""

DISASTERS: dict[Strike, tuple[type[StoreError], ...]] = {
    full_disk: (StoreFullError,),
    failing_disk: (StoreUnavailableError, StoreFullError),
    read_only_connections: (StoreReadOnlyError,),
    read_only_file: (StoreReadOnlyError,),
    no_permission: (StoreUnavailableError,),
    vanished_file: GONE,
    vanished_folder: GONE,
    replaced_file: (),
    corrupt_pages: (StoreCorruptError,),
    truncated_log: (),
    no_descriptors: (StoreUnavailableError,),
}
"""What can happen, and the errors that are named for it; with none, nobody works meanwhile."""

OF_ROOT = {read_only_file, no_permission}
"""What takes root to try: nobody else can become another user."""
