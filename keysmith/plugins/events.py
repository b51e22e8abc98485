"""Events: what any hook has to tell, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from keysmith.engine import Plugin, ValidationResult
from keysmith.errors import KeysmithError
from keysmith.models import (
    Key,
    KeyCreate,
    KeyPublic,
    Policy,
    PolicyPublic,
    Rotation,
    RotationPublic,
    RotationReason,
    Scope,
    ScopePublic,
)
from keysmith.raw_keys import without_raw_keys

MAX_REASON = 1000
"""Characters of a reason that are passed on; it is free text."""

EVENT_TYPES = {
    "on_key_created": "key.created",
    "on_key_create_failed": "key.create_failed",
    "on_key_updated": "key.updated",
    "on_key_scopes_changed": "key.scopes_changed",
    "on_key_deleted": "key.deleted",
    "on_key_validated": "key.validated",
    "on_key_validation_failed": "key.validation_failed",
    "on_key_rotated": "key.rotated",
    "on_rotated_key_reused": "key.reused",
    "on_grace_ended": "key.grace_ended",
    "on_key_revoked": "key.revoked",
    "on_key_suspended": "key.suspended",
    "on_key_reactivated": "key.reactivated",
    "on_key_expired": "key.expired",
    "on_key_rate_limited": "key.rate_limited",
    "on_key_quota_exceeded": "key.quota_exceeded",
    "on_policy_created": "policy.created",
    "on_policy_updated": "policy.updated",
    "on_policy_deleted": "policy.deleted",
    "on_scope_created": "scope.created",
    "on_scope_updated": "scope.updated",
    "on_scope_deleted": "scope.deleted",
}
"""The type of event that each hook tells of."""

VALIDATIONS = frozenset({"key.validated", "key.validation_failed"})
"""The types that come with every request, and that a stranger can cause."""


REPEATED = frozenset({"key.reused", "key.rate_limited", "key.quota_exceeded"})
"""The types that come with every request of a key, for as long as it is refused."""


class Severity(StrEnum):
    """How much an event matters to whoever watches."""

    INFO = "info"
    WARNING = "warning"
    """Something was stopped or refused."""
    ERROR = "error"
    """A secret may be in the wrong hands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened. It bears neither a raw key nor a hash."""

    type: str
    """What has happened: one of the values of `EVENT_TYPES`, such as `"key.revoked"`."""
    severity: Severity = Severity.INFO
    refused: bool = False
    """Whether somebody asked for something, and was refused."""
    key: KeyPublic | None = None
    masked_key: str | None = None
    """Prefix, environment and hint of a raw key that was refused."""
    key_id: str | None = None
    """Whose raw key that was, where it is known; otherwise see `key`."""
    scopes: tuple[str, ...] | None = None
    """The scopes that the key holds now, where they have changed."""
    rotation: RotationPublic | None = None
    policy: PolicyPublic | None = None
    policy_id: str | None = None
    scope: ScopePublic | None = None
    tenant_id: str | None = None
    """`None` where it is not known: of an unknown raw key, of a policy that is gone."""
    who: str | None = None
    """Who asked for it, as far as `created_by` and `rotated_by` tell."""
    reason: str | None = None
    """Why, in words for people."""
    code: str | None = None
    """The code of the error, where something was refused."""

    @property
    def about(self) -> str | None:
        """The ID of the key, policy or scope; `None` where it is not known."""
        if self.key is not None:
            return self.key.id
        return self.key_id or self.policy_id or (self.scope.id if self.scope else None)

    def data(self) -> dict[str, Any]:
        """Everything about what has happened, as JSON takes it; what is not known is left out."""
        entities = {
            "key": self.key,
            "rotation": self.rotation,
            "policy": self.policy,
            "scope": self.scope,
        }
        return {
            name: entity.model_dump(mode="json", by_alias=True)
            for name, entity in entities.items()
            if entity is not None
        } | {name: value for name in _PLAIN if (value := getattr(self, name)) is not None}


_PLAIN = ("scopes", "masked_key", "key_id", "policy_id", "tenant_id", "who", "reason", "code")


class EventPlugin(Plugin):
    """A plugin that hears of everything in one place. Subclass it, and override `on_event`."""

    def on_event(self, event: Event) -> None:
        """Something has happened. Called by all hooks but those of shutdown and time taken."""

    def hears(self, hook: str) -> bool:
        """Every event whose type is `wanted`, and what else is overridden."""
        if hook in EVENT_TYPES:
            return self.wants(EVENT_TYPES[hook])
        return super().hears(hook)

    def wants(self, type: str) -> bool:  # noqa: ARG002
        """Whether to be told of events of this type; by default of all. Asked once a type."""
        return True

    # ------------------------------------------------------------------ hooks

    def on_key_created(self, key: Key) -> None:
        """`key.created`."""
        self.on_event(_of_key("key.created", key, who=key.created_by or None))

    def on_key_create_failed(self, data: KeyCreate, error: Exception) -> None:
        """`key.create_failed`."""
        self.on_event(
            Event(
                type="key.create_failed",
                severity=Severity.WARNING,
                refused=True,
                tenant_id=data.tenant_id,
                who=data.created_by or None,
                reason=_bounded(str(error)),
                code=error.code if isinstance(error, KeysmithError) else "invalid_input",
            )
        )

    def on_key_updated(self, key: Key) -> None:
        """`key.updated`."""
        self.on_event(_of_key("key.updated", key))

    def on_key_scopes_changed(self, key: Key, scopes: tuple[str, ...]) -> None:
        """`key.scopes_changed`."""
        held = ", ".join(scopes) or "none"
        self.on_event(
            _of_key("key.scopes_changed", key, scopes=scopes, reason=_bounded(f"It holds: {held}"))
        )

    def on_key_deleted(self, key: Key) -> None:
        """`key.deleted`."""
        self.on_event(_of_key("key.deleted", key, severity=Severity.WARNING))

    def on_key_validated(self, result: ValidationResult) -> None:
        """`key.validated`."""
        self.on_event(Event(type="key.validated", key=result.key, tenant_id=result.key.tenant_id))

    def on_key_validation_failed(self, masked_key: str, error: KeysmithError) -> None:
        """`key.validation_failed`."""
        self.on_event(
            Event(
                type="key.validation_failed",
                severity=Severity.WARNING,
                refused=True,
                masked_key=masked_key,
                key_id=error.key_id or None,
                tenant_id=error.tenant_id or None,
                reason=_bounded(str(error)),
                code=error.code,
            )
        )

    def on_key_rotated(self, key: Key, rotation: Rotation) -> None:
        """`key.rotated`."""
        compromised = rotation.reason is RotationReason.COMPROMISE
        self.on_event(
            _of_key(
                "key.rotated",
                key,
                severity=Severity.ERROR if compromised else Severity.INFO,
                rotation=RotationPublic.model_validate(rotation),
                who=rotation.rotated_by or None,
                reason=rotation.reason.value,
            )
        )

    def on_rotated_key_reused(self, key: KeyPublic, rotation: RotationPublic) -> None:
        """`key.reused`."""
        self.on_event(
            _of_key(
                "key.reused",
                key,
                severity=Severity.ERROR,
                refused=True,
                rotation=RotationPublic.model_validate(rotation),
                reason="A secret was used after its grace period.",
                code="key_revoked",
            )
        )

    def on_grace_ended(self, key: Key, rotation: Rotation) -> None:
        """`key.grace_ended`."""
        self.on_event(
            _of_key("key.grace_ended", key, rotation=RotationPublic.model_validate(rotation))
        )

    def on_key_revoked(self, key: Key, reason: str) -> None:
        """`key.revoked`."""
        self.on_event(
            _of_key("key.revoked", key, severity=Severity.WARNING, reason=_bounded(reason) or None)
        )

    def on_key_suspended(self, key: Key) -> None:
        """`key.suspended`."""
        self.on_event(_of_key("key.suspended", key, severity=Severity.WARNING))

    def on_key_reactivated(self, key: Key) -> None:
        """`key.reactivated`."""
        self.on_event(_of_key("key.reactivated", key))

    def on_key_expired(self, key: Key) -> None:
        """`key.expired`."""
        self.on_event(_of_key("key.expired", key))

    def on_key_rate_limited(self, key: KeyPublic) -> None:
        """`key.rate_limited`."""
        self.on_event(_limited("key.rate_limited", key, "rate_limited"))

    def on_key_quota_exceeded(self, key: KeyPublic) -> None:
        """`key.quota_exceeded`."""
        self.on_event(_limited("key.quota_exceeded", key, "quota_exceeded"))

    def on_policy_created(self, policy: Policy) -> None:
        """`policy.created`."""
        self.on_event(_of_policy("policy.created", policy))

    def on_policy_updated(self, policy: Policy) -> None:
        """`policy.updated`."""
        self.on_event(_of_policy("policy.updated", policy))

    def on_policy_deleted(self, policy_id: str) -> None:
        """`policy.deleted`."""
        self.on_event(Event(type="policy.deleted", severity=Severity.WARNING, policy_id=policy_id))

    def on_scope_created(self, scope: Scope) -> None:
        """`scope.created`."""
        self.on_event(_of_scope("scope.created", scope))

    def on_scope_updated(self, scope: Scope) -> None:
        """`scope.updated`."""
        self.on_event(_of_scope("scope.updated", scope))

    def on_scope_deleted(self, scope: Scope) -> None:
        """`scope.deleted`."""
        self.on_event(_of_scope("scope.deleted", scope, severity=Severity.WARNING))


def _of_key(type: str, key: Key | KeyPublic, **fields: Any) -> Event:
    return Event(type=type, key=KeyPublic.model_validate(key), tenant_id=key.tenant_id, **fields)


def _limited(type: str, key: Key | KeyPublic, code: str) -> Event:
    return _of_key(type, key, severity=Severity.WARNING, refused=True, code=code)


def _of_policy(type: str, policy: Policy) -> Event:
    return Event(
        type=type,
        policy=PolicyPublic.model_validate(policy),
        policy_id=policy.id,
        tenant_id=policy.tenant_id,
    )


def _of_scope(type: str, scope: Scope, **fields: Any) -> Event:
    below = "no other" if scope.parent is None else scope.parent
    return Event(
        type=type,
        scope=ScopePublic.model_validate(scope),
        tenant_id=scope.tenant_id,
        reason=f"It lies below: {below}",
        **fields,
    )


def _bounded(text: str) -> str:
    text = without_raw_keys(text)
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
