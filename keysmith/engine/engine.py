"""The engine: every call of the package, each handed on to the part that knows how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, Unpack

from pydantic import TypeAdapter

from keysmith.clock import Clock, utc_now
from keysmith.engine.buffer import UsageBuffer
from keysmith.engine.candidates import DEFAULT_CACHE_SIZE, CacheStatistics, Candidates
from keysmith.engine.context import Context, Precondition, Tenancy, present
from keysmith.engine.hooks import Hooks, Plugin
from keysmith.engine.keys import Keys
from keysmith.engine.lifecycle import Lifecycle
from keysmith.engine.limits import CountingRateLimiter, RateLimiter
from keysmith.engine.maintenance import Maintenance, MaintenanceReport
from keysmith.engine.policies import Policies
from keysmith.engine.results import CreatedKey, ValidationResult
from keysmith.engine.rotation import Rotations
from keysmith.engine.scopes import Scopes
from keysmith.engine.shared_limits import LimitsRateLimiter
from keysmith.engine.usage import Usage
from keysmith.engine.validation import Validation
from keysmith.errors import StoreError, TenantMismatchError
from keysmith.models import (
    Key,
    KeyCreate,
    KeyUpdate,
    Period,
    Policy,
    PolicyCreate,
    PolicyUpdate,
    Rotation,
    RotationReason,
    Scope,
    ScopeCreate,
    ScopeUpdate,
    UsageAggregate,
    UsageCreate,
    UsageRecord,
    UsageSummary,
)
from keysmith.models.base import HIDE_INPUT, Name
from keysmith.raw_keys import Hasher, KeyGenerator
from keysmith.stores.base import (
    KeyFilters,
    RotationFilters,
    ScopeFilters,
    Store,
    TenantFilters,
    UsageFilters,
)
from keysmith.tracebacks import forget_values, guarded

_name: TypeAdapter[str] = TypeAdapter(Name, config=HIDE_INPUT)


# Of these two, called for every request, one sees to its errors itself, the other gets no secret.
@guarded(besides=("validate_key", "record_usage"))
class Engine:
    """Issues, validates, rotates and revokes API keys. Safe to share between threads.

    Calls raise `KeysmithError` subclasses, or pydantic's `ValidationError` for input that no store
    need be asked about. Each change is one transaction, durable when the call returns.
    """

    def __init__(
        self,
        store: Store,
        *,
        plugins: Iterable[Plugin] = (),
        hasher: Hasher | None = None,
        generator: KeyGenerator | None = None,
        rate_limiter: RateLimiter | str | None = None,
        clock: Clock = utc_now,
        cache_size: int = DEFAULT_CACHE_SIZE,
    ) -> None:
        """An engine on a store; everything else has a default.

        `clock` gives the present as an aware UTC datetime; nothing here asks anyone else.
        `rate_limiter` counts elsewhere than in the store: one of your own, or the URI of a storage
        of the library `limits` such as `redis://localhost`, for services on several machines (see
        `keysmith.engine.shared_limits`). `cache_size` is how many secrets are
        remembered at most between validations, 0 for none; what has changed in the store since,
        by whomever, is read again, so nothing is ever answered from the past.
        """
        hasher = hasher or Hasher()
        self._bind(
            Context(
                store=store,
                clock=clock,
                hasher=hasher,
                generator=generator or KeyGenerator(),
                hooks=Hooks(plugins),
                candidates=Candidates(store.credentials, cache_size),
                limiter=_limiter(rate_limiter, store, lambda: present(clock)),
                usage=UsageBuffer(store),
                tenancy=Tenancy(),
            )
        )

    def _bind(self, context: Context) -> None:
        self._context = context
        self._closed = False
        self._keys = Keys(context)
        self._lifecycle = Lifecycle(context)
        self._policies = Policies(context)
        self._rotations = Rotations(context)
        self._scopes = Scopes(context)
        self._usage = Usage(context)
        self._maintenance = Maintenance(
            context, self._lifecycle, self._rotations, self._usage, self._keys
        )
        self._validation = Validation(context, self._lifecycle, self._rotations)

    # ------------------------------------------------------------------ tenants

    @property
    def store(self) -> Store:
        """The store underneath, which knows no tenants."""
        return self._context.store

    @property
    def tenant_id(self) -> str | None:
        """The tenant that this engine is bound to; `None` for all."""
        return self._context.tenancy.tenant_id

    def for_tenant(self, tenant_id: str, *, app_id: str | None = None) -> Engine:
        """The same calls, for one tenant, and if given one of its apps: no others exist for it.

        Apps bound keys, policies and usage. Scopes are the tenant's: whichever app declared one,
        all can assign it, and what one app changes of it counts for the keys of all.

        Requests that leave out `tenant_id` and `app_id` get these; those that name others raise
        `TenantMismatchError`. Closing a bound engine does nothing; close the one it came from.
        Raises `ValidationError` for what is no text, such as `None`: that would be all of them.
        """
        tenant_id = _name.validate_python(tenant_id, strict=True)
        if app_id is not None:
            app_id = _name.validate_python(app_id, strict=True)
        bound = self._context.tenancy
        if bound.tenant_id not in (None, tenant_id) or bound.app_id not in (None, app_id):
            raise TenantMismatchError
        engine = object.__new__(Engine)
        engine._bind(replace(self._context, tenancy=Tenancy(tenant_id, app_id)))
        engine._closed = True
        return engine

    # ------------------------------------------------------------------ keys

    def create_key(self, data: KeyCreate, *, idempotency_key: str | None = None) -> CreatedKey:
        """Creates a key with its scopes. The raw key is in the answer, and nowhere else, ever.

        A request whose answer may get lost can be made again with the same `idempotency_key`: a
        second key is never made, for as long as the first one exists. `RequestRepeatedError` then
        tells the first one's ID, or `RequestMismatchError` that something else was asked for.

        Raises `PolicyNotFoundError`, `ScopeNotFoundError` with the unknown `names`,
        `ScopeNotAllowedError`, `PolicyViolationError` for an expiry that the policy does not allow,
        and `ValidationError` for one that is past. Nothing is created then.
        """
        return self._keys.create(data, idempotency_key)

    def import_key(self, data: KeyCreate, *, key_hash: str, hint: str) -> Key:
        """Takes over a key that was issued elsewhere, of which only the hash is known.

        `key_hash` is what this engine's hasher makes of the raw key, which has at most 512
        characters, or no validation will take it; `hint` is its last characters, four at most.
        Raises what `create_key` raises, and `ConflictError` for a hash that is known already.
        Hashes are unique over all tenants, so this tells that another has the secret; not who,
        nor whether it was rotated out of use.
        """
        return self._keys.import_(data, key_hash, hint)

    def validate_key(
        self,
        raw_key: str,
        *,
        ip: str | None = None,
        origin: str | None = None,
        method: str | None = None,
        path: str | None = None,
        scopes: Iterable[str] = (),
        cost: int = 1,
    ) -> ValidationResult:
        """Judges a raw key; the first thing that speaks against it is raised.

        `InvalidKeyError` where it is malformed, unknown or of another tenant; `KeySuspendedError`,
        `KeyRevokedError`, `KeyExpiredError`, all of them `KeyInactiveError`; `IPNotAllowedError`,
        `OriginNotAllowedError`, `MethodNotAllowedError`, `PathNotAllowedError`, all of them
        `PolicyViolationError`, also where the policy has such a rule and the request does not say;
        `InsufficientScopeError`, with `.missing`, where it is not granted all of `scopes`;
        `RateLimitedError`, with `.retry_after` seconds; and `QuotaExceededError`, with `.period`
        and `.resets_at`. A request counts `cost` times against limits and quotas; one that is
        refused does not count.
        """
        try:
            result = self._validation.validate(raw_key, ip, origin, method, path, scopes, cost)
        except BaseException as error:
            del raw_key
            forget_values(error)
            raise
        assert result is not None  # noqa: S101  only one at once can give none  # nosec B101
        return result

    def get_key(self, key_id: str) -> Key:
        """The key with this ID. Raises `KeyNotFoundError`."""
        return self._keys.get(key_id)

    def list_keys(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[KeyFilters]
    ) -> Sequence[Key]:
        """Keys, newest first. `after` is the last ID of the page before.

        `unused_since=now - timedelta(days=90)` finds those that nobody has used for so long,
        `expires_by` and `rotation_due_by` what is to come: see `KeyFilters`.
        """
        return self._keys.list(limit, after, {**filters})

    def count_keys(self, **filters: Unpack[KeyFilters]) -> int:
        """How many keys there are."""
        return self._keys.count({**filters})

    def update_key(
        self, key_id: str, data: KeyUpdate, *, precondition: Precondition[Key] | None = None
    ) -> Key:
        """Changes the fields of a key that are set in `data`.

        `precondition` is called with the key as it is, in the same transaction; what it raises
        prevents the change.

        A key that would live longer than its new policy lets it, and is given no expiry here, is
        given the latest that there is.

        Raises `KeyNotFoundError`, `PolicyNotFoundError`, `PolicyViolationError` and
        `ValidationError` as `create_key` does, and `InvalidStateTransitionError` for a new expiry
        of a key that is revoked or expired.
        """
        return self._keys.update(key_id, data, precondition)

    def delete_key(self, key_id: str, *, precondition: Precondition[Key] | None = None) -> None:
        """Removes a key with its history and usage. To only stop it, revoke it.

        Raises `ConflictError` where a table of the host's refers to the key, and restricts that.
        For `precondition` see `update_key`.
        """
        self._keys.delete(key_id, precondition)

    # ------------------------------------------------------------------ life of a key

    def rotate_key(
        self,
        key_id: str,
        *,
        reason: RotationReason | str = RotationReason.MANUAL,
        grace: timedelta | None = None,
        rotated_by: str = "",
        idempotency_key: str | None = None,
        precondition: Precondition[Key] | None = None,
    ) -> CreatedKey:
        """Gives a key a new secret; the old one goes on working until `grace` has passed.

        `grace` defaults to the policy's `grace_period`, and that to 24 hours. With the reason
        `"compromise"` there is none, and what earlier rotations had left ends too. Raises
        `InvalidStateTransitionError` for a key that is revoked or expired. With the same
        `idempotency_key` a key is rotated once; see `create_key`. For `precondition` see
        `update_key`.
        """
        return self._rotations.rotate(
            key_id, reason, grace, rotated_by, idempotency_key, precondition
        )

    def revoke_key(self, key_id: str, *, reason: str = "") -> Key:
        """Stops a key for good. Raises `InvalidStateTransitionError` if it is stopped already."""
        return self._lifecycle.revoke(key_id, reason)

    def suspend_key(self, key_id: str) -> Key:
        """Stops an active key until it is reactivated, else `InvalidStateTransitionError`."""
        return self._lifecycle.suspend(key_id)

    def reactivate_key(self, key_id: str) -> Key:
        """Lets a suspended key work again, else `InvalidStateTransitionError`."""
        return self._lifecycle.reactivate(key_id)

    def cleanup_expired_keys(self) -> int:
        """Gives keys whose expiry has passed the state `expired`; tells how many there were.

        Validation refuses them anyway, and by the clock: this is for lists and plugins. Each key is
        reported to `on_key_expired` once, however many processes clean up.
        """
        return self._lifecycle.expire_all()

    def cleanup_grace_expired(self) -> int:
        """Reports each grace period that has ended to `on_grace_ended`, once; tells how many.

        Those whose secret was used after that have been reported then, and are not counted.
        """
        return self._rotations.close_ended()

    def maintain(
        self, *, usage_retention: timedelta | None = None, unused_for: timedelta | None = None
    ) -> MaintenanceReport:
        """What is to be done now and then: both clean-ups, and a look at what needs attention.

        Usage records older than `usage_retention` are removed; aggregates stay. The report lists
        keys due for rotation, and those that nobody has used for `unused_for`. Left out, nothing
        is removed or listed. Any number of processes may do this at once. Raises `ValidationError`
        for a negative duration.
        """
        return self._maintenance.run(usage_retention, unused_for)

    def list_rotations(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[RotationFilters],
    ) -> Sequence[Rotation]:
        """Rotations, newest first."""
        return self._rotations.list(limit, after, {**filters})

    def list_keys_due_for_rotation(self) -> Sequence[Key]:
        """Living keys whose policy's `rotation_period` has passed since their last rotation.

        A key that was never rotated is due so long after its creation. The longest due come first.
        """
        return self._rotations.due()

    # ------------------------------------------------------------------ usage

    def record_usage(self, data: UsageCreate) -> None:
        """Records a request, without waiting for the store: it is written within a second.

        Only when ten thousand wait already does recording wait, too; and it raises `StoreError` if
        they wait because the store cannot be written to. Records of a key that does not exist when
        they are written, or not for this tenant, are dropped and counted (`dropped_usage`).
        """
        self._usage.record(data)

    def query_usage(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageRecord]:
        """Records, newest first, with all that this engine has recorded before.

        Within a transaction of the host's, without what still waits to be written. `after` is the
        last ID of the page before, and raises `NotFoundError` if that record has gone meanwhile; or
        its `created_at` and ID, which lead on even then.
        """
        return self._usage.query(limit, after, {**filters})

    def aggregate_usage(
        self,
        *,
        period: Period | str = Period.DAILY,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
        **filters: Unpack[UsageFilters],
    ) -> Sequence[UsageAggregate]:
        """Days or months of keys, newest first, with all that this engine has recorded before.

        Within a transaction of the host's, without what still waits to be written. `since`
        (inclusive) and `until` (exclusive) speak of the first moment of a period; `after` is the
        last one's `period_start` and `key_id`.
        """
        return self._usage.aggregate(period, limit, after, {**filters})

    def summarize_usage(
        self, *, period: Period | str = Period.DAILY, **filters: Unpack[UsageFilters]
    ) -> Sequence[UsageSummary]:
        """Days or months, oldest first, each of all the keys together: a line to plot.

        Periods without requests are left out. `since` and `until` speak of the first moment of a
        period. Within a transaction of the host's, without what still waits to be written.
        """
        return self._usage.summarize(period, {**filters})

    def purge_usage(
        self, before: datetime, *, progress: Callable[[int], None] | None = None
    ) -> int:
        """Removes records older than that, and tells how many; aggregates stay.

        Many small transactions, so that others hardly wait; `progress` is told of each how many
        records it removed.
        """
        return self._usage.purge(before, progress)

    @property
    def dropped_usage(self) -> int:
        """How many records this engine has dropped because their key was gone.

        Engines that are bound to the same tenant and app count together; one that is bound to none
        counts for all of them.
        """
        return self._usage.dropped

    # ------------------------------------------------------------------ policies

    def create_policy(self, data: PolicyCreate) -> Policy:
        """Creates a policy. Raises `ConflictError` if the tenant has one of this name."""
        return self._policies.create(data)

    def get_policy(self, policy_id: str) -> Policy:
        """The policy with this ID. Raises `PolicyNotFoundError`."""
        return self._policies.get(policy_id)

    def list_policies(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        **filters: Unpack[TenantFilters],
    ) -> Sequence[Policy]:
        """Policies, newest first. `after` is the last ID of the page before."""
        return self._policies.list(limit, after, {**filters})

    def update_policy(
        self,
        policy_id: str,
        data: PolicyUpdate,
        *,
        precondition: Precondition[Policy] | None = None,
    ) -> Policy:
        """Changes the fields of a policy that are set; they count from the next validation on.

        For `precondition` see `update_key`.
        """
        return self._policies.update(policy_id, data, precondition)

    def delete_policy(
        self, policy_id: str, *, precondition: Precondition[Policy] | None = None
    ) -> None:
        """Removes a policy. Raises `PolicyInUseError` while a key bears it.

        For `precondition` see `update_key`.
        """
        self._policies.delete(policy_id, precondition)

    # ------------------------------------------------------------------ scopes

    def create_scope(self, data: ScopeCreate) -> Scope:
        """Creates a scope.

        Raises `ConflictError` if the tenant has one of this name, `ScopeNotFoundError` for an
        unknown parent, and `ScopeLoopError` for one that lies below the scope by its name.
        """
        return self._scopes.create(data)

    def ensure_scopes(self, names: Iterable[str], *, tenant_id: str | None = None) -> list[Scope]:
        """The scopes of these names, created where there were none: a service's declaration."""
        return self._scopes.ensure(names, tenant_id)

    def get_scope(self, scope_id: str) -> Scope:
        """The scope with this ID. Raises `ScopeNotFoundError`."""
        return self._scopes.get(scope_id)

    def list_scopes(
        self,
        *,
        limit: int | None = None,
        after: str | tuple[str, str] | None = None,
        **filters: Unpack[ScopeFilters],
    ) -> Sequence[Scope]:
        """Scopes, by name.

        `after` is the last ID of the page before, and raises `ScopeNotFoundError` if that scope has
        gone meanwhile; or its name and ID, which lead on even then.
        """
        return self._scopes.list(limit, after, {**filters})

    def list_key_scopes(self, key_id: str) -> Sequence[Scope]:
        """The scopes that a key holds itself, by name, without those it is granted by them."""
        return self._scopes.of_key(key_id)

    def update_scope(
        self, scope_id: str, data: ScopeUpdate, *, precondition: Precondition[Scope] | None = None
    ) -> Scope:
        """Changes a scope's description, parent or metadata; its name is for good.

        Raises `ScopeLoopError` for a parent that lies below the scope. For `precondition` see
        `update_key`.
        """
        return self._scopes.update(scope_id, data, precondition)

    def delete_scope(
        self, scope_id: str, *, precondition: Precondition[Scope] | None = None
    ) -> None:
        """Removes a scope. Keys lose it; scopes below it by `parent` stand alone.

        Plugins hear of each key that lost it; of more than 1,000, of the newest 1,000.
        For `precondition` see `update_key`.
        """
        self._scopes.delete(scope_id, precondition)

    def assign_scopes(self, key_id: str, names: Iterable[str]) -> None:
        """Gives a key scopes; what it holds already stays.

        Raises `ScopeNotFoundError` with the unknown `names`, and `ScopeNotAllowedError` for those
        that the key's policy does not allow. Nothing is changed then.
        """
        self._scopes.assign(key_id, names)

    def remove_scopes(self, key_id: str, names: Iterable[str]) -> None:
        """Takes scopes from a key. Raises `ScopeNotFoundError` with the unknown `names`."""
        self._scopes.remove(key_id, names)

    # ------------------------------------------------------------------ the engine itself

    def now(self) -> datetime:
        """The present, by this engine's clock."""
        return self._context.now()

    def health(self) -> None:
        """Raises `StoreError` when the store, or what counts limits, cannot answer."""
        self._context.store.ping()
        ping = getattr(self._context.limiter, "ping", None)
        if ping is not None:
            ping()

    def cache_statistics(self) -> CacheStatistics:
        """How often validation was answered from memory."""
        return self._context.candidates.statistics()

    def flush(self) -> None:
        """Waits until all that was recorded is written and plugins have heard of all that happened.

        A plugin that hangs is waited for five seconds. Raises `StoreError` where usage cannot be
        written; it goes on waiting then.
        """
        self._context.usage.flush()
        self._context.hooks.flush()

    def close(self) -> None:
        """Writes what was recorded, tells plugins, fires `on_shutdown` and closes the store.

        May be called twice. A plugin that hangs is waited for five seconds. Raises `StoreError`
        where usage cannot be written; the store is closed all the same. Within a transaction it
        raises that, too, and does nothing.
        """
        if self._closed:
            return
        if self._context.store.in_transaction:
            raise StoreError("Within a transaction the engine cannot be closed; do so after it.")
        self._closed = True
        try:
            self._context.usage.close()
        finally:
            self._context.hooks.close()
            self._context.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _limiter(given: RateLimiter | str | None, store: Store, clock: Clock) -> RateLimiter:
    if given is None:
        return CountingRateLimiter(store.counters, clock)
    return LimitsRateLimiter(given, clock) if isinstance(given, str) else given
