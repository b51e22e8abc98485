"""SECURITY.md: what it says of hashes and counters, and that the tests it names are there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from keysmith import (
    Engine,
    HmacSha256Hasher,
    InvalidKeyError,
    KeyCreate,
    KeyRevokedError,
    PolicyCreate,
    RateLimitedError,
    SqliteStore,
)
from keysmith.raw_keys import Hasher, KeyGenerator
from proofs.torture import TRIALS
from tests.command_line import COMMANDS

DOCUMENT = (Path(__file__).parent.parent / "SECURITY.md").read_text()
PEPPER = "pepper-that-nobody-may-read"


@pytest.mark.parametrize("hasher", [Hasher(), HmacSha256Hasher(PEPPER)])
def test_a_hash_is_no_key(tmp_path: Path, hasher: Hasher) -> None:
    """What the database holds opens nothing; nor, with a pepper, does a hash written into it."""
    store, raw_key = SqliteStore(tmp_path / "keys.db"), KeyGenerator().generate("sk", "live")
    with Engine(store, hasher=hasher) as engine:
        store.migrate()
        key = engine.create_key(KeyCreate(name="n")).key
        for text in (key.key_hash, key.hint, f"sk_live_{key.key_hash}"):
            with pytest.raises(InvalidKeyError):
                engine.validate_key(text)
        with store.db.begin() as connection:
            statement = "UPDATE keysmith_keys SET key_hash = ?"
            connection.exec_driver_sql(statement, (Hasher().hash(raw_key),))
        if type(hasher) is Hasher:
            assert engine.validate_key(raw_key).key.id == key.id
        else:
            with pytest.raises(InvalidKeyError):
                engine.validate_key(raw_key)


def test_the_counters_make_no_key_valid(tmp_path: Path) -> None:
    with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
        engine.store.migrate()
        policy = engine.create_policy(PolicyCreate(name="p", rate_limit=1))
        created = engine.create_key(KeyCreate(name="n", policy_id=policy.id))
        engine.validate_key(created.raw_key)
        with pytest.raises(RateLimitedError):
            engine.validate_key(created.raw_key)
        counters = tmp_path / "keys.db-counters"
        head = counters.read_bytes()[:64]
        counters.write_bytes(head + bytes(counters.stat().st_size - len(head)))
        engine.validate_key(created.raw_key)  # its limit is lifted
        engine.revoke_key(created.key.id)
        with pytest.raises(KeyRevokedError):
            engine.validate_key(created.raw_key)


# ---------------------------------------------------------------------------- the document


@pytest.mark.parametrize("name", re.findall(r"`(tests/\S+?)`", DOCUMENT))
def test_a_test_that_is_named(name: str) -> None:
    path, *names = name.split("::")
    found = import_module(path.removesuffix(".py").replace("/", "."))
    for part in names:
        found = getattr(found, part)


def test_trials_that_are_named() -> None:
    named = set(re.findall(r"trial `(\w+)`", DOCUMENT))
    assert named
    assert named <= set(TRIALS)


def test_commands_that_are_named() -> None:
    named = re.findall(r"(?:^|`)keysmith ([a-z-]+)(?: ([a-z-]+))?", DOCUMENT, re.MULTILINE)
    assert ("keys", "rotate-all") in named
    for words in named:
        assert {words[0], " ".join(words)} & set(COMMANDS), words


def test_every_line_says_what_shows_it() -> None:
    rows = re.findall(r"^\| \*\*.* \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        shown = row.strip("| ").rpartition(" | ")[2]
        assert shown.startswith(("`tests/", "trial `", "not shown")), row
