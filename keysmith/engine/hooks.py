"""Plugins: listeners on what happens to keys, policies and scopes."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from keysmith.engine.keepsakes import keepsake
from keysmith.engine.listeners import PATIENCE, Call, Listener, call_hook, finish, wait_for
from keysmith.errors import KeysmithError
from keysmith.models import Key, KeyCreate, KeyPublic, Policy, Rotation, RotationPublic, Scope

if TYPE_CHECKING:
    from keysmith.engine.results import ValidationResult

_Hearer = tuple[Callable[..., None], Listener | None]
"""A plugin's hook, and the thread to call it on; `None` for that of the call."""


class Plugin:
    """Subclass it, override the hooks of interest, and give the engine an instance.

    Hooks run after the commit. Each plugin hears its events one by one, and changes in the order of
    their commits, on a daemon thread of its own, which no call and no other plugin waits for. One
    that raises is logged. One that is 10,000 events behind misses those that follow, until it has
    caught up; both are logged.

    What a hook is given is a copy, and safe to keep.
    """

    inline: ClassVar[bool] = False
    """Whether hooks run in the thread of the call, in the order in which the plugins were given.

    For those that do next to nothing, such as counting: the call waits for them. What several
    threads do is told at once, and in any order.
    """

    def hears(self, hook: str) -> bool:
        """Whether to be told: by default of every hook that is overridden. Asked once a hook."""
        return getattr(type(self), hook) is not getattr(Plugin, hook)

    def on_key_created(self, key: Key) -> None:
        """A key was created or imported."""

    def on_key_create_failed(self, data: KeyCreate, error: Exception) -> None:
        """A key was asked for and refused. `data` has the tenant of who asked."""

    def on_key_updated(self, key: Key) -> None:
        """A key's name, description, metadata, policy or expiry was changed."""

    def on_key_scopes_changed(self, key: Key, scopes: tuple[str, ...]) -> None:
        """A key holds other scopes than before: these, by name."""

    def on_key_deleted(self, key: Key) -> None:
        """A key was removed, with its history; this is what it was."""

    def on_key_validated(self, result: ValidationResult) -> None:
        """A raw key was found valid."""

    def on_key_validation_failed(self, masked_key: str, error: KeysmithError) -> None:
        """A raw key was refused. `masked_key` shows its prefix and hint at most."""

    def on_validation_timed(self, outcome: str, seconds: float) -> None:
        """A validation took this long. `outcome` is "ok", or the error's code."""

    def on_key_rotated(self, key: Key, rotation: Rotation) -> None:
        """A key has a new secret."""

    def on_rotated_key_reused(self, key: KeyPublic, rotation: RotationPublic) -> None:
        """A secret was used after its grace period: a forgotten client, or a thief."""

    def on_grace_ended(self, key: Key, rotation: Rotation) -> None:
        """A grace period has ended, as the clean-up noticed, or the first use after it."""

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

    def on_scope_created(self, scope: Scope) -> None:
        """A scope was created or declared."""

    def on_scope_updated(self, scope: Scope) -> None:
        """A scope's description, metadata or parent was changed: keys may be granted more now."""

    def on_scope_deleted(self, scope: Scope) -> None:
        """A scope was deleted; this is what it was."""

    def on_shutdown(self) -> None:
        """The engine closes: write what is still buffered."""


HOOKS = tuple(name for name in vars(Plugin) if name.startswith("on_"))


class Hooks:
    """Tells plugins of the hooks that they hear; the others cost a dictionary lookup."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self._heard: dict[str, tuple[_Hearer, ...]] = {}
        self._listeners: list[Listener] = []
        for plugin in plugins:
            self._add(plugin)
        # The threads of an engine that nobody closed end with it.
        weakref.finalize(self, _dismiss, self._listeners).atexit = False

    def hears(self, name: str) -> bool:
        """Whether any plugin hears the hook of this name."""
        return name in self._heard

    def fire(self, name: str, *arguments: Any) -> None:
        """Tells every plugin that hears the hook of this name, each with copies of its own."""
        self.tell(name, *arguments)
        self.call(name, *arguments)

    def tell(self, name: str, *arguments: Any) -> None:
        """Tells those of them that have a thread of their own, and returns at once."""
        for hook, listener in self._heard.get(name, ()):
            if listener is not None:
                listener.tell(name, hook, _kept(arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Tells those of them that are inline."""
        for hook, listener in self._heard.get(name, ()):
            if listener is None:
                call_hook(name, hook, _kept(arguments))

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Waits until all that was fired before has been delivered; whether it has in time.

        `timeout` is in seconds, and for all plugins together.
        """
        return wait_for(self._listeners, timeout)

    def close(self, timeout: float = PATIENCE) -> None:
        """Delivers what is waiting, fires `on_shutdown` last, and ends the threads.

        Waits for at most `timeout` seconds; a plugin that takes longer is logged, and left alone.
        What is fired after this is heard by nobody.
        """
        heard, self._heard = self._heard, {}
        last: dict[Listener, Call | None] = dict.fromkeys(self._listeners)
        for hook, listener in heard.get("on_shutdown", ()):
            if listener is None:
                call_hook("on_shutdown", hook, ())
            else:
                last[listener] = ("on_shutdown", hook, ())
        finish(last, timeout)
        self._listeners.clear()

    def _add(self, plugin: Plugin) -> None:
        if not isinstance(plugin, Plugin):
            raise TypeError(
                f"Plugins are instances of subclasses of keysmith.Plugin; this is {plugin!r}."
            )
        heard = [name for name in HOOKS if plugin.hears(name)]
        for name in heard:
            if inspect.iscoroutinefunction(getattr(plugin, name)):
                raise TypeError(
                    f"{type(plugin).__name__}.{name} is a coroutine function, which no thread "
                    "would await. Make it a plain function."
                )
        listener = None
        if heard and not plugin.inline:
            listener = Listener(type(plugin).__name__)
            self._listeners.append(listener)
        for name in heard:
            hearers = self._heard.get(name, ())
            self._heard[name] = (*hearers, (getattr(plugin, name), listener))


def _kept(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([keepsake(argument) for argument in arguments])


def _dismiss(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.stop(None)
