"""Everything Keysmith raises: one tree, rooted in `KeysmithError`.

Each class carries a stable `code` for programs, and its first docstring line is its default
message. Messages never contain a raw key or a hash.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

_SHOWABLE = re.compile(r"[a-z0-9_.:-]{1,100}")


class KeysmithError(Exception):
    """Keysmith could not do what was asked."""

    code: ClassVar[str] = "keysmith_error"
    """A stable, machine-readable name of the error; it does not change between releases."""

    key_id: str = ""
    """The ID of the key that it is about, where that is known."""

    tenant_id: str = ""
    """The tenant of the key that validation found, and refused."""

    _default: ClassVar[str] = "Keysmith could not do what was asked."

    def __init_subclass__(cls) -> None:
        cls._default = inspect.cleandoc(cls.__doc__ or "").split("\n")[0]

    # Not `__init__`, which would make it three times as dear to refuse a request.
    def __str__(self) -> str:
        return (self.args[0] if self.args else None) or self._default


# ---------------------------------------------------------------------------- not found


class NotFoundError(KeysmithError):
    """There is no such object."""

    code = "not_found"


class KeyNotFoundError(NotFoundError):
    """There is no key with this ID. Key IDs begin with "akey_"; list_keys() shows them."""

    code = "key_not_found"


class PolicyNotFoundError(NotFoundError):
    """There is no such policy in this tenant. Policy IDs begin with "kpol_"."""

    code = "policy_not_found"


class ScopeNotFoundError(NotFoundError):
    """There is no such scope here. Scope IDs begin with "kscp_"; list_scopes() shows them."""

    code = "scope_not_found"

    def __init__(self, message: str | None = None, *, names: Iterable[str] = ()) -> None:
        self.names: tuple[str, ...] = tuple(sorted(names))
        """The unknown scope names, sorted; empty when the scope was asked for by ID."""
        if message is None and self.names:
            message = (
                f"Unknown in this tenant: {enumerate_names(self.names)}. "
                "Declare scopes with ensure_scopes() before using them."
            )
        super().__init__(message)


class RotationNotFoundError(NotFoundError):
    """There is no such rotation. Rotation IDs begin with "krot_"."""

    code = "rotation_not_found"


# ---------------------------------------------------------------------------- validation


class InvalidKeyError(KeysmithError):
    """The API key is not valid."""

    code = "invalid_key"


class KeyInactiveError(KeysmithError):
    """The API key is not active."""

    code = "key_inactive"


class KeySuspendedError(KeyInactiveError):
    """The API key is suspended. It works again once reactivated."""

    code = "key_suspended"


class KeyRevokedError(KeyInactiveError):
    """The API key has been revoked, or replaced by a newer secret."""

    code = "key_revoked"


class KeyExpiredError(KeyInactiveError):
    """The API key has expired."""

    code = "key_expired"


class PolicyViolationError(KeysmithError):
    """The key's policy does not allow this."""

    code = "policy_violation"


class IPNotAllowedError(PolicyViolationError):
    """The key's policy does not allow requests from this IP address."""

    code = "ip_not_allowed"


class OriginNotAllowedError(PolicyViolationError):
    """The key's policy does not allow requests from this origin."""

    code = "origin_not_allowed"


class MethodNotAllowedError(PolicyViolationError):
    """The key's policy does not allow this request method."""

    code = "method_not_allowed"


class PathNotAllowedError(PolicyViolationError):
    """The key's policy does not allow this path."""

    code = "path_not_allowed"


class ScopeNotAllowedError(PolicyViolationError):
    """The key's policy does not allow these scopes."""

    code = "scope_not_allowed"

    def __init__(self, message: str | None = None, *, names: Iterable[str] = ()) -> None:
        self.names: tuple[str, ...] = tuple(sorted(names))
        """The scope names outside the policy's `allowed_scopes`, sorted."""
        if message is None and self.names:
            message = f"The key's policy does not allow: {enumerate_names(self.names)}."
        super().__init__(message)


class InsufficientScopeError(KeysmithError):
    """The API key lacks a scope that this request needs."""

    code = "insufficient_scope"

    def __init__(self, message: str | None = None, *, missing: Iterable[str] = ()) -> None:
        self.missing: tuple[str, ...] = tuple(sorted(missing))
        """The required scope names that the key is not granted, sorted."""
        if message is None and self.missing:
            message = f"The API key is not granted: {enumerate_names(self.missing)}."
        super().__init__(message)


class RateLimitedError(KeysmithError):
    """The API key has reached its rate limit."""

    code = "rate_limited"

    policy: Any = None
    """The `PolicyPublic` whose limit it is, where validation has found it."""

    def __init__(self, message: str | None = None, *, retry_after: float = 0.0) -> None:
        self.retry_after = retry_after
        """Seconds until a request can succeed."""
        super().__init__(message)


class QuotaExceededError(KeysmithError):
    """The API key has used up its quota."""

    code = "quota_exceeded"

    def __init__(
        self, message: str | None = None, *, period: str = "", resets_at: datetime | None = None
    ) -> None:
        self.period = period
        """`"daily"` or `"monthly"`."""
        self.resets_at = resets_at
        """When the quota is full again, in UTC."""
        super().__init__(message)


# ---------------------------------------------------------------------------- management


class InvalidStateTransitionError(KeysmithError):
    """The key's state does not allow this."""

    code = "invalid_state_transition"


class PolicyInUseError(KeysmithError):
    """A key still bears this policy. Give those keys another policy, or none, first."""

    code = "policy_in_use"


class ConflictError(KeysmithError):
    """A second object would stand where only one may."""

    code = "conflict"


class RequestRepeatedError(ConflictError):
    """The request was carried out before, and its raw key shown. Rotate the key for another."""

    code = "request_repeated"

    def __init__(self, message: str | None = None, *, key_id: str = "") -> None:
        self.key_id = key_id
        """The ID of the key that the request created or rotated."""
        super().__init__(message)


class RequestMismatchError(KeysmithError):
    """Another request had this idempotency key. Give each request one of its own."""

    code = "request_mismatch"


class ScopeLoopError(ConflictError):
    """A scope cannot lie below itself. Choose a parent that is not one of its descendants."""

    code = "scope_loop"


class TenantMismatchError(KeysmithError):
    """The engine is bound to another tenant. Leave tenant_id and app_id out, or use its own."""

    code = "tenant_mismatch"


# ---------------------------------------------------------------------------- store


class StoreError(KeysmithError):
    """The store could not do what was asked."""

    code = "store_error"


class StoreUnavailableError(StoreError):
    """The database does not answer."""

    code = "store_unavailable"


class StoreReadOnlyError(StoreError):
    """The database is read-only. Make its file and its folder writable for this user."""

    code = "store_read_only"


class StoreFullError(StoreError):
    """The disk is full. Free some space and try again; nothing was changed."""

    code = "store_full"


class StoreCorruptError(StoreError):
    """The file is not a Keysmith database, or it is damaged. Restore it from a backup."""

    code = "store_corrupt"


class SchemaOutdatedError(StoreError):
    """The schema is not the one this release needs. Call store.migrate()."""

    code = "schema_outdated"


def enumerate_names(names: Iterable[str], *, most: int = 10) -> str:
    """Scope names for a message: the first few, and how many more there are.

    What cannot be a scope name is not repeated: it may be long, or a raw key in the wrong place.
    """
    listed = [name if _SHOWABLE.fullmatch(name) else "(not a scope name)" for name in names]
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"
