"""Plugins: listeners on what happens to keys and policies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from keysmith.errors import KeysmithError
from keysmith.models import Key, KeyCreate, KeyPublic, Policy, Rotation, RotationPublic

if TYPE_CHECKING:
    from keysmith.engine.results import ValidationResult

logger = logging.getLogger(__name__)


class Plugin:
    """Subclass it and override the hooks of interest.

    Hooks run after the commit, in the thread of the call and in the order in which the plugins were
    given. One that raises is logged, and harms neither the call nor the other plugins.
    """

    def on_key_created(self, key: Key) -> None:
        """A key was created or imported."""

    def on_key_create_failed(self, data: KeyCreate, error: Exception) -> None:
        """A key was asked for and refused."""

    def on_key_validated(self, result: ValidationResult) -> None:
        """A raw key was found valid."""

    def on_key_validation_failed(self, masked_key: str, error: KeysmithError) -> None:
        """A raw key was refused. `masked_key` shows its prefix and hint at most."""

    def on_key_rotated(self, key: Key, rotation: Rotation) -> None:
        """A key has a new secret."""

    def on_rotated_key_reused(self, key: KeyPublic, rotation: RotationPublic) -> None:
        """A secret was used after its grace period: a forgotten client, or a thief."""

    def on_grace_ended(self, key: Key, rotation: Rotation) -> None:
        """A grace period has ended, as the clean-up noticed."""

    def on_key_revoked(self, key: Key, reason: str) -> None:
        """A key was revoked."""

    def on_key_suspended(self, key: Key) -> None:
        """A key was suspended."""

    def on_key_reactivated(self, key: Key) -> None:
        """A suspended key works again."""

    def on_key_expired(self, key: Key) -> None:
        """A key's state became `expired`."""

    def on_key_rate_limited(self, key: KeyPublic) -> None:
        """A key reached its rate limit."""

    def on_key_quota_exceeded(self, key: KeyPublic) -> None:
        """A key used up its quota."""

    def on_policy_created(self, policy: Policy) -> None:
        """A policy was created."""

    def on_policy_updated(self, policy: Policy) -> None:
        """A policy was changed."""

    def on_policy_deleted(self, policy_id: str) -> None:
        """A policy was deleted."""

    def on_shutdown(self) -> None:
        """The engine closes: write what is still buffered."""


HOOKS = tuple(name for name in vars(Plugin) if name.startswith("on_"))


class Hooks:
    """Calls the hooks that plugins override; the others cost a dictionary lookup."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        plugins = tuple(plugins)
        self._listeners: dict[str, tuple[Callable[..., None], ...]] = {}
        for name in HOOKS:
            listeners = tuple(
                getattr(plugin, name)
                for plugin in plugins
                if getattr(type(plugin), name, None) is not getattr(Plugin, name)
            )
            if listeners:
                self._listeners[name] = listeners

    def fire(self, name: str, *arguments: Any) -> None:
        """Calls the hook of this name in every plugin that overrides it."""
        for listener in self._listeners.get(name, ()):
            try:
                listener(*arguments)
            except Exception:
                logger.exception("A plugin failed in %s", name)
