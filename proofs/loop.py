"""How long an event loop stands still while another process holds the write lock: `make loop`.

The same work is done with the lock free and with it held; the loop should not know the difference.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from keysmith import AsyncEngine, Engine, InvalidKeyError, KeyCreate, SqliteStore, UsageCreate
from tests.elsewhere import Elsewhere
from tests.test_async import Stalls

SECONDS = 2.0


async def use(engine: AsyncEngine, raw_key: str, unknown: str) -> float:
    """Validates and records for a while; gives the longest stall, in seconds."""
    loop = asyncio.get_running_loop()
    key_id = (await engine.validate_key(raw_key)).key.id
    usage = UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)
    async with Stalls() as stalls:
        end = loop.time() + SECONDS
        while loop.time() < end:
            for _ in range(20):
                await engine.validate_key(raw_key)
            for _ in range(4):
                await engine.record_usage(usage)
            with suppress(InvalidKeyError):
                await engine.validate_key(unknown)
            await asyncio.sleep(0.002)
    return stalls.worst


async def prove(path: Path) -> None:
    """Prints both figures."""
    store = SqliteStore(path, busy_timeout=timedelta(minutes=1))
    store.migrate()
    async with AsyncEngine(Engine(store)) as engine:
        raw_key = (await engine.create_key(KeyCreate(name="production"))).raw_key
        unknown = (await engine.create_key(KeyCreate(name="deleted"))).raw_key
        await engine.delete_key((await engine.validate_key(unknown)).key.id)
        with Elsewhere(path) as elsewhere:
            await asyncio.to_thread(elsewhere, "migrate")
            free = await use(engine, raw_key, unknown)
            await asyncio.to_thread(elsewhere, "lock")
            writes = [
                asyncio.create_task(engine.create_key(KeyCreate(name=str(number))))
                for number in range(20)
            ]
            held = await use(engine, raw_key, unknown)
            assert not any(write.done() for write in writes)
            await asyncio.to_thread(elsewhere, "unlock")
            await asyncio.gather(*writes)
    print(f"longest stall with the lock free: {1000 * free:.1f} ms")
    print(f"held by another process for {SECONDS:.0f} s:  {1000 * held:.1f} ms")


def main() -> None:
    """On a new database."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(prove(Path(folder) / "keys.db"))


if __name__ == "__main__":
    main()
