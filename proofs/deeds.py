"""What a worker does in its tenant, one call after the other, and what is so after each."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from keysmith import (
    Engine,
    KeyCreate,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    ScopeCreate,
    ScopeUpdate,
    UsageCreate,
)
from keysmith.raw_keys import Hasher

LIVING = ("active", "suspended")
POLICY, SCOPE = "policy", "scope"

DEEDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "create_key": (3, ()),
    "import_key": (1, ()),
    "update_key": (1, (*LIVING, "revoked")),
    "delete_key": (2, (*LIVING, "revoked")),
    "rotate_key": (5, LIVING),
    "revoke_key": (1, LIVING),
    "suspend_key": (1, ("active",)),
    "reactivate_key": (2, ("suspended",)),
    "assign_scopes": (3, LIVING),
    "remove_scopes": (2, LIVING),
    "record_usage": (5, LIVING),
    "create_policy": (1, ()),
    "update_policy": (1, (POLICY,)),
    "delete_policy": (1, (POLICY,)),
    "create_scope": (2, ()),
    "update_scope": (1, (SCOPE,)),
    "delete_scope": (2, (SCOPE,)),
}
"""How often each is done, compared with others, and the states of that to which it is done: none,
where something new is made."""

MOST_RECORDS = 200


@dataclass(frozen=True)
class Seen:
    """A key, a policy or a scope as the database shows it."""

    state: str
    """That of a key; of others what they are."""
    name: str
    description: str = ""
    scopes: frozenset[str] = frozenset()
    """Names of those that a key holds; of a scope that above it."""
    key_hash: str = ""
    rotations: int = 0
    records: int = 0


Things = dict[str, Seen]
"""All that a tenant has, by ID."""


@dataclass(frozen=True)
class Deed:
    """What a worker is about to do, or has done."""

    call: str
    on: str = ""
    """An ID; that of a new thing is known afterwards."""
    text: str = ""
    """A new name or description."""
    scopes: frozenset[str] = frozenset()
    key_hash: str = ""
    """Of a new secret; that of one that Keysmith makes is known afterwards."""
    records: int = 0


def choose(things: Things, chance: random.Random) -> Deed:
    """A deed that can be done."""
    fits = {
        call: [thing_id for thing_id, seen in things.items() if seen.state in states]
        for call, (_, states) in DEEDS.items()
    }
    possible = [call for call, (_, states) in DEEDS.items() if fits[call] or not states]
    [call] = chance.choices(possible, [DEEDS[call][0] for call in possible])
    on = chance.choice(fits[call] or [""])
    names = {seen.name for seen in things.values() if seen.state == SCOPE}
    if call == "remove_scopes":
        names &= things[on].scopes
    few = min(len(names), chance.randrange(2 if call == "create_scope" else 4))
    text = f"x{chance.getrandbits(64)}"
    return Deed(
        call,
        on,
        text,
        frozenset(chance.sample(sorted(names), few)),
        Hasher().hash(text) if call == "import_key" else "",
        chance.randrange(1, MOST_RECORDS) if call == "record_usage" else 0,
    )


def do(engine: Engine, deed: Deed) -> Deed:
    """Does it; the deed then tells the ID and the hash that came of it, too."""
    scopes = sorted(deed.scopes)
    match deed.call:
        case "create_key":
            created = engine.create_key(KeyCreate(name=deed.text, scopes=scopes))
            return replace(deed, on=created.key.id, key_hash=Hasher().hash(created.raw_key))
        case "import_key":
            asked = KeyCreate(name=deed.text, scopes=scopes)
            return replace(
                deed, on=engine.import_key(asked, key_hash=deed.key_hash, hint=deed.text[-4:]).id
            )
        case "rotate_key":
            return replace(deed, key_hash=Hasher().hash(engine.rotate_key(deed.on).raw_key))
        case "create_policy":
            return replace(deed, on=engine.create_policy(PolicyCreate(name=deed.text)).id)
        case "create_scope":
            scope = ScopeCreate(name=deed.text, parent=next(iter(scopes), None))
            return replace(deed, on=engine.create_scope(scope).id)
        case "update_key":
            engine.update_key(deed.on, KeyUpdate(description=deed.text))
        case "update_policy":
            engine.update_policy(deed.on, PolicyUpdate(description=deed.text))
        case "update_scope":
            engine.update_scope(deed.on, ScopeUpdate(description=deed.text))
        case "assign_scopes" | "remove_scopes":
            getattr(engine, deed.call)(deed.on, scopes)
        case "record_usage":
            usage = UsageCreate(
                key_id=deed.on, endpoint="/", method="GET", status_code=200, latency_ms=7.0
            )
            for _ in range(deed.records):
                engine.record_usage(usage)
            engine.flush()
        case _:
            getattr(engine, deed.call)(deed.on)
    return deed


def after(things: Things, deed: Deed) -> Things:
    """What there is when that has been done."""
    others = {thing_id: seen for thing_id, seen in things.items() if thing_id != deed.on}
    match deed.call:
        case "create_key" | "import_key":
            new = Seen("active", deed.text, scopes=deed.scopes, key_hash=deed.key_hash)
        case "create_policy":
            new = Seen(POLICY, deed.text)
        case "create_scope":
            new = Seen(SCOPE, deed.text, scopes=deed.scopes)
        case "delete_key" | "delete_policy":
            return others
        case "delete_scope":
            gone = {things[deed.on].name}
            return {each: replace(seen, scopes=seen.scopes - gone) for each, seen in others.items()}
        case _:
            new = _changed(things[deed.on], deed)
    return {**others, deed.on: new}


def _changed(seen: Seen, deed: Deed) -> Seen:
    match deed.call:
        case "rotate_key":
            return replace(seen, key_hash=deed.key_hash, rotations=seen.rotations + 1)
        case "revoke_key":
            return replace(seen, state="revoked")
        case "suspend_key":
            return replace(seen, state="suspended")
        case "reactivate_key":
            return replace(seen, state="active")
        case "assign_scopes":
            return replace(seen, scopes=seen.scopes | deed.scopes)
        case "remove_scopes":
            return replace(seen, scopes=seen.scopes - deed.scopes)
        case "record_usage":
            return replace(seen, records=seen.records + deed.records)
    return replace(seen, description=deed.text)


def completed(deed: Deed, before: Things, found: Things) -> Deed:
    """A deed of which no answer came, with what the database shows of it.

    Of usage that no `flush()` has acknowledged, any number of records may have been written.
    """
    on = deed.on or next(iter(found.keys() - before.keys()), "")
    if on not in found:
        return deed
    seen = found[on]
    records = seen.records - before[on].records if on in before else 0
    return replace(
        deed,
        on=on,
        key_hash=deed.key_hash or seen.key_hash,
        records=min(max(0, records), deed.records),
    )
