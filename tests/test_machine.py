"""The life of keys, driven at random beside a plain model of what is promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from keysmith import (
    Engine,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    KeyCreate,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    KeysmithError,
    KeyState,
    KeySuspendedError,
    ScopeCreate,
    ScopeNotFoundError,
    SqliteStore,
)
from tests.conftest import START, TurnableClock

SCOPES = {"a": None, "a:b": None, "a:b:c": None, "d": "a:b", "e": "d", "f": None}
ABOVE = {
    "a": "a",
    "a:b": "a a:b",
    "a:b:c": "a a:b a:b:c",
    "d": "a a:b d",
    "e": "a a:b d e",
    "f": "f",
}
names = st.sets(st.sampled_from(sorted(SCOPES)), max_size=3)
durations = st.sampled_from([0, 1, 5, 60, 3600, 86_400]).map(lambda s: timedelta(seconds=s))


@dataclass
class Model:
    """A key as the documentation describes it."""

    state: str
    expires_at: datetime | None
    scopes: set[str]
    secrets: list[str]
    grace: dict[str, datetime] = field(default_factory=dict)

    def at(self, now: datetime) -> str:
        living = self.state in ("active", "suspended")
        if living and self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return self.state

    def granted(self) -> set[str]:
        return {name for name, above in ABOVE.items() if self.scopes & set(above.split())}


class Life(RuleBasedStateMachine):
    keys: Bundle[str] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.clock = TurnableClock(START)
        self.store = SqliteStore(":memory:")
        self.store.migrate()
        self.engine = Engine(self.store, clock=self.clock)
        self.models: dict[str, Model] = {}

    @initialize()
    def declare(self) -> None:
        for name, parent in SCOPES.items():
            self.engine.create_scope(ScopeCreate(name=name, parent=parent))

    def teardown(self) -> None:
        self.store.close()

    def expect(self, error: type[KeysmithError] | None, call: object, *given: object) -> object:
        try:
            result = call(*given)  # type: ignore[operator]
        except KeysmithError as raised:
            assert type(raised) is error, (raised, error)
            return None
        assert error is None, error
        return result

    def living(self, key_id: str) -> bool:
        return self.models[key_id].at(self.clock.now) in ("active", "suspended")

    @rule(target=keys, scopes=names, lasts=st.none() | durations.filter(bool))
    def create(self, scopes: set[str], lasts: timedelta | None) -> str:
        expires_at = None if lasts is None else self.clock.now + lasts
        created = self.engine.create_key(
            KeyCreate(name="n", scopes=sorted(scopes), expires_at=expires_at)
        )
        self.models[created.key.id] = Model("active", expires_at, scopes, [created.raw_key])
        return created.key.id

    @rule(key_id=keys, grace=st.none() | durations, compromise=st.booleans())
    def rotate(self, key_id: str, grace: timedelta | None, compromise: bool) -> None:
        model, now = self.models[key_id], self.clock.now
        refused = None if self.living(key_id) else InvalidStateTransitionError
        reason = "compromise" if compromise else "manual"
        rotated = self.expect(
            refused, lambda: self.engine.rotate_key(key_id, reason=reason, grace=grace)
        )
        if rotated is None:
            model.state = model.at(now)  # what was called expired is so for good
            return
        if compromise:
            model.grace = {secret: min(end, now) for secret, end in model.grace.items()}
            grace = timedelta(0)
        lasts = timedelta(days=1) if grace is None else grace
        model.grace[model.secrets[-1]] = now + lasts
        model.secrets.append(rotated.raw_key)  # type: ignore[attr-defined]

    @rule(key_id=keys, deed=st.sampled_from(["suspend", "reactivate", "revoke"]))
    def move(self, key_id: str, deed: str) -> None:
        model = self.models[key_id]
        ways = {
            "suspend": ({"active"}, "suspended"),
            "reactivate": ({"suspended"}, "active"),
            "revoke": ({"active", "suspended"}, "revoked"),
        }
        sources, target = ways[deed]
        allowed = model.at(self.clock.now) in sources
        self.expect(
            None if allowed else InvalidStateTransitionError,
            getattr(self.engine, f"{deed}_key"),
            key_id,
        )
        model.state = target if allowed else model.at(self.clock.now)

    @rule(key_id=keys, scopes=names, unknown=st.booleans())
    def assign(self, key_id: str, scopes: set[str], unknown: bool) -> None:
        asked = [*scopes, "nope"] if unknown else list(scopes)
        refused = ScopeNotFoundError if unknown else None
        self.expect(refused, self.engine.assign_scopes, key_id, asked)
        if not unknown:
            self.models[key_id].scopes |= scopes

    @rule(key_id=keys, scopes=names, unknown=st.booleans())
    def remove(self, key_id: str, scopes: set[str], unknown: bool) -> None:
        asked = [*scopes, "nope"] if unknown else list(scopes)
        refused = ScopeNotFoundError if unknown else None
        self.expect(refused, self.engine.remove_scopes, key_id, asked)
        if not unknown:
            self.models[key_id].scopes -= scopes

    @rule(by=durations)
    def time_passes(self, by: timedelta) -> None:
        self.clock.now += by

    @rule()
    def clean_up(self) -> None:
        now = self.clock.now
        due = [m for m in self.models.values() if m.at(now) != m.state]
        assert self.engine.cleanup_expired_keys() == len(due)
        for model in due:
            model.state = "expired"

    @rule(key_id=keys, secret=st.integers(0, 9), scopes=names)
    def validate(self, key_id: str, secret: int, scopes: set[str]) -> None:
        model, now = self.models[key_id], self.clock.now
        raw_key = model.secrets[secret % len(model.secrets)]
        outgoing = raw_key in model.grace
        state = model.at(now)
        refused: type[KeysmithError] | None = {
            "suspended": KeySuspendedError,
            "revoked": KeyRevokedError,
            "expired": KeyExpiredError,
        }.get(state)
        if outgoing and model.grace[raw_key] <= now:
            refused = KeyRevokedError
        elif state == "expired":
            model.state = "expired"
        if refused is None and not scopes <= model.granted():
            refused = InsufficientScopeError
        result = self.expect(
            refused, lambda: self.engine.validate_key(raw_key, scopes=sorted(scopes))
        )
        if result is not None:
            assert result.key.id == key_id  # type: ignore[attr-defined]
            assert set(result.scopes) == model.granted()  # type: ignore[attr-defined]
            assert result.rotated == outgoing  # type: ignore[attr-defined]
            assert result.grace_ends == model.grace.get(raw_key)  # type: ignore[attr-defined]

    @rule(key_id=keys)
    def another_tenant_sees_nothing(self, key_id: str) -> None:
        other = self.engine.for_tenant("other")
        for raw_key in self.models[key_id].secrets:
            self.expect(InvalidKeyError, other.validate_key, raw_key)
        self.expect(KeyNotFoundError, other.get_key, key_id)
        self.expect(KeyNotFoundError, other.revoke_key, key_id)

    @invariant()
    def what_is_stored_is_what_is_modelled(self) -> None:
        stored = {key.id: key for key in self.engine.list_keys()}
        assert stored.keys() == self.models.keys()
        for key_id, model in self.models.items():
            key = stored[key_id]
            assert key.state == KeyState(model.state)
            assert key.hint == model.secrets[-1][-4:]
            held = {scope.name for scope in self.engine.list_key_scopes(key_id)}
            assert held == model.scopes
        for moment in (key.created_at for key in stored.values()):
            assert START <= moment <= self.clock.now


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
