"""No raw key and no hash where it does not belong: logs, errors, reprs, pages of the database."""

from __future__ import annotations

import io
import logging
import traceback
from pathlib import Path

import pytest

from keysmith import (
    Engine,
    HmacSha256Hasher,
    KeyCreate,
    KeysmithError,
    KeyUpdate,
    PolicyCreate,
    SqliteStore,
)
from tests.conftest import Recorder, TurnableClock

PEPPER = "pepper-that-nobody-may-read"


def everything_that_can_be_done(
    engine: Engine, clock: TurnableClock
) -> tuple[list[str], list[str]]:
    """A tour of the engine; gives the raw keys that it made, and all that it showed of them."""
    raw_keys, shown = [], []

    def attempt(call: object, *given: object, **named: object) -> None:
        try:
            shown.append(repr(call(*given, **named)))  # type: ignore[operator]
        except KeysmithError as error:
            shown.append(f"{error!r} {error}")
            shown.extend(traceback.format_exception(error))

    engine.ensure_scopes(["read"])
    policy = engine.create_policy(PolicyCreate(name="p", allowed_ips=["10.0.0.0/8"]))
    for number in range(5):
        created = engine.create_key(KeyCreate(name=f"key {number}", scopes=["read"]))
        rotated = engine.rotate_key(created.key.id)
        raw_keys += [created.raw_key, rotated.raw_key]
        shown += [repr(created), repr(rotated), repr(engine.get_key(created.key.id))]
        for raw_key in (created.raw_key, rotated.raw_key, rotated.raw_key[:-1]):
            attempt(engine.validate_key, raw_key)
            attempt(engine.validate_key, raw_key, scopes=["nope"])
            attempt(engine.for_tenant("other").validate_key, raw_key)
            attempt(engine.get_key, raw_key)
            attempt(engine.revoke_key, raw_key)
            attempt(engine.assign_scopes, raw_key, [raw_key])
            attempt(
                engine.import_key,
                KeyCreate(name="again"),
                key_hash=engine._context.hasher.hash(raw_key),
                hint="abcd",
            )
        attempt(engine.update_key, created.key.id, KeyUpdate(policy_id=policy.id))
        attempt(engine.validate_key, rotated.raw_key, ip="11.0.0.1")
        attempt(engine.suspend_key, created.key.id)
        attempt(engine.validate_key, created.raw_key)
        attempt(engine.reactivate_key, created.key.id)
        clock.turn(days=2)
        attempt(engine.validate_key, created.raw_key)
        attempt(engine.cleanup_grace_expired)
        attempt(engine.list_rotations)
        attempt(engine.revoke_key, created.key.id, reason="leaked")
        attempt(engine.validate_key, rotated.raw_key)
        attempt(engine.delete_key if number == 4 else engine.get_key, created.key.id)
    return raw_keys, shown


def test_secrets_stay_where_they_belong(
    tmp_path: Path, clock: TurnableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.DEBUG)
    names = ["", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "alembic", "keysmith"]
    for name in names:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
    logging.getLogger().addHandler(handler)
    path = tmp_path / "keys.db"
    recorder = Recorder()
    hasher = HmacSha256Hasher(PEPPER)
    try:
        with Engine(SqliteStore(path), clock=clock, plugins=[recorder], hasher=hasher) as engine:
            engine.store.migrate()
            raw_keys, shown = everything_that_can_be_done(engine, clock)
            pages = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    finally:
        logging.getLogger().removeHandler(handler)
        for name in names:
            logging.getLogger(name).manager._clear_cache()  # type: ignore[attr-defined]
    pages += path.read_bytes()
    logged = log.getvalue()
    assert "INSERT INTO keysmith_keys" in logged, "the log was on"
    assert len(raw_keys) == 10
    hashes = [hasher.hash(raw_key) for raw_key in raw_keys]
    events = repr(recorder.events)
    for raw_key, key_hash in zip(raw_keys, hashes, strict=True):
        secret = raw_key.split("_")[-1]
        assert secret.encode() not in pages
        for text in (logged, events, *shown):
            assert secret not in text
            assert key_hash not in text
    assert any(key_hash.encode() in pages for key_hash in hashes)
    assert PEPPER not in logged + events + repr(hasher)
    assert PEPPER.encode() not in pages
