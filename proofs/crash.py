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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from keysmith import Engine, SqliteStore
from proofs.deeds import DEEDS, POLICY, SCOPE, Deed, Seen, Things, after, choose, completed, do
from proofs.kills import Killable
from proofs.migrating import kill_while_migrating

PROMISE = (
    "What a call has acknowledged outlives a process that is killed, and of what was under way "
    "there is all or nothing; of usage that no `flush()` has acknowledged there may be a part, "
    "each record with its sums."
)
BROKEN = (
    "a key was committed before its scopes; a deleted scope was taken from those below it before "
    "it was gone; an update was not written; `flush()` returned before it had written"
)

TIMES, QUICK = 1_000, 15
WORKERS = 3
KILLS_PER_DATABASE = 50
LONGEST = 0.05
"""Seconds until a kill, at most; a few calls take as long."""

KEYS = """
    SELECT id, state, name, description, key_hash, revoked_at, rotated_at,
        (SELECT count(*) FROM keysmith_usage WHERE key_id = keysmith_keys.id)
    FROM keysmith_keys WHERE tenant_id = ?
"""
POLICIES = "SELECT id, name, description FROM keysmith_policies WHERE tenant_id = ?"
SCOPES = "SELECT id, name, description, parent FROM keysmith_scopes WHERE tenant_id = ?"
HELD = """
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


@dataclass
class Ledger:
    """What the worker of a tenant has been told is so."""

    tenant_id: str
    things: Things
    pending: Deed | None = None
    unseen: list[Deed] = field(default_factory=list)
    """What was under way when a process was killed, and was not there afterwards.

    A commit that is in the log, but was killed before it could tell other processes, is not there
    for them; it is for whoever recovers the log, if none has been written over it.
    """

    def note(self, deed: Deed, *, done: bool) -> None:
        """Takes down what the worker says."""
        self.pending = None if done else deed
        if done:
            self.things, self.unseen = after(self.things, deed), []

    def compare(self, connection: sqlite3.Connection, *, recovered: bool) -> None:
        """Raises `AssertionError` where the database shows less, more or something else.

        What was under way, and is there, counts from now on.
        """
        found = _found(connection, self.tenant_id)
        under_way = [self.pending] if self.pending else []
        possible = under_way + self.unseen if recovered else under_way
        changed = found != self.things
        assert not changed or any(
            found == after(self.things, completed(deed, self.things, found)) for deed in possible
        ), (
            f"{found.items() - self.things.items()} instead of "
            f"{self.things.items() - found.items()}, after {self.pending}"
        )
        self.unseen = [] if changed or recovered else self.unseen + under_way
        self.things, self.pending = found, None


def _found(connection: sqlite3.Connection, tenant_id: str) -> Things:
    """All that a tenant has; each key whole in itself."""
    whose = (tenant_id,)
    held: dict[str, set[str]] = {}
    for key_id, name in connection.execute(HELD, whose):
        held.setdefault(key_id, set()).add(name)
    chains: dict[str, list[tuple[str, str]]] = {}
    for key_id, old, new in connection.execute(ROTATIONS, whose):
        chains.setdefault(key_id, []).append((old, new))
    things = {}
    for key_id, state, name, text, key_hash, revoked_at, rotated_at, records in connection.execute(
        KEYS, whose
    ):
        chain = chains.pop(key_id, [])
        hashes = [new for _, new in chain]
        assert [old for old, _ in chain][1:] == hashes[:-1], f"{name}: a rotation is missing"
        assert not chain or hashes[-1] == key_hash, f"{name}: half of a rotation"
        assert (rotated_at is not None) == bool(chain), f"{name}: half of a rotation"
        assert (revoked_at is not None) == (state == "revoked"), f"{name}: half of a revocation"
        scopes = frozenset(held.get(key_id, ()))
        things[key_id] = Seen(state, name, text, scopes, key_hash, len(chain), records)
    assert not chains, "rotations without their key"
    for policy_id, name, text in connection.execute(POLICIES, whose):
        things[policy_id] = Seen(POLICY, name, text)
    for scope_id, name, text, parent in connection.execute(SCOPES, whose):
        things[scope_id] = Seen(SCOPE, name, text, frozenset([parent] if parent else []))
    return things


def work(path: Path, ledger: Ledger, seed: float, tell: Connection) -> None:
    """Changes things until it is killed, and says what."""
    chance, things = random.Random(seed), ledger.things
    engine = Engine(SqliteStore(path)).for_tenant(ledger.tenant_id)
    while True:
        deed = choose(things, chance)
        tell.send((deed, False))
        deed = do(engine, deed)
        tell.send((deed, True))
        things = after(things, deed)


def kill_while_working(path: Path, times: int, chance: random.Random) -> Counter[str]:
    """Kills so many workers on a new database; tells amid what."""
    with Engine(SqliteStore(path)) as engine:
        engine.store.migrate()
    ledgers = [Ledger(f"t{number}", {}) for number in range(WORKERS)]
    amid: Counter[str] = Counter()

    def start(ledger: Ledger) -> Killable:
        return Killable(work, path, ledger, chance.random())

    connection = sqlite3.connect(path)
    _assert_sound(connection)  # it has the file open now, so that nobody recovers the log alone
    workers = [start(ledger) for ledger in ledgers]
    while amid.total() < times:
        workers[chance.randrange(WORKERS)].wait()
        # All at once leave a file that nobody has open, and a log that the next one recovers.
        together = chance.random() < 0.2
        victims = range(WORKERS) if together else [chance.randrange(WORKERS)]
        if together:
            connection.close()
        for number in victims:
            for deed, done in workers[number].kill(chance.uniform(0, LONGEST)):
                ledgers[number].note(deed, done=done)
        if together:
            connection = sqlite3.connect(path)
        connection.execute("BEGIN")
        for number in victims:
            pending = ledgers[number].pending
            amid[pending.call if pending else "between"] += 1
            ledgers[number].compare(connection, recovered=together)
        _assert_sound(connection)
        connection.rollback()
        for number in victims:
            workers[number] = start(ledgers[number])
    for worker in workers:
        worker.kill(0)
    connection.close()
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
    total, migrating, between = amid.total(), amid.pop("migrate"), amid.pop("between", 0)
    return (
        f"killed {total:,} times, with nothing lost and nothing halved: {migrating} amid a "
        f"migration, {amid.total()} amid {len(amid)} kinds of calls, each "
        f"{min(amid.values(), default=0)} times or more, and {between} between two of them"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
