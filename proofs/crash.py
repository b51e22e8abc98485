"""Processes that are killed at random moments, amid every kind of change: `--only crash`.

Three processes change one database, each in a tenant of its own, and say over a pipe what they are
about to do and what was acknowledged. After each kill the database must show all that was
acknowledged, and of what was under way all or nothing.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore, UsageCreate
from keysmith.raw_keys import Hasher
from proofs.kills import Killable
from proofs.migrating import kill_while_migrating

PROMISE = (
    "What a call has acknowledged outlives a process that is killed, and of what was under way "
    "there is all or nothing."
)
BROKEN = "a key was committed before its scopes; `flush()` returned before it had written"

TIMES, QUICK = 1_000, 15
WORKERS = 3
KILLS_PER_DATABASE = 50
FIRST, MORE = frozenset({"a", "b"}), frozenset({"c", "d"})
DEEDS = {"create": 3, "rotate": 3, "revoke": 1, "assign": 2, "record": 3}

KEYS = "SELECT id, name, state, revoked_at, key_hash FROM keysmith_keys WHERE tenant_id = ?"
SCOPES = """
    SELECT key_id, name FROM keysmith_key_scopes JOIN keysmith_scopes ON id = scope_id
    WHERE tenant_id = ?
"""
ROTATIONS = """
    SELECT key_id, old_key_hash, new_key_hash FROM keysmith_rotations WHERE tenant_id = ?
    ORDER BY id
"""
RECORDS = """
    SELECT key_id, 'daily', substr(created_at, 1, 10), count(*), sum(latency_ms)
    FROM keysmith_usage GROUP BY key_id, substr(created_at, 1, 10)
    UNION ALL
    SELECT key_id, 'monthly', substr(created_at, 1, 7) || '-01', count(*), sum(latency_ms)
    FROM keysmith_usage GROUP BY key_id, substr(created_at, 1, 7)
"""
SUMS = """
    SELECT key_id, period, substr(period_start, 1, 10), request_count, total_latency
    FROM keysmith_usage_agg
"""


@dataclass(frozen=True)
class Seen:
    """A key as the database shows it."""

    key_hash: str
    state: str = "active"
    scopes: frozenset[str] = FIRST
    rotations: int = 0

    def after(self, deed: str, key_hash: str) -> Seen:
        """The key when that has been done to it."""
        match deed:
            case "rotate":
                return replace(self, key_hash=key_hash, rotations=self.rotations + 1)
            case "revoke":
                return replace(self, state="revoked")
            case "assign":
                return replace(self, scopes=self.scopes | MORE)
        return self


@dataclass(frozen=True)
class Deed:
    """What a worker is about to do, or has done."""

    kind: str
    key_id: str = ""
    raw_key: str = ""
    records: int = 0


@dataclass
class Ledger:
    """What the worker of a tenant has been told is so."""

    tenant_id: str
    keys: dict[str, Seen] = field(default_factory=dict)
    records: int = 0
    pending: Deed | None = None

    @property
    def active(self) -> list[str]:
        """The keys that something can be done to."""
        return [key_id for key_id, seen in self.keys.items() if seen.state == "active"]

    def note(self, deed: Deed, *, done: bool) -> None:
        """Takes down what the worker says."""
        if not done:
            self.pending = deed
            return
        self.pending = None
        key_hash = Hasher().hash(deed.raw_key)
        if deed.kind == "record":
            self.records += deed.records
        elif deed.kind == "create":
            self.keys[deed.key_id] = Seen(key_hash)
        else:
            self.keys[deed.key_id] = self.keys[deed.key_id].after(deed.kind, key_hash)

    def compare(self, connection: sqlite3.Connection) -> None:
        """Raises `AssertionError` where the database shows less, more or something else.

        What was under way, and is there, counts from now on.
        """
        actual, records = _seen(connection, self.tenant_id)
        pending = self.pending or Deed("nothing")
        for key_id, seen in self.keys.items():
            assert key_id in actual, f"{key_id} was acknowledged, and is gone"
            found = actual[key_id]
            if found != seen:
                assert pending.key_id == key_id, f"{found} instead of {seen}"
                assert found == seen.after(pending.kind, found.key_hash), f"half of {pending}"
        new = actual.keys() - self.keys.keys()
        assert len(new) <= (pending.kind == "create"), f"{new} appeared during {pending}"
        assert all(actual[key_id].scopes == FIRST for key_id in new), "half of a key"
        least = self.records
        assert least <= records <= least + pending.records, f"{records} records, not {least}"
        self.keys, self.records, self.pending = actual, records, None


def _seen(connection: sqlite3.Connection, tenant_id: str) -> tuple[dict[str, Seen], int]:
    """The keys of a tenant, and how many records it has; each change whole in itself."""
    whose = (tenant_id,)
    scopes: dict[str, set[str]] = {}
    for key_id, name in connection.execute(SCOPES, whose):
        scopes.setdefault(key_id, set()).add(name)
    chains: dict[str, list[tuple[str, str]]] = {}
    for key_id, old, new in connection.execute(ROTATIONS, whose):
        chains.setdefault(key_id, []).append((old, new))
    keys = {}
    for key_id, name, state, revoked_at, key_hash in connection.execute(KEYS, whose):
        chain = chains.pop(key_id, [])
        hashes = [new for _, new in chain]
        assert [old for old, _ in chain][1:] == hashes[:-1], f"{name}: a rotation is missing"
        assert not chain or hashes[-1] == key_hash, f"{name}: half of a rotation"
        assert (revoked_at is not None) == (state == "revoked"), f"{name}: half of a revocation"
        keys[key_id] = Seen(key_hash, state, frozenset(scopes.get(key_id, ())), len(chain))
    assert not chains, "rotations without their key"
    counted = connection.execute("SELECT count(*) FROM keysmith_usage WHERE tenant_id = ?", whose)
    return keys, counted.fetchone()[0]


def work(path: Path, ledger: Ledger, seed: float, tell: Connection) -> None:
    """Changes things until it is killed, and says what."""
    chance = random.Random(seed)
    engine = Engine(SqliteStore(path)).for_tenant(ledger.tenant_id)
    active = ledger.active
    while True:
        [kind] = chance.choices(list(DEEDS), list(DEEDS.values()))
        if kind == "create" or not active:
            tell.send((Deed("create"), False))
            created = engine.create_key(KeyCreate(name="n", scopes=sorted(FIRST)))
            active.append(created.key.id)
            done = Deed("create", created.key.id, created.raw_key)
        else:
            key_id = chance.choice(active)
            records = chance.randrange(1, 200) if kind == "record" else 0
            tell.send((Deed(kind, key_id, records=records), False))
            raw_key = _do(engine, kind, key_id, records)
            done = Deed(kind, key_id, raw_key, records)
            if kind == "revoke":
                active.remove(key_id)
        tell.send((done, True))


def _do(engine: Engine, kind: str, key_id: str, records: int) -> str:
    """The new raw key, where there is one."""
    match kind:
        case "rotate":
            return engine.rotate_key(key_id).raw_key
        case "revoke":
            engine.revoke_key(key_id)
        case "assign":
            engine.assign_scopes(key_id, sorted(MORE))
        case "record":
            usage = UsageCreate(
                key_id=key_id, endpoint="/", method="GET", status_code=200, latency_ms=7.0
            )
            for _ in range(records):
                engine.record_usage(usage)
            engine.flush()
    return ""


def kill_while_working(path: Path, times: int, chance: random.Random) -> Counter[str]:
    """Kills so many workers on a new database; tells amid what."""
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
        ledgers = [Ledger(f"t{number}") for number in range(WORKERS)]
        for ledger in ledgers:
            engine.ensure_scopes(FIRST | MORE, tenant_id=ledger.tenant_id)
    amid: Counter[str] = Counter()

    def start(ledger: Ledger) -> Killable:
        return Killable(work, path, ledger, chance.random())

    workers = [start(ledger) for ledger in ledgers]
    while amid.total() < times:
        workers[chance.randrange(WORKERS)].wait()
        # All at once leave a file that nobody has open, and a log that the next one recovers.
        victims = range(WORKERS) if chance.random() < 0.2 else [chance.randrange(WORKERS)]
        for number in victims:
            for deed, done in workers[number].kill(chance.uniform(0, 0.02)):
                ledgers[number].note(deed, done=done)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN")
            for number in victims:
                pending = ledgers[number].pending
                amid[pending.kind if pending else "between"] += 1
                ledgers[number].compare(connection)
            _assert_sound(connection)
        for number in victims:
            workers[number] = start(ledgers[number])
    for worker in workers:
        worker.kill(0)
    return amid


def _assert_sound(connection: sqlite3.Connection) -> None:
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    records, sums = connection.execute(RECORDS), connection.execute(SUMS)
    assert sorted(sums) == sorted(records), "sums do not agree with records"


def trial(quick: bool = False) -> str:
    """Kills; says with which seed, so that it can be repeated."""
    times, seed = QUICK if quick else TIMES, random.randrange(10**6)
    chance, amid = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            amid["migrate"] = kill_while_migrating(
                Path(folder), times // 5, chance, filled=not quick
            )
            while amid.total() < times:
                path = Path(folder) / f"{amid.total()}.db"
                left = min(KILLS_PER_DATABASE, times - amid.total())
                amid += kill_while_working(path, left, chance)
        except AssertionError as error:
            error.add_note(f"The seed was {seed}.")
            raise
    assert quick or amid.keys() >= DEEDS.keys(), f"not killed amid all: {amid}"
    told = ", ".join(f"{kind} {count}" for kind, count in amid.most_common())
    return f"killed {amid.total():,} times, with nothing lost and nothing halved: amid {told}"


def main() -> None:
    """Prints the figure."""
    print(trial())
