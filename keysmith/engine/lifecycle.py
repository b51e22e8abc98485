"""The states of a key: which way leads where, and when a key expires by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from keysmith.engine.context import Context
from keysmith.errors import InvalidStateTransitionError, NotFoundError
from keysmith.models import Key, KeyState, Rotation
from keysmith.stores.base import Store

AT_ONCE = 200
"""Rows that a clean-up changes in one transaction: other writers wait for some milliseconds."""

_WAYS_TO = {
    KeyState.ACTIVE: {KeyState.SUSPENDED},
    KeyState.SUSPENDED: {KeyState.ACTIVE},
    KeyState.REVOKED: {KeyState.ACTIVE, KeyState.SUSPENDED},
}


def state_at(key: Key, now: datetime) -> KeyState:
    """The key's state, whether or not anybody has written down yet that it has expired."""
    return KeyState.EXPIRED if not key.state.final and key.expired_at(now) else key.state


def refuse_final(key: Key, now: datetime, deed: str) -> None:
    """Raises `InvalidStateTransitionError` for a revoked or expired key."""
    state = state_at(key, now)
    if state.final:
        raise InvalidStateTransitionError(
            f"The key is {state.value}, which is final: it cannot be {deed}. Create a new key."
        )


def write_all(store: Store, write: Callable[[str], bool], found: Iterable[Key | Rotation]) -> int:
    """Writes down what was found, in one transaction; tells how many nobody else had."""
    with store.transaction():
        return sum(_written(write, each.id) for each in found)


def _written(write: Callable[[str], bool], entity_id: str) -> bool:
    try:
        return write(entity_id)
    except NotFoundError:  # deleted in between
        return False


@contextmanager
def ended_for_good(context: Context, key_id: str) -> Iterator[None]:
    """Writes down that the key has expired, if a change is refused for that: it was called final.

    Else it would be alive again, should the clock be put back. A transaction of the host's that
    the refusal undoes takes this with it.
    """
    try:
        yield
    except InvalidStateTransitionError:
        Lifecycle(context).expire(key_id)
        raise


class Lifecycle:
    """Revoke, suspend, reactivate and expire."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def revoke(self, key_id: str, reason: str) -> Key:
        return self._move(key_id, KeyState.REVOKED, "revoked", reason)

    def suspend(self, key_id: str) -> Key:
        return self._move(key_id, KeyState.SUSPENDED, "suspended")

    def reactivate(self, key_id: str) -> Key:
        return self._move(key_id, KeyState.ACTIVE, "reactivated")

    def expire(self, key_id: str) -> bool:
        """Writes down that the key has expired; tells whether nobody else had already."""
        with self._context.store.transaction():
            now = self._context.now()
            key = self._context.key(key_id, for_update=True)
            if state_at(key, now) is key.state:
                return False
            key = self._context.store.keys.update_state(key_id, KeyState.EXPIRED, now=now)
            self._context.announce("on_key_expired", key)
            return True

    def expire_all(self) -> int:
        """Writes down every expiry that has passed, and tells how many there were."""
        store, whose = self._context.store, self._context.tenancy.filters()
        expired = 0
        # Looked for outside of the transaction: it takes long where many have expired long ago.
        while due := store.keys.list_expired(self._context.now(), limit=AT_ONCE, **whose):
            expired += write_all(store, self.expire, due)
        return expired

    def _move(self, key_id: str, to: KeyState, deed: str, *told: str) -> Key:
        with ended_for_good(self._context, key_id), self._context.store.transaction():
            now = self._context.now()
            key = self._context.key(key_id, for_update=True)
            refuse_final(key, now, deed)
            if key.state not in _WAYS_TO[to]:
                raise InvalidStateTransitionError(
                    f"The key is {key.state.value} and cannot be {deed}."
                )
            key = self._context.store.keys.update_state(key_id, to, now=now)
            self._context.announce(f"on_key_{deed}", key, *told)
            return key
