"""Every field of a policy does what it says: each test here fails where one is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from keysmith import (
    CreatedKey,
    Engine,
    InsufficientScopeError,
    IPNotAllowedError,
    KeyCreate,
    KeyExpiredError,
    KeyRevokedError,
    KeysmithError,
    KeyUpdate,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
    PolicyCreate,
    PolicyUpdate,
    PolicyViolationError,
    QuotaExceededError,
    RateLimitedError,
    ScopeNotAllowedError,
    SqliteStore,
)
from keysmith.fastapi import management_router
from tests.conftest import TurnableClock
from tests.serving import client, is_problem, serving

DAY = timedelta(days=1)
GOOD = {
    "ip": "10.1.2.3",
    "origin": "https://app.example.com",
    "method": "GET",
    "path": "/v1/users",
}


@dataclass
class World:
    """A key that bears a policy, an engine that judges it, and time to turn."""

    engine: Engine
    created: CreatedKey
    policy_id: str
    clock: TurnableClock

    def refusal(self, raw_key: str | None = None, **request: Any) -> type[KeysmithError] | None:
        try:
            self.engine.validate_key(raw_key or self.created.raw_key, **(GOOD | request))
        except KeysmithError as error:
            return type(error)
        return None

    def refusals(self, times: int, **request: Any) -> list[type[KeysmithError] | None]:
        return [self.refusal(**request) for _ in range(times)]

    def new_key(self, **fields: Any) -> CreatedKey:
        return self.engine.create_key(KeyCreate(name="k", policy_id=self.policy_id, **fields))


Enforced = Callable[[World], bool]
FIELDS: dict[str, tuple[dict[str, Any], Enforced]] = {}
"""For each field: values that make it bite, and how to see whether it does."""


def field(**values: Any) -> Callable[[Enforced], Enforced]:
    """The first is the field that is tested; the others are as they are all the time."""

    def note(enforced: Enforced) -> Enforced:
        FIELDS[next(iter(values))] = (values, enforced)
        return enforced

    return note


@field(rate_limit=2)
def rate_limit(world: World) -> bool:
    world.clock.turn(days=1)
    found = world.refusals(2)
    world.clock.turn(seconds=59)
    found += world.refusals(1)
    world.clock.turn(seconds=3)
    assert world.refusal() is None
    return found == [None, None, RateLimitedError]


@field(rate_limit_window=timedelta(seconds=10), rate_limit=1)
def rate_limit_window(world: World) -> bool:
    world.clock.turn(days=1)
    assert world.refusals(2) == [None, RateLimitedError]
    world.clock.turn(seconds=11)
    return world.refusal() is None


@field(burst_limit=2)
def burst_limit(world: World) -> bool:
    world.clock.turn(days=1)
    found = world.refusals(3)
    world.clock.turn(seconds=1.04)
    assert world.refusal() is None
    return found == [None, None, RateLimitedError]


@field(daily_quota=2)
def daily_quota(world: World) -> bool:
    world.clock.turn(days=1)
    found = world.refusals(3)
    world.clock.now = world.clock.now.replace(hour=0, minute=0, second=0) + DAY
    assert world.refusal() is None
    return found == [None, None, QuotaExceededError]


@field(monthly_quota=2)
def monthly_quota(world: World) -> bool:
    world.clock.turn(days=32)
    found = world.refusals(3)
    world.clock.turn(days=32)
    assert world.refusal() is None
    return found == [None, None, QuotaExceededError]


@field(allowed_scopes=["users:read"])
def allowed_scopes(world: World) -> bool:
    granted = world.engine.validate_key(world.created.raw_key, **GOOD).scopes
    refused = world.refusal(scopes=["users:write"])
    try:
        world.engine.assign_scopes(world.created.key.id, ["users:write"])
    except ScopeNotAllowedError:
        return granted == ("users:read",) and refused is InsufficientScopeError
    assert granted == ("users", "users:read", "users:write")
    assert refused is None
    return False


@field(allowed_ips=["10.0.0.0/8", "2001:db8::/32"])
def allowed_ips(world: World) -> bool:
    assert world.refusal(ip="2001:db8::1") is None
    found = {world.refusal(ip=ip) for ip in ("11.0.0.1", "2001:db9::1", None)}
    return found == {IPNotAllowedError}


@field(allowed_origins=["https://app.example.com"])
def allowed_origins(world: World) -> bool:
    found = {world.refusal(origin=origin) for origin in ("https://evil.example", "null", None)}
    return found == {OriginNotAllowedError}


@field(allowed_methods=["GET", "HEAD"])
def allowed_methods(world: World) -> bool:
    assert world.refusal(method="HEAD") is None
    return {world.refusal(method=method) for method in ("POST", None)} == {MethodNotAllowedError}


@field(allowed_paths=["/v1/**"])
def allowed_paths(world: World) -> bool:
    return {world.refusal(path=path) for path in ("/v2", None)} == {PathNotAllowedError}


@field(max_key_lifetime=timedelta(days=30))
def max_key_lifetime(world: World) -> bool:
    try:
        world.new_key(expires_at=world.clock.now + 31 * DAY)
    except PolicyViolationError:
        raw_key = world.new_key().raw_key
        world.clock.turn(days=30)
        return world.refusal(raw_key) is KeyExpiredError
    return False


@field(rotation_period=timedelta(days=30))
def rotation_period(world: World) -> bool:
    key = world.new_key().key
    world.clock.turn(days=30)
    return key.id in [due.id for due in world.engine.list_keys_due_for_rotation()]


@field(grace_period=timedelta(hours=2))
def grace_period(world: World) -> bool:
    created = world.new_key()
    world.engine.rotate_key(created.key.id)
    world.clock.turn(hours=1)
    assert world.refusal(created.raw_key) is None
    world.clock.turn(hours=1)
    return world.refusal(created.raw_key) is KeyRevokedError


RULES = set(PolicyCreate.model_fields) - {"name", "description", "meta", "tenant_id", "app_id"}


def test_every_field_has_its_test() -> None:
    assert set(FIELDS) == RULES


def plain(name: str) -> PolicyCreate:
    """A policy with what the test of this field takes for granted, and without the field."""
    values, _ = FIELDS[name]
    return PolicyCreate(name=name, **{each: values[each] for each in values if each != name})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def worlds(path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[World, World]]:
    """One store as two engines see it: one changes things, the other has validated before."""
    name, clock = request.getfixturevalue("name"), TurnableClock()
    with (
        Engine(SqliteStore(path), clock=clock) as one,
        Engine(SqliteStore(path), clock=clock) as two,
    ):
        one.store.migrate()
        one.ensure_scopes(["users", "users:read", "users:write"])
        policy = one.create_policy(plain(name))
        created = one.create_key(KeyCreate(name="k", scopes=["users"], policy_id=policy.id))
        clock.turn(days=1)
        yield (
            World(one, created, policy.id, clock),
            World(two, created, policy.id, clock),
        )


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_counts_from_the_next_validation_on_in_every_engine(
    name: str, worlds: tuple[World, World]
) -> None:
    values, enforced = FIELDS[name]
    for changing, judging in (worlds, worlds[::-1]):
        assert not enforced(judging)
        changing.engine.update_policy(judging.policy_id, PolicyUpdate(**values))
        assert enforced(judging)
        default = getattr(plain(name), name)
        changing.engine.update_policy(judging.policy_id, PolicyUpdate(**{name: default}))
        assert not enforced(judging)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_counts_for_a_key_that_is_given_the_policy(
    name: str, worlds: tuple[World, World]
) -> None:
    values, enforced = FIELDS[name]
    changing, judging = worlds
    assert not enforced(judging)
    policy = changing.engine.create_policy(PolicyCreate(**{"name": "strict"} | values))
    changing.engine.update_key(judging.created.key.id, KeyUpdate(policy_id=policy.id))
    judging.policy_id = policy.id
    assert enforced(judging)


# ---------------------------------------------------------------------------- over HTTP

OVER_HTTP: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    ({"allowed_ips": ["192.0.2.0/24"]}, {}, 403, "ip_not_allowed"),
    ({"allowed_origins": ["https://other.example"]}, {}, 403, "origin_not_allowed"),
    ({"allowed_methods": ["POST"]}, {}, 403, "method_not_allowed"),
    ({"allowed_paths": ["/v2/**"]}, {}, 403, "path_not_allowed"),
    ({"allowed_scopes": ["users:read"]}, {"scopes": ["users:write"]}, 403, "insufficient_scope"),
    ({"rate_limit": 3, "rate_limit_window": "PT1H"}, {"cost": 4}, 429, "rate_limited"),
    ({"burst_limit": 3}, {"cost": 4}, 429, "rate_limited"),
    ({"daily_quota": 3}, {"cost": 4}, 429, "quota_exceeded"),
    ({"monthly_quota": 3}, {"cost": 4}, 429, "quota_exceeded"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with Engine(SqliteStore(tmp_path_factory.mktemp("fields") / "keys.db")) as engine:
        engine.store.migrate()
        engine.ensure_scopes(["keysmith"], tenant_id="keysmith")
        engine.ensure_scopes(["users", "users:read", "users:write"])
        root = engine.create_key(KeyCreate(name="r", tenant_id="keysmith", scopes=["keysmith"]))
        app = FastAPI()
        app.include_router(management_router(engine))
        with serving(app) as url, client(f"{url}/v1", root.raw_key) as opened:
            yield opened


@pytest.mark.parametrize(("values", "request_", "status", "code"), OVER_HTTP)
def test_a_field_counts_over_http(
    api: httpx.Client, values: dict[str, Any], request_: dict[str, Any], status: int, code: str
) -> None:
    policy = api.post("/policies", json={"name": "-".join(values)}).json()
    made = api.post(
        "/keys", json={"name": "k", "policy_id": policy["id"], "scopes": ["users"]}
    ).json()
    asked = {"raw_key": made["raw_key"], **GOOD, **request_}
    assert api.post("/keys/validate", json=asked).status_code == 200
    assert api.patch(f"/policies/{policy['id']}", json=values).status_code == 200
    refused = api.post("/keys/validate", json=asked)
    is_problem(refused, status, code)
    assert ("retry-after" in refused.headers) == (status == 429)
