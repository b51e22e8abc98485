"""The peers' side of the table, run by the Python of their own environment, which has no Keysmith.

Reads a request from standard input and writes the comparison to standard output, both as JSON. Each
peer has a database of as many keys as ours, set up and used as its own documentation shows.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import bare
from benchmarks.harness import Pair, Plan, Timed, compare, drawn, each

WARM = 1_000
"""Keys that are drawn in turn, as on our side."""

WARM_SLOWLY = 8
"""The same of a peer that takes a tenth of a second to make one."""


def keyshield(folder: Path, count: int, *, cached: bool) -> Timed:
    """`verify_key` with a session for each request and Argon2, the artificial delays off."""
    import aiocache
    from keyshield import ApiKeyService
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.sql import SqlAlchemyApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    database = folder / "keyshield.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    hasher = Argon2ApiKeyHasher(pepper="for measuring only")
    cache = aiocache.SimpleMemoryCache()
    none: dict[str, Any] = {"min_delay": 0.0, "max_delay": 0.0}

    def service(session: Any) -> Any:
        repository = SqlAlchemyApiKeyRepository(session)
        if cached:
            return CachedApiKeyService(repository, hasher, cache=cache, **none)
        return ApiKeyService(repository, hasher, **none)

    async def make() -> list[str]:
        async with sessions() as session, session.begin():
            await SqlAlchemyApiKeyRepository(session).ensure_table(engine)
            made = [await service(session).create(name="p") for _ in range(WARM_SLOWLY)]
        return [raw_key for _, raw_key in made]

    async def verify(raw_keys: list[str]) -> None:
        for raw_key in raw_keys:
            async with sessions() as session, session.begin():
                await service(session).verify_key(raw_key)

    runner = asyncio.Runner()
    raw_keys = runner.run(make())
    _multiply(database, "api_keys", count, ("id", "key_id", "key_hash"))
    if cached:
        runner.run(verify(raw_keys))
    return Timed(drawn(raw_keys), lambda prepared: runner.run(verify(prepared)))


def drf_api_key(folder: Path, count: int) -> Timed:
    """`APIKey.objects.is_valid`, as the permission class calls it."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    database = folder / "drf.db"
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database)}},
        INSTALLED_APPS=["rest_framework", "rest_framework_api_key"],
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    from rest_framework_api_key.models import APIKey

    raw_keys = [APIKey.objects.create_key(name="p")[1] for _ in range(WARM)]
    _multiply(database, "rest_framework_api_key_apikey", count, ("id", "prefix"))

    def verify(raw_key: str) -> None:
        if not APIKey.objects.is_valid(raw_key):
            raise LookupError("There is no such key.")

    return Timed(drawn(raw_keys), each(verify))


def _multiply(database: Path, table: str, count: int, unique: tuple[str, ...]) -> None:
    """Fills the table with copies of a row that differ in what must be unique."""
    connection = sqlite3.connect(database)
    columns = list(bare.row_of(connection, table))
    copied = [f"{name} || '-' || number" if name in unique else name for name in columns]
    connection.execute(
        "WITH RECURSIVE numbers(number) AS "
        f"(SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < {count}) "
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(copied)} "
        f"FROM (SELECT * FROM {table} LIMIT 1), numbers"
    )
    connection.commit()
    connection.close()


PEERS: dict[str, Callable[[Path, int], Timed]] = {
    "keyshield_cached": partial(keyshield, cached=True),
    "keyshield_uncached": partial(keyshield, cached=False),
    "drf_api_key": drf_api_key,
}


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    with TemporaryDirectory(dir=request["folder"]) as folder:
        peer = PEERS[request["peer"]](Path(folder), request["keys"])
        lookup = bare.lookup(Path(request["database"]), request["hashes"])
        comparison = compare(Pair(peer, lookup), Plan(**request["plan"]))
    json.dump(comparison.to_json(), sys.stdout)


if __name__ == "__main__":
    main()
