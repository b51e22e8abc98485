"""AsyncEngine: the same calls, awaitable, and a loop that nobody holds up."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import gc
import inspect
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from keysmith import (
    AsyncEngine,
    Engine,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    Key,
    KeyCreate,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    PolicyViolationError,
    QuotaExceededError,
    RateLimitedError,
    SqliteStore,
    StoreUnavailableError,
    UsageCreate,
)
from keysmith.engine import asynchronous, buffer
from keysmith.engine import threads as module
from keysmith.engine.results import RateLimitStatus
from tests.conftest import Recorder, TurnableClock, mistyped
from tests.elsewhere import Elsewhere

T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "keys.db") as store:
        store.migrate()
    return tmp_path / "keys.db"


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await test()

    return asyncio.run(main(), debug=False)


class Hops:
    """How many calls were handed to threads."""

    def __init__(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for threads in (engine._threads, engine._validating):
            monkeypatch.setattr(threads, "run", self._counting(threads.run))

    def _counting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.count += 1
            return run(*arguments)

        return counted


def usage(key_id: str) -> UsageCreate:
    return UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)


# ---------------------------------------------------------------------------- the same calls


def public(cls: type) -> dict[str, Any]:
    return {name: member for name, member in vars(cls).items() if not name.startswith("_")}


def test_it_has_every_call_of_the_engine_with_the_same_signature() -> None:
    asynchronous_calls = public(AsyncEngine)
    for name, member in public(Engine).items():
        twin = asynchronous_calls.pop(name)
        assert inspect.getdoc(twin), name
        if isinstance(member, property):
            assert isinstance(twin, property), name
            continue
        signature, expected = inspect.signature(twin), inspect.signature(member)
        assert signature.parameters == expected.parameters, name
        if name == "for_tenant":
            assert signature.return_annotation == "AsyncEngine"
        else:
            assert signature.return_annotation == expected.return_annotation, name
            assert inspect.iscoroutinefunction(twin), name
    assert asynchronous_calls == {}


@pytest.mark.usefixtures("patient")
def test_they_do_the_same(path: Path) -> None:
    async def test() -> None:
        async with AsyncEngine(Engine(SqliteStore(path))) as engine:
            assert engine.store is engine.engine.store
            assert engine.tenant_id is None
            await engine.ensure_scopes(["read"])
            created = await engine.create_key(KeyCreate(name="production", scopes=["read"]))
            for _ in range(2):
                result = await engine.validate_key(created.raw_key, scopes=["read"])
                assert result == engine.engine.validate_key(created.raw_key)
            await engine.record_usage(usage(created.key.id))
            assert [day.request_count for day in await engine.aggregate_usage()] == [1]
            await engine.record_usage(usage("akey_unknown"))
            await engine.flush()
            assert engine.dropped_usage == 1
            rotated = await engine.rotate_key(created.key.id, grace=timedelta(0))
            with pytest.raises(KeyRevokedError):
                await engine.validate_key(created.raw_key)
            await engine.validate_key(rotated.raw_key)
            await engine.revoke_key(created.key.id, reason="over")
            with pytest.raises(InvalidStateTransitionError):
                await engine.revoke_key(created.key.id)
            with pytest.raises(KeyRevokedError):
                await engine.validate_key(rotated.raw_key)
            with pytest.raises(InvalidKeyError):
                await engine.validate_key("unknown")
            await engine.health()
            acme = await engine.for_tenant("acme")
            assert acme.tenant_id == "acme"
            with pytest.raises(KeyNotFoundError):
                await acme.get_key(created.key.id)
            await acme.close()
            assert await engine.count_keys() == 1

    run(test)


# ---------------------------------------------------------------------------- hops


@pytest.mark.usefixtures("patient")
def test_a_key_that_has_been_seen_takes_no_hop_and_all_else_one(
    memory: SqliteStore, monkeypatch: pytest.MonkeyPatch, clock: TurnableClock
) -> None:
    engine = AsyncEngine(Engine(memory, clock=clock))
    hops = Hops(engine, monkeypatch)

    async def test() -> None:
        policy = await engine.create_policy(PolicyCreate(name="limited", rate_limit=1000))
        created = await engine.create_key(
            KeyCreate(
                name="production", policy_id=policy.id, expires_at=clock.now + timedelta(hours=1)
            )
        )
        assert hops.count == 2
        await engine.validate_key(created.raw_key)
        assert hops.count == 3
        for _ in range(10):
            result = await engine.validate_key(created.raw_key)
            await engine.record_usage(usage(created.key.id))
        assert result.rate_limit is not None
        assert result.rate_limit.remaining == 1000 - 11
        assert hops.count == 3
        statistics = await engine.cache_statistics()
        assert (statistics.hits, statistics.misses, hops.count) == (10, 1, 4)

        with pytest.raises(InvalidKeyError):
            await engine.validate_key(mistyped(created.raw_key))
        assert hops.count == 4, "a wrong checksum is seen at once"

        engine.engine.update_policy(policy.id, PolicyUpdate(rate_limit=2000))
        result = await engine.validate_key(created.raw_key)
        assert result.rate_limit is not None
        assert (result.rate_limit.limit, hops.count) == (2000, 4), "a change is seen without a hop"

        clock.turn(hours=1)
        with pytest.raises(KeyExpiredError):
            await engine.validate_key(created.raw_key)
        assert hops.count == 5, "the expiry is written down"
        assert (await engine.get_key(created.key.id)).state.value == "expired"
        statistics = await engine.cache_statistics()
        assert (statistics.hits, statistics.misses) == (11, 2)

    run(test)


class CountingElsewhere:
    """A limiter that asks somebody far away."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def take(self, key_id: str, limits: Any, cost: int) -> RateLimitStatus | None:
        self.threads.append(threading.current_thread())
        if len(self.threads) > 2:
            raise RateLimitedError(retry_after=1)
        return None


def test_what_a_request_is_like_reaches_the_thread(path: Path, clock: TurnableClock) -> None:
    rules = {
        "allowed_ips": ["10.0.0.0/8"],
        "allowed_origins": ["https://app.example"],
        "allowed_methods": ["GET"],
        "allowed_paths": ["/users/*"],
        "daily_quota": 5,
    }

    async def test() -> None:
        async with AsyncEngine(Engine(SqliteStore(path), clock=clock)) as engine:
            assert await engine.now() == clock.now
            await engine.ensure_scopes(["read"])
            policy = await engine.create_policy(PolicyCreate(name="p", **rules))
            data = KeyCreate(name="k", policy_id=policy.id, scopes=["read"])
            for missing in ("nothing", "ip", "origin", "method", "path"):
                raw_key = (await engine.create_key(data)).raw_key
                request = {
                    "ip": "10.0.0.1",
                    "origin": "https://app.example",
                    "method": "GET",
                    "path": "/users/17",
                }
                if request.pop(missing, None) is None:
                    await engine.validate_key(raw_key, **request, scopes=["read"], cost=5)
                    with pytest.raises(QuotaExceededError):
                        await engine.validate_key(raw_key, **request)
                else:
                    with pytest.raises(PolicyViolationError):
                        await engine.validate_key(raw_key, **request)
            raw_key = (await engine.create_key(data)).raw_key
            with pytest.raises(InsufficientScopeError):
                await engine.validate_key(raw_key, **request, path="/users/17", scopes=["write"])

    run(test)


@pytest.mark.usefixtures("patient")
def test_limits_that_are_counted_elsewhere_are_not_waited_for_on_the_loop(
    memory: SqliteStore,
) -> None:
    limiter = CountingElsewhere()
    engine = AsyncEngine(Engine(memory, rate_limiter=limiter))

    async def test() -> None:
        policy = await engine.create_policy(PolicyCreate(name="limited", rate_limit=10))
        limited = await engine.create_key(KeyCreate(name="limited", policy_id=policy.id))
        for _ in range(2):
            await engine.validate_key(limited.raw_key)
        with pytest.raises(RateLimitedError):
            await engine.validate_key(limited.raw_key)
        assert len(limiter.threads) == 3
        assert threading.main_thread() not in limiter.threads
        statistics = await engine.cache_statistics()
        assert (statistics.hits, statistics.misses) == (2, 1)

    run(test)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("end", ["expiry", "grace"])
def test_an_end_that_comes_during_a_validation_is_not_written_on_the_loop(
    memory: SqliteStore, clock: TurnableClock, recorder: Recorder, end: str
) -> None:
    """However the clock ticks, a warm validation looks at it once."""
    ticking = False
    looks: list[threading.Thread] = []

    def ticks() -> Any:
        looks.append(threading.current_thread())
        return clock.turn(seconds=1) if ticking else clock.now

    engine = AsyncEngine(Engine(memory, clock=ticks, plugins=[recorder]))

    async def test() -> None:
        nonlocal ticking
        lasts = timedelta(seconds=1, microseconds=1)
        expires_at = clock.now + lasts if end == "expiry" else None
        created = await engine.create_key(KeyCreate(name="brief", expires_at=expires_at))
        if end == "grace":
            await engine.rotate_key(created.key.id, grace=timedelta(seconds=1, milliseconds=1))
        await engine.validate_key(created.raw_key)
        ticking = True
        looks.clear()
        await engine.validate_key(created.raw_key)
        assert looks == [threading.main_thread()]
        looks.clear()
        with pytest.raises(KeyExpiredError if end == "expiry" else KeyRevokedError):
            await engine.validate_key(created.raw_key)
        assert looks.count(threading.main_thread()) == 1

    run(test)


def test_context_variables_reach_the_thread(memory: SqliteStore) -> None:
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
    seen: list[str] = []

    class Tracing(Recorder):
        def on_policy_created(self, policy: Any) -> None:
            seen.append(request_id.get())

    engine = AsyncEngine(Engine(memory, plugins=[Tracing()]))

    async def test() -> None:
        request_id.set("r-17")
        await engine.create_policy(PolicyCreate(name="office"))

    run(test)
    assert seen == ["r-17"]


# ---------------------------------------------------------------------------- the loop


class Stalls:
    """The longest that the loop did not get round to a task that is always ready."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> Stalls:
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.05)
        self.worst = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(0.001)
            now = loop.time()
            self.worst = max(self.worst, now - last)
            last = now


HELD = 2.0
"""Seconds for which the other process holds the write lock."""

LONG = timedelta(seconds=60)
"""How long one waits for a lock that a test, however busy the machine is, lets go of sooner."""


def test_no_call_holds_the_loop_up_while_another_process_writes(
    path: Path, clock: TurnableClock
) -> None:
    engine = AsyncEngine(Engine(SqliteStore(path, busy_timeout=LONG), clock=clock))

    async def test() -> float:
        created = await engine.create_key(KeyCreate(name="production"))
        other = await engine.create_key(KeyCreate(name="other"))
        unknown = engine.engine._context.generator.generate("sk", "live")
        await engine.validate_key(created.raw_key)
        with Elsewhere(path) as elsewhere:
            await asyncio.to_thread(elsewhere, "migrate")
            async with Stalls() as stalls:
                await asyncio.to_thread(elsewhere, "lock")
                began = asyncio.get_running_loop().time()
                writes = [
                    asyncio.create_task(call)
                    for call in (
                        # more than there are threads
                        *(engine.create_key(KeyCreate(name=str(n))) for n in range(20)),
                        engine.revoke_key(other.key.id),
                        engine.flush(),
                        engine.query_usage(),
                    )
                ]
                recorded = 0
                while asyncio.get_running_loop().time() < began + HELD:
                    for _ in range(20):
                        await engine.validate_key(created.raw_key)
                    for _ in range(4):
                        await engine.record_usage(usage(created.key.id))
                    recorded += 4
                    with pytest.raises(InvalidKeyError):
                        await engine.validate_key(unknown)
                    await asyncio.sleep(0.002)
                assert not any(write.done() for write in writes)
                await asyncio.to_thread(elsewhere, "unlock")
            await asyncio.gather(*writes)
        days = await engine.aggregate_usage()
        assert [day.request_count for day in days] == [recorded]
        await engine.close()
        return stalls.worst

    worst = run(test)
    print(f"the loop stood still for {worst * 1000:.1f} ms at most")
    # The loop lets the other process go on: were it to wait, it would do so until it gives up.
    assert worst < LONG.total_seconds() / 2


@pytest.mark.usefixtures("patient")
def test_a_full_buffer_is_not_waited_for_on_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch, clock: TurnableClock
) -> None:
    monkeypatch.setattr(buffer, "CAPACITY", buffer.BATCH)
    engine = AsyncEngine(Engine(SqliteStore(path, busy_timeout=LONG), clock=clock))
    hops = Hops(engine, monkeypatch)

    async def test() -> None:
        key_id = (await engine.create_key(KeyCreate(name="production"))).key.id
        with Elsewhere(path) as elsewhere:
            await asyncio.to_thread(elsewhere, "lock")
            for _ in range(buffer.CAPACITY):
                await engine.record_usage(usage(key_id))
            assert hops.count == 1
            waiting = [asyncio.create_task(engine.record_usage(usage(key_id))) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
            assert hops.count == 4
            await asyncio.to_thread(elsewhere, "unlock")
            await asyncio.gather(*waiting)
        [day] = await engine.aggregate_usage()
        assert day.request_count == buffer.CAPACITY + 3
        await engine.close()

    run(test)


@contextmanager
def held(lock: AbstractContextManager[object]) -> Iterator[None]:
    """A thread of this process holds the lock, or a transaction."""
    holding, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holding.set()
            enough.wait(30)  # should the loop itself be waiting

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_a_call_that_is_cancelled_is_finished_by_its_thread_or_never_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, busy_timeout=LONG)
    engine = AsyncEngine(Engine(store))
    outcome, under_way = module._outcome, threading.Semaphore(0)

    def counted(call: Callable[[], Any]) -> Any:
        under_way.release()
        return outcome(call)

    monkeypatch.setattr(module, "_outcome", counted)

    async def test() -> None:
        with held(store.transaction()):
            begun = [
                asyncio.create_task(engine.create_key(KeyCreate(name="begun")))
                for _ in range(asynchronous.THREADS)
            ]
            for _ in begun:
                assert await asyncio.to_thread(under_way.acquire, timeout=20)
            queued = asyncio.create_task(engine.create_key(KeyCreate(name="queued")))
            await asyncio.sleep(0.01)
            for task in (*begun, queued):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        await engine.create_key(KeyCreate(name="next"))
        for _ in range(1000):
            if await engine.count_keys() == asynchronous.THREADS + 1:
                break
            await asyncio.sleep(0.01)
        names = [key.name for key in await engine.list_keys()]
        assert sorted(names) == ["begun"] * asynchronous.THREADS + ["next"]
        await engine.close()

    run(test)


@contextmanager
def counting_elsewhere(path: Path) -> Iterator[None]:
    with open(f"{path}-counters") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("patient")
def test_limits_that_another_process_is_counting_in_are_waited_for_by_a_thread(
    path: Path, clock: TurnableClock
) -> None:
    engine = AsyncEngine(Engine(SqliteStore(path, busy_timeout=LONG), clock=clock))

    async def test() -> None:
        policy = await engine.create_policy(PolicyCreate(name="limited", daily_quota=3))
        created = await engine.create_key(KeyCreate(name="limited", policy_id=policy.id))
        await engine.validate_key(created.raw_key)
        with counting_elsewhere(path):
            waiting = [asyncio.create_task(engine.validate_key(created.raw_key)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(QuotaExceededError) == 1
        statistics = await engine.cache_statistics()
        assert (statistics.hits, statistics.misses) == (3, 1)
        await engine.close()

    run(test)


@pytest.mark.parametrize("reading", [False, True])
def test_a_memory_database_that_another_thread_uses_is_waited_for_by_a_thread(
    memory: SqliteStore, reading: bool
) -> None:
    engine = AsyncEngine(Engine(memory))
    created = engine.engine.create_key(KeyCreate(name="production"))
    engine.engine.validate_key(created.raw_key)

    async def test() -> None:
        with held(memory.credentials._lock if reading else memory.transaction()):
            waiting = [asyncio.create_task(engine.validate_key(created.raw_key)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
        for result in await asyncio.gather(*waiting):
            assert result.key.id == created.key.id
        await engine.validate_key(created.raw_key)

    run(test)


def test_a_store_need_not_know_of_loops(memory: SqliteStore, clock: TurnableClock) -> None:
    credentials, counters = memory.credentials, memory.counters
    memory.credentials = SimpleNamespace(  # type: ignore[assignment]
        version=credentials.version, find=credentials.find, close=credentials.close
    )
    memory.counters = SimpleNamespace(update=counters.update, close=counters.close)  # type: ignore[assignment]
    engine = AsyncEngine(Engine(memory, clock=clock))

    async def test() -> None:
        policy = await engine.create_policy(PolicyCreate(name="limited", daily_quota=2))
        created = await engine.create_key(KeyCreate(name="limited", policy_id=policy.id))
        for _ in range(2):
            await engine.validate_key(created.raw_key)
        with pytest.raises(QuotaExceededError):
            await engine.validate_key(created.raw_key)

    run(test)


# ---------------------------------------------------------------------------- threads


@pytest.fixture
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def exhausted() -> Iterator[None]:
        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            yield

    return exhausted


def test_what_no_thread_could_be_started_for_is_refused_and_never_done(
    memory: SqliteStore, no_more_threads: Callable[[], AbstractContextManager[None]]
) -> None:
    engine = AsyncEngine(Engine(memory))

    async def test() -> None:
        with no_more_threads():
            refused = "nothing was done: can't start new thread"
            with pytest.raises(StoreUnavailableError, match=refused):
                await engine.create_policy(PolicyCreate(name="refused"))
            data = PolicyCreate(name="not kept")
            kept = weakref.ref(data)
            with pytest.raises(StoreUnavailableError):
                await engine.create_policy(data)
            del data
            gc.collect()
            assert kept() is None
        await engine.create_policy(PolicyCreate(name="done"))
        assert [policy.name for policy in await engine.list_policies()] == ["done"]

    run(test)


def test_an_error_of_a_thread_leaves_no_raw_key_in_its_frames(memory: SqliteStore) -> None:
    engine = AsyncEngine(Engine(memory, cache_size=0))

    async def test() -> None:
        created = await engine.create_key(KeyCreate(name="production"))
        await engine.revoke_key(created.key.id)
        for _ in range(100):
            with pytest.raises(KeyRevokedError) as raised:
                await engine.validate_key(created.raw_key)
            frames = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
            ours = [frame for frame in frames if frame.f_code.co_filename != __file__]
            assert len(ours) > 3
            assert not any(created.raw_key in repr(frame.f_locals) for frame in ours)

    run(test)


def test_what_finds_no_further_thread_waits_for_those_that_are_there(
    memory: SqliteStore, no_more_threads: Callable[[], AbstractContextManager[None]]
) -> None:
    engine = AsyncEngine(Engine(memory))
    key = engine.engine.create_key(KeyCreate(name="first")).key
    enough = threading.Event()

    async def test() -> None:
        def wait(_: Key) -> None:
            enough.wait()

        update = engine.update_key(key.id, KeyUpdate(name="changed"), precondition=wait)
        updating = asyncio.create_task(update)
        await asyncio.sleep(0)
        with no_more_threads():
            creating = asyncio.create_task(engine.create_key(KeyCreate(name="second")))
            await asyncio.sleep(0)
        enough.set()
        await updating
        assert (await creating).key.name == "second"
        assert await engine.count_keys() == 2

    run(test)


def test_a_precondition_that_raises_stop_iteration_holds_nobody_up(memory: SqliteStore) -> None:
    engine = AsyncEngine(Engine(memory))

    def stop(key: Key) -> None:
        raise StopIteration

    async def test() -> None:
        key = (await engine.create_key(KeyCreate(name="production"))).key
        update = engine.update_key(key.id, KeyUpdate(name="changed"), precondition=stop)
        with pytest.raises(RuntimeError, match="StopIteration") as raised:
            await asyncio.wait_for(update, 60)
        assert isinstance(raised.value.__cause__, StopIteration)

    run(test)


# ---------------------------------------------------------------------------- the end


def test_closing(path: Path) -> None:
    others = set(threading.enumerate())
    engine = AsyncEngine(Engine(SqliteStore(path)))

    async def test() -> None:
        created = await engine.create_key(KeyCreate(name="production"))
        await engine.validate_key(created.raw_key)
        await engine.record_usage(usage(created.key.id))
        await asyncio.gather(engine.close(), engine.close())
        await engine.close()
        for call in (
            engine.count_keys(),
            engine.validate_key(created.raw_key),
            engine.record_usage(usage(created.key.id)),
            engine.for_tenant("acme").get_key(created.key.id),
        ):
            with pytest.raises(StoreUnavailableError, match="closed"):
                await call

    run(test)
    with SqliteStore(path) as store:
        assert store.usages.count() == 1
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("keysmith"):
            thread.join(30)
            assert not thread.is_alive(), thread.name


def test_what_cannot_be_written_at_the_end_is_told_and_the_threads_end(path: Path) -> None:
    engine = AsyncEngine(Engine(SqliteStore(path, busy_timeout=timedelta(milliseconds=10))))

    async def test() -> None:
        created = await engine.create_key(KeyCreate(name="production"))
        with Elsewhere(path) as elsewhere:
            await asyncio.to_thread(elsewhere, "lock")
            await engine.record_usage(usage(created.key.id))
            with pytest.raises(StoreUnavailableError, match="locked"):
                await engine.close()
            await asyncio.to_thread(elsewhere, "unlock")
        await engine.close()

    run(test)


def test_two_loops_in_two_threads(path: Path, clock: TurnableClock) -> None:
    engine = AsyncEngine(Engine(SqliteStore(path, busy_timeout=LONG), clock=clock))
    created = engine.engine.create_key(KeyCreate(name="production"))
    failures: list[BaseException] = []

    async def use() -> None:
        for number in range(100):
            await engine.validate_key(created.raw_key)
            await engine.record_usage(usage(created.key.id))
            if number % 20 == 0:
                await engine.create_policy(
                    PolicyCreate(name=f"{threading.current_thread().name} {number}")
                )

    async def use_other() -> None:
        for _ in range(20):
            await engine.get_key(created.key.id)

    async def both() -> None:
        await asyncio.gather(use(), use_other())

    def loop() -> None:
        try:
            asyncio.run(both())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert engine.engine.store.policies.count() == 10
    [day] = engine.engine.aggregate_usage()
    assert day.request_count == 200
    asyncio.run(engine.close())


def test_warm_validations_of_many_tasks_share_one_engine(memory: SqliteStore) -> None:
    engine = AsyncEngine(Engine(memory))

    async def test() -> None:
        created = await engine.create_key(KeyCreate(name="production"))

        async def validate() -> str:
            return (await engine.validate_key(created.raw_key)).key.id

        found = await asyncio.gather(*(validate() for _ in range(200)))
        assert set(found) == {created.key.id}

    run(test)
