"""What the contract tests put into a store."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from keysmith import Key, Rotation, Scope, Store, UsageRecord
from keysmith.ids import IdPrefix, new_id
from keysmith.stores.base import RecordedUsage

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
MISSING = {prefix: new_id(prefix, START) for prefix in IdPrefix}
_numbers = itertools.count(1)


def a_hash() -> str:
    return f"{next(_numbers):064x}"


def a_key(store: Store, **fields: Any) -> Key:
    return store.keys.create(Key(**{"name": "n", "hint": "abcd", "key_hash": a_hash()} | fields))


def a_rotation(store: Store, key: Key, **fields: Any) -> Rotation:
    given: dict[str, Any] = {
        "key_id": key.id,
        "old_key_hash": a_hash(),
        "new_key_hash": a_hash(),
        "grace_ends": START + timedelta(hours=1),
    }
    return store.rotations.create(Rotation(**given | fields))


def scopes(store: Store, *names: str, **fields: Any) -> list[Scope]:
    return [store.scopes.create(Scope(name=name, **fields)) for name in names]


def usage(key: Key, **fields: Any) -> UsageRecord:
    given: dict[str, Any] = {
        "key_id": key.id,
        "endpoint": "/",
        "method": "GET",
        "status_code": 200,
    }
    return UsageRecord(**given | fields)


def recorded(key: Key, **fields: Any) -> RecordedUsage:
    given: dict[str, Any] = {
        "key_id": key.id,
        "endpoint": "/",
        "method": "GET",
        "status_code": 200,
        "ip_address": "",
        "user_agent": "",
        "latency_ms": 0.0,
        "meta": {},
        "created_at": START,
        "tenant_id": None,
        "app_id": None,
    }
    return RecordedUsage(**given | fields)


def ids(entities: Any) -> list[str]:
    return [entity.id for entity in entities]
