"""The public calls of an engine, each with how to make up arguments for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from keysmith import (
    Hasher,
    KeyCreate,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    ScopeCreate,
    ScopeUpdate,
    UsageCreate,
)
from keysmith.ids import IdPrefix, new_id
from keysmith.testing import TurnableClock

NOW = TurnableClock().now + timedelta(days=60)
NOBODYS = {prefix: new_id(prefix, NOW) for prefix in IdPrefix}

OF_THE_PROCESS = {"store", "tenant_id", "dropped_usage", "cache_statistics"}
"""No calls. The store knows no tenants, and the cache is everybody's; the rest is looked at."""


@dataclass
class Things:
    """What a tenant has, of each kind one of each sort."""

    keys: list[str]
    raw_keys: list[str]
    policies: list[str]
    scopes: list[str]
    rotations: list[str]
    records: list[str]

    @property
    def hashes(self) -> list[str]:
        """Of every secret, those that were rotated out, too."""
        return [Hasher().hash(raw_key) for raw_key in self.raw_keys]

    @property
    def all(self) -> list[str]:
        ids = [*self.keys, *self.policies, *self.scopes, *self.rotations, *self.records]
        return [*ids, *self.raw_keys, *self.hashes]


class Pick:
    """Draws the arguments of a call."""

    def __init__(self, random: Random, whose: Sequence[str], mine: Things, theirs: Things) -> None:
        self._random = random
        self._whose = whose
        self._things = {"mine": mine, "theirs": theirs}
        self.took = False
        """Whether an ID, a hash or a raw key was drawn, or might have been."""

    def one(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def _of(self, kind: str, missing: str) -> str:
        self.took = True
        whose = self.one(*self._whose)
        return (
            missing if whose == "nobody's" else str(self.one(*getattr(self._things[whose], kind)))
        )

    @property
    def key(self) -> str:
        return self._of("keys", NOBODYS[IdPrefix.KEY])

    @property
    def policy(self) -> str:
        return self._of("policies", NOBODYS[IdPrefix.POLICY])

    @property
    def scope(self) -> str:
        return self._of("scopes", NOBODYS[IdPrefix.SCOPE])

    @property
    def rotation(self) -> str:
        return self._of("rotations", NOBODYS[IdPrefix.ROTATION])

    @property
    def record(self) -> str:
        return self._of("records", NOBODYS[IdPrefix.USAGE])

    @property
    def raw_key(self) -> str:
        return self._of("raw_keys", "nobody's")

    @property
    def key_hash(self) -> str:
        return self._of("hashes", self.one("ab" * 32, "cd" * 32))

    @property
    def names(self) -> list[str]:
        return list(self.one([], ["read"], ["read", "read:users"], ["x"]))

    @property
    def tenant(self) -> dict[str, Any]:
        """A filter, or none."""
        return dict(self.one({}, {}, {"tenant_id": "a"}, {"tenant_id": "b"}))

    @property
    def of_keys(self) -> dict[str, Any]:
        """Filters of what belongs to keys."""
        return {**self.tenant, **self.one({}, {"key_id": self.key})}


def _create_key(pick: Pick) -> tuple[Any, ...]:
    policy = pick.one(None, pick.policy)
    return (KeyCreate(name="n", scopes=pick.names, policy_id=policy, **pick.tenant),)


def _after(pick: Pick, last: Any) -> dict[str, Any]:
    return dict(pick.one({}, {"after": last}))


def _of_some(pick: Pick) -> dict[str, Any]:
    """Filters of keys."""
    moments = ("expires_by", "rotation_due_by", "unused_since")
    moment = {pick.one(*moments): NOW + pick.one(-1, 0, 1) * _tomorrow}
    return {**pick.tenant, **pick.one({}, {"policy_id": pick.policy}), **pick.one({}, moment)}


Arguments = Callable[[Pick], tuple[tuple[Any, ...], dict[str, Any]]]


def _only(*draws: Callable[[Pick], Any]) -> Arguments:
    return lambda pick: (tuple(draw(pick) for draw in draws), {})


def _filters(draw: Callable[[Pick], dict[str, Any]]) -> Arguments:
    return lambda pick: ((), draw(pick))


_key, _policy = (lambda pick: pick.key), (lambda pick: pick.policy)
_tomorrow = timedelta(days=1)

CALLS: dict[str, Arguments] = {
    "aggregate_usage": _filters(
        lambda pick: {
            "period": pick.one("daily", "monthly"),
            **pick.of_keys,
            **_after(pick, (NOW, pick.key)),
        }
    ),
    "assign_scopes": _only(_key, lambda pick: pick.names),
    "cleanup_expired_keys": _only(),
    "cleanup_grace_expired": _only(),
    "close": _only(),
    "count_keys": _filters(_of_some),
    "create_key": lambda pick: (_create_key(pick), pick.one({}, {"idempotency_key": "again"})),
    "create_policy": _only(lambda pick: PolicyCreate(name=pick.one("p", "q"), **pick.tenant)),
    "create_scope": _only(
        lambda pick: ScopeCreate(
            name=pick.one("x", "y"), parent=pick.one(None, "read"), **pick.tenant
        )
    ),
    "delete_key": _only(_key),
    "delete_policy": _only(_policy),
    "delete_scope": _only(lambda pick: pick.scope),
    "ensure_scopes": lambda pick: ((pick.names,), pick.tenant),
    "flush": _only(),
    "for_tenant": _only(lambda pick: pick.one("a", "b")),
    "get_key": _only(_key),
    "get_policy": _only(_policy),
    "get_scope": _only(lambda pick: pick.scope),
    "health": _only(),
    "import_key": lambda pick: (
        (KeyCreate(name="n", **pick.tenant),),
        {"key_hash": pick.key_hash, "hint": "abcd"},
    ),
    "list_key_scopes": _only(_key),
    "list_keys": _filters(lambda pick: {**_of_some(pick), **_after(pick, pick.key)}),
    "list_keys_due_for_rotation": _only(),
    "list_policies": _filters(lambda pick: {**pick.tenant, **_after(pick, pick.policy)}),
    "list_rotations": _filters(lambda pick: {**pick.of_keys, **_after(pick, pick.rotation)}),
    "list_scopes": _filters(lambda pick: {**pick.tenant, **_after(pick, pick.scope)}),
    "maintain": _filters(
        lambda pick: {"usage_retention": pick.one(None, _tomorrow), "unused_for": _tomorrow}
    ),
    "now": _only(),
    "purge_usage": _only(lambda _: NOW),
    "query_usage": _filters(lambda pick: {**pick.of_keys, **_after(pick, pick.record)}),
    "reactivate_key": _only(_key),
    "record_usage": _only(
        lambda pick: UsageCreate(key_id=pick.key, endpoint="/", method="GET", status_code=200)
    ),
    "remove_scopes": _only(_key, lambda pick: pick.names),
    "revoke_key": _only(_key),
    "rotate_key": lambda pick: (
        (pick.key,),
        {"reason": pick.one("manual", "compromise"), **pick.one({}, {"idempotency_key": "again"})},
    ),
    "summarize_usage": _filters(lambda pick: pick.of_keys),
    "suspend_key": _only(_key),
    "update_key": _only(
        _key,
        lambda pick: KeyUpdate(description="d", **pick.one({}, {"policy_id": pick.policy})),
    ),
    "update_policy": _only(_policy, lambda _: PolicyUpdate(description="d", daily_quota=1)),
    "update_scope": _only(
        lambda pick: pick.scope, lambda pick: ScopeUpdate(parent=pick.one(None, "read"))
    ),
    "validate_key": lambda pick: ((pick.raw_key,), {"scopes": pick.one([], pick.names)}),
}
