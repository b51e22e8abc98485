"""API keys for a Python service: issue, validate, rotate with a grace period, revoke.

from keysmith import Engine, KeyCreate, SqliteStore

store = SqliteStore("keysmith.db")
store.migrate()
engine = Engine(store)
created = engine.create_key(KeyCreate(name="Production"))
engine.validate_key(created.raw_key)
"""

from typing import TYPE_CHECKING

from keysmith.engine import (
    AsyncEngine,
    CacheStatistics,
    CreatedKey,
    Engine,
    Limits,
    MaintenanceReport,
    Plugin,
    RateLimiter,
    RateLimitStatus,
    ValidationResult,
)
from keysmith.errors import (
    ConflictError,
    InsufficientScopeError,
    InvalidKeyError,
    InvalidStateTransitionError,
    IPNotAllowedError,
    KeyExpiredError,
    KeyInactiveError,
    KeyNotFoundError,
    KeyRevokedError,
    KeysmithError,
    KeySuspendedError,
    MethodNotAllowedError,
    NotFoundError,
    OriginNotAllowedError,
    PathNotAllowedError,
    PolicyInUseError,
    PolicyNotFoundError,
    PolicyViolationError,
    QuotaExceededError,
    RateLimitedError,
    RequestMismatchError,
    RequestRepeatedError,
    RotationNotFoundError,
    SchemaOutdatedError,
    ScopeLoopError,
    ScopeNotAllowedError,
    ScopeNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    TenantMismatchError,
)
from keysmith.models import (
    Environment,
    Key,
    KeyCreate,
    KeyPublic,
    KeyScope,
    KeyState,
    KeyUpdate,
    Period,
    Policy,
    PolicyCreate,
    PolicyPublic,
    PolicyUpdate,
    Rotation,
    RotationPublic,
    RotationReason,
    Scope,
    ScopeCreate,
    ScopePublic,
    ScopeUpdate,
    UsageAggregate,
    UsageAggregatePublic,
    UsageCreate,
    UsagePublic,
    UsageRecord,
    UsageSummary,
    metadata,
)
from keysmith.raw_keys import Hasher, HmacSha256Hasher, KeyGenerator
from keysmith.stores import SqliteStore, Store, open_store, without_keysmith

__all__ = [
    "AsyncEngine",
    "CacheStatistics",
    "ConflictError",
    "CreatedKey",
    "Engine",
    "Environment",
    "Hasher",
    "HmacSha256Hasher",
    "IPNotAllowedError",
    "InsufficientScopeError",
    "InvalidKeyError",
    "InvalidStateTransitionError",
    "Key",
    "KeyCreate",
    "KeyExpiredError",
    "KeyGenerator",
    "KeyInactiveError",
    "KeyNotFoundError",
    "KeyPublic",
    "KeyRevokedError",
    "KeyScope",
    "KeyState",
    "KeySuspendedError",
    "KeyUpdate",
    "KeysmithError",
    "Limits",
    "MaintenanceReport",
    "MethodNotAllowedError",
    "NotFoundError",
    "OriginNotAllowedError",
    "PathNotAllowedError",
    "Period",
    "Plugin",
    "Policy",
    "PolicyCreate",
    "PolicyInUseError",
    "PolicyNotFoundError",
    "PolicyPublic",
    "PolicyUpdate",
    "PolicyViolationError",
    "QuotaExceededError",
    "RateLimitStatus",
    "RateLimitedError",
    "RateLimiter",
    "RequestMismatchError",
    "RequestRepeatedError",
    "Rotation",
    "RotationNotFoundError",
    "RotationPublic",
    "RotationReason",
    "SchemaOutdatedError",
    "Scope",
    "ScopeCreate",
    "ScopeLoopError",
    "ScopeNotAllowedError",
    "ScopeNotFoundError",
    "ScopePublic",
    "ScopeUpdate",
    "SqliteStore",
    "Store",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "TenantMismatchError",
    "UsageAggregate",
    "UsageAggregatePublic",
    "UsageCreate",
    "UsagePublic",
    "UsageRecord",
    "UsageSummary",
    "ValidationResult",
    "metadata",
    "open_store",
    "without_keysmith",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, which is looked up only where somebody asks: that takes files."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415

        return version(__name__)
