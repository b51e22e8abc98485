"""What is measured: for each row of the table, Keysmith's side and the bare one.

Engines are as a service would make them, with their default settings. Keys are drawn in turn from
`WARM` that lie anywhere in the database, or, for first sight, from more than an engine remembers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

from benchmarks import bare
from benchmarks.databases import (
    ADDRESS,
    SCOPES,
    hashes,
    key_id,
    plain,
    ruled,
    scattered,
    usage,
)
from benchmarks.harness import Pair, Timed, drawn, each
from benchmarks.workshop import Workshop
from keysmith import AsyncEngine, Engine, InvalidKeyError, KeyCreate

WARM = 1_000
USED = 100
"""Keys that usage is recorded for."""

BUFFERED = 500
"""Records that can wait without the writer's beginning to write."""

UNTIMED = 200
"""First sights after each writing of last uses, which costs SQLite the pages that it had in memory.
In earnest that happens once a second, here before each batch."""

COLD = 0.02
"""Seconds of a batch of first sights: enough after so much that is not timed."""

FEW, MANY = 1_000, 1_000_000


def validate_warm(shop: Workshop) -> Pair:
    """A key that has been seen, and nothing changed since."""
    database, keys = shop.copy(), scattered(plain(shop.keys), WARM)
    return Pair(_warm(shop.engine(database), keys), bare.lookup(database, hashes(keys)))


def validate_ruled(shop: Workshop) -> Pair:
    """A request as a service would have it judged and recorded.

    What waits to be written is written between the batches, and what has been forgotten over it
    read again; `validate_sustained` times that, too.
    """
    database, keys = shop.copy(), scattered(ruled(shop.keys), WARM)
    engine = shop.engine(database)
    draw = drawn_warm(engine, keys)

    def prepare(count: int) -> list[str]:
        engine.flush()
        return draw(count)

    subject = Timed(prepare, each(_judge(engine)))
    return Pair(subject, bare.lookup(database, hashes(keys)), most=BUFFERED)


def validate_sustained(shop: Workshop) -> Pair:
    """The same, without a pause, until all has been written."""
    database, keys = shop.copy(), scattered(ruled(shop.keys), USED)
    engine = shop.engine(database)
    judge = _judge(engine)

    def run(raw_keys: list[str]) -> None:
        for raw_key in raw_keys:
            judge(raw_key)
        engine.flush()

    subject = Timed(drawn(keys), run)
    return Pair(subject, bare.lookup(database, hashes(keys)), batch=0.2)


def validate_cold(shop: Workshop) -> Pair:
    """A key that is not in memory."""
    database, keys = shop.copy(), scattered(plain(shop.keys), shop.keys)
    lookup = bare.lookup_with_scopes(database, hashes(keys))
    return Pair(_cold(shop.engine(database), keys), lookup, batch=COLD)


def wrong_checksum(shop: Workshop) -> Pair:
    """A random string in Keysmith's format."""
    database, keys = shop.copy(), scattered(plain(shop.keys), WARM)
    engine = shop.engine(database)

    def refuse(raw_key: str) -> None:
        try:
            engine.validate_key(raw_key)
        except InvalidKeyError:
            return
        raise AssertionError("It was let through.")

    wrong = [raw_key[:-1] + ("1" if raw_key[-1] == "0" else "0") for raw_key in keys]
    subject = Timed(drawn(wrong), each(refuse))
    return Pair(subject, bare.lookup(database, hashes(keys)))


def create_key(shop: Workshop) -> Pair:
    """A key, durable when the call returns."""
    engine = shop.engine(shop.copy())
    subject = Timed(drawn([KeyCreate(name="Production")]), each(engine.create_key))
    return Pair(subject, bare.insert_key(shop.copy()), batch=0.05)


def record_usage(shop: Workshop) -> Pair:
    """Rows and the days and months that they add up to, until all is in the store."""
    engine = shop.engine(shop.copy())
    key_ids = [key_id(number) for number in plain(shop.keys)[:USED]]
    records = [usage(of, number) for number, of in enumerate(islice(cycle(key_ids), 10 * USED))]

    def run(batch: Sequence[Any]) -> None:
        for record in batch:
            engine.record_usage(record)
        engine.flush()

    subject = Timed(drawn(records), run)
    return Pair(subject, bare.insert_usage(shop.copy(), key_ids), batch=0.2)


def usage_floor(shop: Workshop) -> Pair:
    """What SQLite itself takes for days and months beside the rows."""
    key_ids = [key_id(number) for number in plain(shop.keys)[:USED]]
    whole = bare.insert_usage(shop.copy(), key_ids, aggregates=True)
    return Pair(whole, bare.insert_usage(shop.copy(), key_ids), batch=0.2)


def async_warm(shop: Workshop) -> Pair:
    """The awaitable call and the plain one, on the same engine."""
    database, keys = shop.copy(), scattered(plain(shop.keys), WARM)
    engine = shop.engine(database)
    awaitable = AsyncEngine(engine)

    async def validate_all(raw_keys: list[str]) -> None:
        for raw_key in raw_keys:
            await awaitable.validate_key(raw_key)

    subject = Timed(drawn_warm(engine, keys), on_loop(shop, validate_all))
    return Pair(subject, _warm(engine, keys))


def scale_warm(shop: Workshop) -> Pair:
    """Warm, in the largest database and in a small one."""
    many, few = (_warm(*_among(shop, count)) for count in (MANY, FEW))
    return Pair(many, few)


def scale_cold(shop: Workshop) -> Pair:
    """First sight, in the largest database and in a small one."""
    # Where there are fewer keys than an engine remembers, it must be told to remember none.
    many, few = (_cold(*_among(shop, count, cache_size=0)) for count in (MANY, FEW))
    return Pair(many, few, batch=COLD)


def scale_floor(shop: Workshop) -> Pair:
    """What SQLite itself takes longer in the largest database."""
    many, few = (
        bare.lookup_with_scopes(shop.original(count), hashes(scattered(plain(count), shop.keys)))
        for count in (MANY, FEW)
    )
    return Pair(many, few, batch=COLD)


def drawn_warm(engine: Engine, keys: Sequence[str]) -> Callable[[int], list[str]]:
    """Deals out keys that are in memory.

    They have been read again, that is, if last uses were written meanwhile, once a second.
    """
    draw = drawn(keys)

    def prepare(count: int) -> list[str]:
        raw_keys = draw(count)
        for raw_key in raw_keys:
            engine.validate_key(raw_key, ip=ADDRESS, method="GET")
        return raw_keys

    return prepare


def on_loop(
    shop: Workshop, work: Callable[[Any], Coroutine[Any, Any, object]]
) -> Callable[[Any], object]:
    """A `run` that awaits on one event loop, always the same."""
    runner = asyncio.Runner()
    shop.after(runner.close)
    return lambda prepared: runner.run(work(prepared))


def _among(shop: Workshop, count: int, **options: Any) -> tuple[Engine, list[str]]:
    return shop.engine(shop.original(count), **options), scattered(plain(count), shop.keys)


def _warm(engine: Engine, keys: Sequence[str]) -> Timed:
    return Timed(drawn_warm(engine, keys[:WARM]), each(engine.validate_key))


def _cold(engine: Engine, keys: Sequence[str]) -> Timed:
    draw = drawn(keys)

    def prepare(count: int) -> list[str]:
        engine.flush()  # so many different keys' last uses would be written within the batches
        for raw_key in draw(UNTIMED):
            engine.validate_key(raw_key)
        return draw(count)

    return Timed(prepare, each(engine.validate_key))


def _judge(engine: Engine) -> Callable[[str], None]:
    validate = partial(
        engine.validate_key, ip=ADDRESS, method="GET", path="/users/17", scopes=SCOPES[:1]
    )
    record = engine.record_usage

    def judge(raw_key: str) -> None:
        record(usage(validate(raw_key).key.id, 1))

    return judge
