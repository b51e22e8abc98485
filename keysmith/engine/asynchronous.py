"""The engine for event loops: the same calls, awaitable, over the one implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable
from copy import copy
from datetime import datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from keysmith.engine.engine import Engine
from keysmith.engine.results import ValidationResult
from keysmith.engine.threads import Threads
from keysmith.engine.usage import Request
from keysmith.models import UsageCreate
from keysmith.stores.base import Store
from keysmith.tracebacks import forget_values

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16
"""Calls that can be under way at once for one engine; more of them queue."""

VALIDATING_THREADS = 4
"""Threads that only validate, so that no validation queues behind those who wait to write."""


def _awaitable(
    call: Callable[Concatenate[Engine, P], T],
) -> Callable[Concatenate[AsyncEngine, P], Coroutine[Any, Any, T]]:
    @wraps(call)
    async def hop(self: AsyncEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._threads.run(partial(call, self.engine, *args, **kwargs))
        except BaseException as error:
            del args, kwargs
            forget_values(error)
            raise

    return hop


class AsyncEngine:
    """Every call of an `Engine` as a coroutine. Safe to share between tasks, loops and threads.

    What nobody has to be waited for is answered on the event loop: recording usage, and validation
    of a key that has been seen before. If anything has changed since, its row is read again, which
    takes less than a hop to a thread would, and waits for no writer. All else takes one hop.

    A call that is cancelled while a thread is at it is finished there all the same. Transactions
    belong to threads: `store.transaction()` is for synchronous code, and nothing in it is awaited.
    """

    def __init__(self, engine: Engine) -> None:
        """`engine` stays usable beside this, and is closed with it."""
        self.engine = engine
        self._threads = Threads(THREADS, "keysmith")
        self._validating = Threads(VALIDATING_THREADS, "keysmith-validate")

    async def validate_key(
        self,
        raw_key: str,
        *,
        ip: str | None = None,
        origin: str | None = None,
        method: str | None = None,
        path: str | None = None,
        scopes: Iterable[str] = (),
        cost: int = 1,
    ) -> ValidationResult:
        """See `Engine.validate_key`."""
        try:
            result = self.engine._validation.validate(  # noqa: SLF001
                raw_key, ip, origin, method, path, scopes, cost, at_once=True
            )
            if result is not None:
                return result
            validate = partial(
                self.engine.validate_key,
                ip=ip,
                origin=origin,
                method=method,
                path=path,
                scopes=scopes,
                cost=cost,
            )
            return await self._validating.run(partial(validate, raw_key))
        except BaseException as error:
            del raw_key
            forget_values(error)
            raise

    async def record_usage(self, data: UsageCreate) -> None:
        """See `Engine.record_usage`."""
        if not self.engine._usage.record(data, wait=False):  # noqa: SLF001
            await self._threads.run(partial(self.engine.record_usage, data))

    async def _note_usage(self, *request: *Request) -> None:
        note = self.engine._usage.note  # noqa: SLF001
        if not note(*request, wait=False):
            await self._threads.run(partial(note, *request))

    def for_tenant(self, tenant_id: str, *, app_id: str | None = None) -> AsyncEngine:
        """See `Engine.for_tenant`. It may be awaited, and need not be."""
        bound = copy(self)
        bound.engine = self.engine.for_tenant(tenant_id, app_id=app_id)
        return bound

    @property
    def store(self) -> Store:
        """See `Engine.store`."""
        return self.engine.store

    @property
    def tenant_id(self) -> str | None:
        """See `Engine.tenant_id`."""
        return self.engine.tenant_id

    @property
    def dropped_usage(self) -> int:
        """See `Engine.dropped_usage`."""
        return self.engine.dropped_usage

    async def now(self) -> datetime:
        """See `Engine.now`."""
        return self.engine.now()

    create_key = _awaitable(Engine.create_key)
    import_key = _awaitable(Engine.import_key)
    get_key = _awaitable(Engine.get_key)
    list_keys = _awaitable(Engine.list_keys)
    count_keys = _awaitable(Engine.count_keys)
    update_key = _awaitable(Engine.update_key)
    delete_key = _awaitable(Engine.delete_key)
    rotate_key = _awaitable(Engine.rotate_key)
    revoke_key = _awaitable(Engine.revoke_key)
    suspend_key = _awaitable(Engine.suspend_key)
    reactivate_key = _awaitable(Engine.reactivate_key)
    cleanup_expired_keys = _awaitable(Engine.cleanup_expired_keys)
    cleanup_grace_expired = _awaitable(Engine.cleanup_grace_expired)
    maintain = _awaitable(Engine.maintain)
    list_rotations = _awaitable(Engine.list_rotations)
    list_keys_due_for_rotation = _awaitable(Engine.list_keys_due_for_rotation)
    query_usage = _awaitable(Engine.query_usage)
    aggregate_usage = _awaitable(Engine.aggregate_usage)
    summarize_usage = _awaitable(Engine.summarize_usage)
    purge_usage = _awaitable(Engine.purge_usage)
    create_policy = _awaitable(Engine.create_policy)
    get_policy = _awaitable(Engine.get_policy)
    list_policies = _awaitable(Engine.list_policies)
    update_policy = _awaitable(Engine.update_policy)
    delete_policy = _awaitable(Engine.delete_policy)
    create_scope = _awaitable(Engine.create_scope)
    ensure_scopes = _awaitable(Engine.ensure_scopes)
    get_scope = _awaitable(Engine.get_scope)
    list_scopes = _awaitable(Engine.list_scopes)
    list_key_scopes = _awaitable(Engine.list_key_scopes)
    update_scope = _awaitable(Engine.update_scope)
    delete_scope = _awaitable(Engine.delete_scope)
    assign_scopes = _awaitable(Engine.assign_scopes)
    remove_scopes = _awaitable(Engine.remove_scopes)
    cache_statistics = _awaitable(Engine.cache_statistics)
    health = _awaitable(Engine.health)
    flush = _awaitable(Engine.flush)

    async def close(self) -> None:
        """See `Engine.close`. Calls that are under way are waited for by nobody."""
        try:
            await asyncio.to_thread(self.engine.close)
        finally:
            if self.engine.tenant_id is None:
                self._threads.close()
                self._validating.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self
