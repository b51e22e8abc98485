"""Whatever one tenant calls, another sees nothing of it: `--only tenants`.

The tenant `a` makes every kind of call in an order by chance, with IDs, names, hashes and raw keys
of its own, of the tenant `b` and of nobody. Each call is made twice: beside `b`, and in a database
that is the same but has nothing of `b`. Both must answer the same: so nothing of `b` is told, be it
only by a number, and what is `b`'s looks like what does not exist. And after each call every row of
`b` is as it was.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, is_dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from random import Random, randrange
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from keysmith import (
    Engine,
    Hasher,
    KeyCreate,
    KeyGenerator,
    KeysmithError,
    PolicyCreate,
    SqliteStore,
    UsageCreate,
)
from keysmith.ids import ID_PATTERN, IdPrefix
from keysmith.raw_keys import SECRET_LENGTH, checksum
from keysmith.testing import TurnableClock
from proofs.tenant_calls import CALLS, NOW, OF_THE_PROCESS, Pick, Things

PROMISE = (
    "Whatever a tenant calls, with whatever IDs, names, hashes and raw keys, nothing that another "
    "tenant can observe changes, and the answer is the one that there would be without the other; "
    "the timing of a lookup aside, and that a secret can be imported only once."
)
BROKEN = (
    "a key was found without a look at its tenant; a clean-up went over all tenants; idempotency "
    "keys were shared; keys of all tenants were counted; the purge told how many records of all "
    "were old; an import told that another tenant had rotated the secret out; a page of scopes "
    "began after one of another tenant"
)

SEQUENCES, QUICK, EACH = 50, 2, 2
"""`EACH`: how often every kind of call is in a sequence."""

THEIRS, ANYBODYS = ["theirs"], ["mine", "mine", "theirs", "nobody's"]
"""Whose IDs, hashes and raw keys the calls of a sequence take."""

ROWS = {
    "keysmith_keys": "tenant_id <> 'a'",
    "keysmith_policies": "tenant_id <> 'a'",
    "keysmith_scopes": "tenant_id <> 'a'",
    "keysmith_key_scopes": "key_id IN (SELECT id FROM keysmith_keys WHERE tenant_id <> 'a')",
    "keysmith_usage": "tenant_id <> 'a'",
    "keysmith_usage_agg": "tenant_id <> 'a'",
    "keysmith_rotations": "tenant_id <> 'a'",
}

_ID = re.compile(rf"(?:{'|'.join(IdPrefix)})_{ID_PATTERN}")


def _furnish(engine: Engine, clock: TurnableClock, text: str) -> Things:
    """A key in every state, of which some have not been written down yet."""
    clock.now = NOW - timedelta(days=60)
    engine.ensure_scopes(["read", "read:users"])
    policy = engine.create_policy(
        PolicyCreate(name="p", description=text, rate_limit=5, rotation_period=timedelta(days=9))
    )
    unused = engine.create_policy(PolicyCreate(name="unused", description=text))
    later = clock.now + timedelta(days=1)
    sorts: list[dict[str, Any]] = [{}, {"policy_id": policy.id}, {"expires_at": later}, *[{}] * 4]
    created = [
        engine.create_key(KeyCreate(name=f"{text} {number}", scopes=["read"], **more))
        for number, more in enumerate(sorts)
    ]
    keys = [each.key.id for each in created]
    for key_id in keys:
        engine.record_usage(
            UsageCreate(key_id=key_id, endpoint=f"/{text}", method="GET", status_code=200)
        )
    raw_keys = [each.raw_key for each in created]
    raw_keys += [engine.rotate_key(keys[0]).raw_key, engine.rotate_key(keys[3]).raw_key]
    engine.revoke_key(keys[4])
    engine.suspend_key(keys[5])
    engine.suspend_key(keys[6])
    clock.now = NOW
    raw_keys += [
        engine.rotate_key(keys[3], idempotency_key="again").raw_key,
        engine.create_key(KeyCreate(name=text), idempotency_key="again").raw_key,
    ]
    engine.record_usage(
        UsageCreate(key_id=keys[0], endpoint=f"/{text}", method="GET", status_code=500)
    )
    engine.flush()
    scopes = [scope.id for scope in engine.list_scopes()]
    rotations = [rotation.id for rotation in engine.list_rotations()]
    records = [record.id for record in engine.query_usage()]
    return Things(keys, raw_keys, [policy.id, unused.id], scopes, rotations, records)


class Numbered(KeyGenerator):
    """Raw keys without chance."""

    def __init__(self) -> None:
        self._numbers = count()

    def generate(self, prefix: str, environment: str) -> str:
        body = f"{prefix}_{environment}_{next(self._numbers):0{SECRET_LENGTH}}"
        return body + checksum(body)


class Outcome(NamedTuple):
    """What a call answers, or refuses with."""

    told: str
    succeeded: bool


class Side:
    """A fresh copy of a template, which each sequence of calls gets."""

    def __init__(self, template: Path, known: set[str], clock: TurnableClock) -> None:
        self.path = template.with_name(f"copy-of-{template.name}")
        for old in self.path.parent.glob(f"{self.path.name}*"):
            old.unlink()
        shutil.copy(template, self.path)
        self.engine = Engine(SqliteStore(self.path), clock=clock, generator=Numbered())
        self._names = {each: each for each in known}

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def call(self, name: str, app_id: str | None, *given: Any, **named: Any) -> Outcome:
        """As the tenant `a`; IDs that are new are told by the order in which they were seen."""
        a = self.engine.for_tenant("a", app_id=app_id)
        told, succeeded = outcome(getattr(a, name), *given, **named)
        self.engine.flush()
        return Outcome(_ID.sub(self._name, told), succeeded)

    def _name(self, found: re.Match[str]) -> str:
        return self._names.setdefault(found[0], f"new {len(self._names)}")


class World:
    """Two databases: in one the tenant `a` is beside `b`, in the other it is without it."""

    def __init__(self, folder: Path) -> None:
        self._clock = TurnableClock(NOW)
        self._with, self._without = folder / "with.db", folder / "without.db"
        self.made, self.succeeded, self.crossed = Counter[str](), Counter[str](), Counter[str]()
        """Of each kind: all, those not refused, and where they take IDs those with one of `b`."""
        with Engine(SqliteStore(self._with), clock=self._clock) as engine:
            engine.store.migrate()
            self.mine = _furnish(engine.for_tenant("a"), self._clock, "mine")
            taken = engine.for_tenant("c").create_key(KeyCreate(name="taken"))
            self.taken = Hasher().hash(taken.raw_key)
        shutil.copy(self._with, self._without)
        with Engine(SqliteStore(self._with), clock=self._clock) as engine:
            self.theirs = _furnish(engine.for_tenant("b"), self._clock, "theirs")
        self._ids = set(_ID.findall(self._with.read_text("latin-1")))
        self._rows = rows(self._with)
        with self._side(self._with) as side:
            self._observed = self._observe(side.engine)

    def _side(self, template: Path) -> Side:
        return Side(template, self._ids, self._clock)

    def sequence(self, random: Random, whose: list[str]) -> None:
        """Every kind of call in some order, on both sides."""
        with self._side(self._with) as beside, self._side(self._without) as alone:
            for name in random.sample(sorted(CALLS) * EACH, len(CALLS) * EACH):
                self._call(name, Pick(random, whose, self.mine, self.theirs), beside, alone)
            observed = self._observe(beside.engine)
        for now, before in zip(observed, self._observed, strict=True):
            assert now == before, "another tenant sees a difference"

    def _call(self, name: str, pick: Pick, beside: Side, alone: Side) -> None:
        app_id = pick.one(None, "default")
        given, named = CALLS[name](pick)
        asked = f"{given} {named}"
        answer = beside.call(name, app_id, *given, **named)
        if named.get("key_hash") in self.theirs.hashes:
            # That it is taken cannot be hidden; what has become of it can.
            named["key_hash"] = self.taken
        expected = alone.call(name, app_id, *given, **named)
        assert answer == expected, (
            f"{name} tells of another tenant: {answer.told}, without it {expected.told}"
        )
        found = rows(beside.path)
        for table, before in self._rows.items():
            assert found[table] == before, f"{name} changed {table} of another tenant"
        self.made[name] += 1
        self.succeeded[name] += answer.succeeded
        if pick.took:
            self.crossed[name] += any(each in asked for each in self.theirs.all)

    def _observe(self, engine: Engine) -> list[str]:
        """What the tenant `b` is told by its own calls."""
        b = engine.for_tenant("b")
        told: list[Any] = [getattr(b, name)() for name in ("list_keys", "list_policies")]
        told += [
            b.list_scopes(),
            b.list_rotations(),
            b.query_usage(),
            b.count_keys(),
            b.dropped_usage,
        ]
        told += [b.aggregate_usage(), b.summarize_usage(period="monthly")]
        told += [b.list_keys_due_for_rotation(), b.list_keys(unused_since=NOW)]
        told += [b.list_key_scopes(key_id) for key_id in self.theirs.keys]
        told += [outcome(b.validate_key, raw_key, cost=0) for raw_key in self.theirs.raw_keys]
        return [repr(each) for each in told]


def rows(path: Path) -> dict[str, list[Any]]:
    """Every row of other tenants than `a`, with every column."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(
                f"SELECT * FROM {table} WHERE {whose} ORDER BY 1, 2"  # noqa: S608
            ).fetchall()
            for table, whose in ROWS.items()
        }


def outcome(call: Callable[..., Any], *given: Any, **named: Any) -> Outcome:
    """Calls it, and writes down all that comes of it."""
    try:
        answer, succeeded = call(*given, **named), True
    except (KeysmithError, ValidationError) as error:
        answer, succeeded = [repr(error), getattr(error, "__dict__", {})], False
    return Outcome(json.dumps(answer, default=_contents), succeeded)


def _contents(thing: object) -> object:
    """All fields, also those that a repr leaves out."""
    if isinstance(thing, BaseModel):
        return {name: getattr(thing, name) for name in type(thing).model_fields}
    if is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in fields(thing)}
    return thing.tenant_id if isinstance(thing, Engine) else repr(thing)


def trial(quick: bool = False) -> str:
    """Tells how many calls were made."""
    public = {name for name in dir(Engine) if not name.startswith("_")}
    assert public == CALLS.keys() | OF_THE_PROCESS, public ^ (CALLS.keys() | OF_THE_PROCESS)
    seed = 1 if quick else randrange(10**6)
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for number in range(QUICK if quick else SEQUENCES):
            try:
                world.sequence(random, ANYBODYS if number else THEIRS)
            except Exception as error:
                error.add_note(f"In sequence {number} of seed {seed}.")
                raise
    if not quick:
        for what, calls in (("succeeded", world.succeeded), ("took an ID of b", world.crossed)):
            never = [name for name in calls if not calls[name]]
            assert not never, f"never {what}: {never}"
    made, crossed = world.made.total(), world.crossed.total()
    return (
        f"{made:,} calls of {len(world.made)} kinds (seed {seed}), {crossed:,} of them with "
        f"something of the other tenant's, in sequences of {len(CALLS) * EACH}: each answered as "
        "without the other, of which no row and no answer changed"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
