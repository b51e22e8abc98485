"""The contract of a store: five repositories, transactions, and a schema that migrates itself.

`SqliteStore` meets it. Another backend is written by meeting it too; nothing above the stores knows
more than what stands here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar, Unpack

from pydantic import ConfigDict
from sqlalchemy import Engine as DatabaseEngine
from typing_extensions import TypedDict

from keysmith.models import (
    Environment,
    Key,
    KeyPublic,
    KeyState,
    Period,
    Policy,
    PolicyPublic,
    Rotation,
    RotationPublic,
    RotationReason,
    Scope,
    UsageAggregate,
    UsageRecord,
    UsageSummary,
)
from keysmith.models.base import Label, UtcDatetime

T = TypeVar("T")


class TenantFilters(TypedDict, total=False):
    """Whose objects. A filter left out, or `None`, does not filter."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    tenant_id: Label | None
    app_id: Label | None


class KeyFilters(TenantFilters, total=False):
    """Which keys. Those that ask for a moment find keys in no final state alone."""

    environment: Environment | None
    state: KeyState | None
    policy_id: Label | None
    created_by: Label | None
    expires_by: UtcDatetime | None
    """Those whose expiry lies at or before that moment."""
    rotation_due_by: UtcDatetime | None
    """Those that live then, and whose policy's `rotation_period` has passed by then.

    It counts from the last rotation, or from the creation of a key that was never rotated.
    """
    unused_since: UtcDatetime | None
    """Those that lived then, had been created before, and have not been used since.

    For a store, what is still in an engine's buffer of usage does not count yet.
    """


class ScopeFilters(TenantFilters, total=False):
    """Which scopes."""

    parent: Label | None


class RotationFilters(TenantFilters, total=False):
    """Which rotations."""

    key_id: Label | None
    reason: RotationReason | None


class UsageFilters(TenantFilters, total=False):
    """Which usage: from `since` (inclusive) to `until` (exclusive)."""

    key_id: Label | None
    since: UtcDatetime | None
    until: UtcDatetime | None


class KeyRepository(Protocol):
    """Keeps keys. Lists come newest first; `after` is the last ID of the page before.

    What is missing raises `KeyNotFoundError`; a second key with the same hash, `ConflictError`.
    """

    def create(self, key: Key, /) -> Key:
        """Adds a key."""

    def get(self, key_id: str, /, *, for_update: bool = False) -> Key:
        """The key with this ID; `for_update` keeps others from changing it until the commit."""

    def get_by_hash(self, key_hash: str) -> Key:
        """The key whose current secret has this hash."""

    def get_by_request(self, token: str) -> Key:
        """The key that the request with this token created."""

    def get_by_prefix(self, prefix: str, hint: str) -> Key:
        """The key that people see as `prefix…hint`; the newest, should there be several."""

    def update(self, key: Key, /) -> Key:
        """Writes every field of the key."""

    def update_state(self, key_id: str, state: KeyState, *, now: datetime) -> Key:
        """Writes the state, `updated_at` and, when revoked, `revoked_at`."""

    def update_last_used(self, key_id: str, at: datetime) -> None:
        """Writes `last_used_at`, which never moves back."""

    def delete(self, key_id: str, /) -> None:
        """Removes the key with its assignments, rotations and usage."""

    def list(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[KeyFilters]
    ) -> Sequence[Key]:
        """Keys, newest first."""

    def count(self, **filters: Unpack[KeyFilters]) -> int:
        """How many keys there are."""

    def list_expired(
        self, before: datetime, *, limit: int | None = None, **filters: Unpack[TenantFilters]
    ) -> Sequence[Key]:
        """Keys not yet in a final state whose expiry lies at or before that moment, by expiry."""

    def list_due_for_rotation(
        self, now: datetime, **filters: Unpack[TenantFilters]
    ) -> Sequence[Key]:
        """Keys that `rotation_due_by` finds for now, the longest due first."""

    def list_by_policy(self, policy_id: str) -> Sequence[Key]:
        """Keys that bear this policy."""

    def list_by_scope(self, scope_id: str, *, limit: int | None = None) -> Sequence[Key]:
        """Keys that hold this scope itself, newest first."""

    def delete_by_tenant(self, tenant_id: str) -> int:
        """Removes every key of a tenant, and tells how many there were."""


class PolicyRepository(Protocol):
    """Keeps policies. Missing ones raise `PolicyNotFoundError`; a second name, `ConflictError`."""

    def create(self, policy: Policy, /) -> Policy:
        """Adds a policy."""

    def get(self, policy_id: str, /, *, for_update: bool = False) -> Policy:
        """The policy with this ID."""

    def get_by_name(self, tenant_id: str, name: str) -> Policy:
        """The tenant's policy of this name."""

    def update(self, policy: Policy, /) -> Policy:
        """Writes every field of the policy."""

    def delete(self, policy_id: str, /) -> None:
        """Removes the policy, or raises `PolicyInUseError` if a key bears it."""

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[TenantFilters],
    ) -> Sequence[Policy]:
        """Policies, newest first."""

    def count(self, **filters: Unpack[TenantFilters]) -> int:
        """How many policies there are."""


class ScopeRepository(Protocol):
    """Keeps scopes and who holds them. Lists come by name."""

    def create(self, scope: Scope, /) -> Scope:
        """Adds a scope."""

    def get(self, scope_id: str, /, *, for_update: bool = False) -> Scope:
        """The scope with this ID."""

    def get_by_name(self, tenant_id: str, name: str) -> Scope:
        """The tenant's scope of this name."""

    def update(self, scope: Scope, /) -> Scope:
        """Writes every field of the scope."""

    def delete(self, scope_id: str, /) -> None:
        """Removes the scope, its assignments, and the tie of the scopes below it to it."""

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[str, str] | None = None,
        **filters: Unpack[ScopeFilters],
    ) -> Sequence[Scope]:
        """Scopes, by name.

        `after` is the last ID of the page before, and raises `ScopeNotFoundError` when that has
        gone from the tenant; or its name and ID, which lead on even then.
        """

    def list_by_key(self, key_id: str) -> Sequence[Scope]:
        """The scopes that a key holds itself, by name."""

    def names_by_key(self, key_ids: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """For each of the keys that hold any, the names of the scopes that it holds, sorted."""

    def assign_to_key(self, key_id: str, names: Iterable[str]) -> None:
        """Gives a key scopes of its own tenant; what it holds already stays.

        Raises `ScopeNotFoundError` with the unknown `names`, and then changes nothing.
        """

    def remove_from_key(self, key_id: str, names: Iterable[str]) -> None:
        """Takes scopes from a key; those that it does not hold stay away.

        Raises `ScopeNotFoundError` with the unknown `names`, and then changes nothing.
        """

    def below(self, tenant_id: str, names: Iterable[str]) -> Sequence[str]:
        """The tenant's scopes among `names` and all below them, by name and by parent, sorted."""


class UsageRepository(Protocol):
    """Keeps usage records, and adds each to its day and its month in the same transaction."""

    def record(self, record: UsageRecord) -> None:
        """Adds one record."""

    def record_batch(self, records: Iterable[UsageRecord]) -> None:
        """Adds records, all or none."""

    def record_known(
        self, usages: Sequence[RecordedUsage], last_used: Mapping[str, datetime]
    ) -> Sequence[RecordedUsage]:
        """Adds the records whose key exists, and notes when keys were used last.

        Tells which records were dropped. One transaction, which the death of the process does
        not undo, though that of the machine may.
        """

    def query(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageRecord]:
        """Records, newest first.

        `after` is the last ID of the page before, and raises `NotFoundError` when that has gone
        from the tenant; or its `created_at` and ID, which lead on even then.
        """

    def aggregate(
        self,
        *,
        period: Period = Period.DAILY,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageAggregate]:
        """Days or months, newest first; `since` and `until` speak of their first moment.

        `after` is `period_start` and `key_id` of the last one of the page before.
        """

    def summarize(
        self, *, period: Period = Period.DAILY, **filters: Unpack[UsageFilters]
    ) -> Sequence[UsageSummary]:
        """Days or months, oldest first, each of all the keys together; those without requests lack.

        `since` and `until` speak of the first moment of a period.
        """

    def count(self, **filters: Unpack[UsageFilters]) -> int:
        """How many records there are."""

    def purge(self, before: datetime) -> int:
        """Removes records older than that, and tells how many; aggregates stay."""

    def purge_some(self, before: datetime, **filters: Unpack[TenantFilters]) -> int:
        """As `purge`, but only so many that other writers hardly wait; 0 when none are left."""

    def daily_count(self, key_id: str, date: date) -> int:
        """Requests of a key on a day of UTC."""

    def monthly_count(self, key_id: str, month: date) -> int:
        """Requests of a key in the month of UTC in which that date lies."""


class RotationRepository(Protocol):
    """Keeps rotations, also past their grace period. Missing ones raise `RotationNotFoundError`."""

    def create(self, rotation: Rotation, /) -> Rotation:
        """Adds a rotation."""

    def get(self, rotation_id: str, /, *, for_update: bool = False) -> Rotation:
        """The rotation with this ID."""

    def get_by_request(self, token: str) -> Rotation:
        """The rotation that the request with this token asked for."""

    def get_by_old_hash(self, key_hash: str) -> Rotation:
        """The rotation that took the secret with this hash out of use."""

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[RotationFilters],
    ) -> Sequence[Rotation]:
        """Rotations, newest first."""

    def list_pending_grace(self, now: datetime) -> Sequence[Rotation]:
        """Rotations whose grace period still runs, soonest end first."""

    def latest_for_key(self, key_id: str) -> Rotation:
        """The newest rotation of a key."""

    def end_grace(self, key_id: str, *, now: datetime) -> int:
        """Ends all grace that a key's old secrets still have, and tells of how many."""

    def list_ended_grace(
        self, now: datetime, *, limit: int | None = None, **filters: Unpack[TenantFilters]
    ) -> Sequence[Rotation]:
        """Rotations whose grace period has ended and is not `grace_closed` yet, by end."""

    def update(self, rotation: Rotation, /) -> Rotation:
        """Writes every field of the rotation."""


@dataclass(frozen=True, slots=True)
class Credential:
    """All that judging a raw key needs, of one moment. Immutable."""

    key: KeyPublic
    rotation: RotationPublic | None
    """The rotation that took the secret out of use; `None` for the key's current secret."""
    policy: PolicyPublic | None
    """The policy that the key bears."""
    granted: frozenset[str]
    """The scopes that the key holds, and all below them."""
    allowed: frozenset[str] | None
    """The policy's `allowed_scopes`, and all below them; `None` for all."""
    grace_closed: bool = False
    """Whether the end of the rotation's grace period has been noted."""


class RecordedUsage(NamedTuple):
    """A request as it was recorded, validated, and by whom. Immutable in depth."""

    key_id: str
    endpoint: str
    method: str
    status_code: int
    ip_address: str
    user_agent: str
    latency_ms: float
    meta: Mapping[str, object]
    created_at: datetime
    tenant_id: str | None
    """Only keys of this tenant count; `None` for all."""
    app_id: str | None


class CredentialRepository(Protocol):
    """Finds what a hash stands for, and tells whether that may have changed since.

    One that may have to wait for writers can have a method `at_once`, for event loops: given a
    function and the hash to call that with, it gives the result, or `None` sooner than wait.
    """

    def version(self) -> int | None:
        """A number that moves when anything in the store has changed, whoever changed it.

        Usage, with the `last_used_at` of keys, need not move it: no validation goes by that.
        `None` where nothing that was read earlier counts: inside a transaction, or in a store that
        cannot tell. What was read after asking is good as long as the number stays the same.
        """

    def find(self, key_hash: str) -> Credential:
        """The key whose current or outgoing secret has this hash, else `KeyNotFoundError`."""


class Counters(Protocol):
    """Keeps eighty numbers a key, which all who use the store add to together.

    Those that may have to wait for others can have a method `update_at_once`, for event loops: as
    `update`, but sooner than wait it raises `StoreUnavailableError`.
    """

    def update(self, key_id: str, change: Callable[[array[int]], T]) -> T:
        """Lets `change` see and alter the key's numbers; what it raises leaves them as they were.

        Nobody else sees them meanwhile. They begin as zeros.
        """

    def ping(self) -> None:
        """Raises `StoreError` where nothing could be counted now."""


class Store(Protocol):
    """A place where keys are kept. Safe to share between threads."""

    @property
    def keys(self) -> KeyRepository:
        """Keys."""

    @property
    def policies(self) -> PolicyRepository:
        """Policies."""

    @property
    def scopes(self) -> ScopeRepository:
        """Scopes, and which key holds which."""

    @property
    def usages(self) -> UsageRepository:
        """Usage records and their aggregates."""

    @property
    def rotations(self) -> RotationRepository:
        """Rotations."""

    @property
    def credentials(self) -> CredentialRepository:
        """What validation reads."""

    @property
    def counters(self) -> Counters:
        """What limits and quotas are counted in."""

    @property
    def db(self) -> DatabaseEngine:
        """The SQLAlchemy engine underneath."""

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside `transaction()` or `snapshot()`."""

    def transaction(self) -> AbstractContextManager[object]:
        """Everything that this thread does inside is committed together at the end, or not at all.

        Transactions nest: an inner one is part of the outer, and if it fails, it alone is undone.
        """

    def snapshot(self) -> AbstractContextManager[object]:
        """Everything that this thread reads inside is of one moment."""

    def after_commit(self, callback: Callable[[], object], *, in_order: bool = False) -> None:
        """Calls `callback` once what this thread has written is committed.

        At once when the thread is in no transaction, and never if that is rolled back. It must not
        raise: the commit has been made. Those that are `in_order` are called in the order of the
        commits of all threads, which wait for them: they must take hardly any time.
        """

    def migrate(self) -> None:
        """Brings the schema to the newest revision. Idempotent, also among many processes."""

    def ping(self) -> None:
        """Raises `StoreUnavailableError` when the database cannot answer."""

    def before_close(self, finish: Callable[[], None]) -> None:
        """Lets a method be called when the store is about to close, as long as its object lives.

        A method that raises does not keep the store from closing; the first error is raised then.
        """

    def close(self) -> None:
        """Lets go of every connection. May be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
