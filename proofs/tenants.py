"""Whatever one tenant calls, another sees nothing of it: `--only tenants`.

Hypothesis makes up sequences of calls of the tenant `a`, with IDs, names and raw keys of its own,
of the tenant `b` and of nobody. After each, every row of `b` is as it was; and what `a` is told of
an object of `b` is what it is told of one that does not exist.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from pydantic import ValidationError

from keysmith import (
    Engine,
    KeyCreate,
    KeysmithError,
    PolicyCreate,
    SqliteStore,
    UsageCreate,
)
from keysmith.ids import IdPrefix
from keysmith.testing import TurnableClock
from proofs.tenant_calls import CALLS, NOBODYS, NOW, OF_THE_PROCESS, Pick, Things

PROMISE = (
    "Whatever a tenant calls, with whatever IDs, names and raw keys, nothing that another tenant "
    "can observe changes, and nothing of the other's is told; the timing of a lookup aside."
)
BROKEN = (
    "a key was found without a look at its tenant; a clean-up went over all tenants; idempotency "
    "keys were shared"
)

EXAMPLES, QUICK, STEPS = 250, 8, 25
MARK = "marked-as-the-other-tenants"
"""Is in all texts of `b`, and in no answer to `a`."""

ROWS = {
    "keysmith_keys": "tenant_id = 'b'",
    "keysmith_policies": "tenant_id = 'b'",
    "keysmith_scopes": "tenant_id = 'b'",
    "keysmith_key_scopes": "key_id IN (SELECT id FROM keysmith_keys WHERE tenant_id = 'b')",
    "keysmith_usage": "tenant_id = 'b'",
    "keysmith_usage_agg": "tenant_id = 'b'",
    "keysmith_rotations": "tenant_id = 'b'",
}


def _furnish(engine: Engine, clock: TurnableClock, text: str) -> Things:
    """A key in every state, of which some have not been written down yet."""
    clock.now = NOW - timedelta(days=60)
    engine.ensure_scopes(["read", "read:users"])
    policy = engine.create_policy(
        PolicyCreate(name="p", description=text, rate_limit=5, rotation_period=timedelta(days=9))
    )
    unused = engine.create_policy(PolicyCreate(name="unused", description=text))
    later = clock.now + timedelta(days=1)
    created = [
        engine.create_key(KeyCreate(name=f"{text} {number}", scopes=["read"], **more))
        for number, more in enumerate(
            [{}, {"policy_id": policy.id}, {"expires_at": later}, {}, {}, {}]
        )
    ]
    keys = [each.key.id for each in created]
    for key_id in keys:
        engine.record_usage(
            UsageCreate(key_id=key_id, endpoint=f"/{text}", method="GET", status_code=200)
        )
    raw_keys = [each.raw_key for each in created]
    raw_keys += [engine.rotate_key(keys[0]).raw_key, engine.rotate_key(keys[3]).raw_key]
    engine.suspend_key(keys[4])
    engine.revoke_key(keys[5])
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
    hashes = [key.key_hash for key in engine.list_keys()]
    return Things(keys, raw_keys, [policy.id, unused.id], scopes, hashes)


class World:
    """A database with two tenants, of which each sequence of calls gets a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = TurnableClock(NOW)
        self.template = folder / "template.db"
        self.calls: dict[str, int] = dict.fromkeys(CALLS, 0)
        with Engine(SqliteStore(self.template), clock=self.clock) as engine:
            engine.store.migrate()
            self.mine = _furnish(engine.for_tenant("a"), self.clock, "mine")
            self.theirs = _furnish(engine.for_tenant("b"), self.clock, MARK)
        self.rows = rows(self.template)
        with self.copy() as engine:
            self.observed = self.observe(engine)

    def copy(self) -> Engine:
        """An engine on a fresh copy."""
        for old in self.folder.glob("copy.db*"):
            old.unlink()
        shutil.copy(self.template, self.folder / "copy.db")
        return Engine(SqliteStore(self.folder / "copy.db"), clock=self.clock)

    def observe(self, engine: Engine) -> list[str]:
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
        told += [b.list_keys_due_for_rotation(), b.list_keys_unused_since(NOW)]
        told += [b.list_key_scopes(key_id) for key_id in self.theirs.keys]
        told += [outcome(b.validate_key, raw_key, cost=0) for raw_key in self.theirs.raw_keys]
        return [repr(each) for each in told]


def rows(path: Path) -> dict[str, list[Any]]:
    """Every row of the tenant `b`, with every column."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(
                f"SELECT * FROM {table} WHERE {whose} ORDER BY 1, 2"  # noqa: S608
            ).fetchall()
            for table, whose in ROWS.items()
        }


def outcome(call: Callable[..., Any], *given: Any, **named: Any) -> str:
    """What a call answers, or refuses with."""
    try:
        return repr(call(*given, **named))
    except (KeysmithError, ValidationError) as error:
        return f"{error!r} {json.dumps(getattr(error, '__dict__', {}), default=repr)}"


class Calls(RuleBasedStateMachine):
    """Calls of the tenant `a`, one after the other."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self._engine = self.world.copy()
        self._a = self._engine.for_tenant("a")

    @rule(name=st.sampled_from(sorted(CALLS)), app=st.booleans(), data=st.data())
    def call(self, name: str, app: bool, data: st.DataObject) -> None:
        world = self.world
        engine = self._a.for_tenant("a", app_id="default") if app else self._a
        pick = Pick(data, world.mine, world.theirs)
        given, named = CALLS[name](pick)
        told = outcome(getattr(engine, name), *given, **named)
        world.calls[name] += 1
        assert MARK not in told, f"{name} tells of another tenant: {told}"
        for theirs in (*world.theirs.keys, *world.theirs.policies, *world.theirs.scopes):
            assert theirs not in told, f"{name} tells {theirs} of another tenant: {told}"
        self._engine.flush()
        found = rows(world.folder / "copy.db")
        for table, before in world.rows.items():
            assert found[table] == before, f"{name} changed {table} of another tenant"

    @rule(data=st.data(), name=st.sampled_from(["get", "delete", "suspend", "revoke", "rotate"]))
    def no_difference(self, name: str, data: st.DataObject) -> None:
        key_id = data.draw(st.sampled_from(self.world.theirs.keys))
        call = getattr(self._a, f"{name}_key")
        assert outcome(call, key_id) == outcome(call, NOBODYS[IdPrefix.KEY]), name

    def teardown(self) -> None:
        try:
            observed = self.world.observe(self._engine)
        finally:
            self._engine.close()
        for now, before in zip(observed, self.world.observed, strict=True):
            assert now == before, "another tenant sees a difference"


def trial(quick: bool = False) -> str:
    """Tells how many calls were made."""
    public = {name for name in dir(Engine) if not name.startswith("_")}
    assert public == CALLS.keys() | OF_THE_PROCESS, public ^ (CALLS.keys() | OF_THE_PROCESS)
    examples = QUICK if quick else EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        Calls.world = World(Path(folder))
        run_state_machine_as_test(
            Calls,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=quick,
                phases=[Phase.generate],  # to make a failure shorter takes minutes
                report_multiple_bugs=False,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        calls = Calls.world.calls
    assert quick or all(calls.values()), [name for name, count in calls.items() if not count]
    return (
        f"{sum(calls.values()):,} calls of {len(calls)} kinds, in sequences of up to {STEPS}: no "
        "row and no answer of the other tenant changed"
    )


def main() -> None:
    """Prints the figure."""
    print(trial())
