"""Candidates: what is known of a secret, made ready for judging, and remembered while it is so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from keysmith.engine.limits import Limits
from keysmith.engine.results import ValidationResult
from keysmith.engine.rules import Rules
from keysmith.engine.scope_names import covers, name_list
from keysmith.errors import InsufficientScopeError, InvalidKeyError, KeyNotFoundError
from keysmith.models import KeyState
from keysmith.stores.base import Credential, CredentialRepository

DEFAULT_CACHE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """How often validation was answered from memory."""

    hits: int
    misses: int
    """Validations that read the store: new or unknown keys, and all after a change."""
    entries: int
    """Secrets that are remembered."""


class Candidate:
    """A key as one of its secrets names it, of one moment."""

    __slots__ = (
        "_credential",
        "_scopes",
        "active",
        "expires_at",
        "fresh",
        "grace_ends",
        "grace_over",
        "key",
        "limits",
        "result",
        "rotation",
        "rules",
        "timeless",
        "version",
    )

    def __init__(self, credential: Credential, version: int | None) -> None:
        self._credential = credential
        self.version = version
        self.fresh = True
        """Whether no validation was answered with it yet: the first that is had to read."""
        self.key = credential.key
        self.rotation = credential.rotation
        self.active = self.key.state is KeyState.ACTIVE
        self.expires_at = self.key.expires_at
        self.grace_ends = None if self.rotation is None else self.rotation.grace_ends
        self.grace_over = credential.grace_closed or (
            self.rotation is not None and self.rotation.cut_short
        )
        """Whether the outgoing secret's grace has ended for good, should the clock be put back."""
        self.rules = Rules.of(credential.policy)
        self.limits = Limits.of(credential.policy)
        self.timeless = self.limits is None and self.expires_at is self.grace_ends is None
        """Whether nothing about it depends on when it is used, or how often."""
        granted, allowed = credential.granted, credential.allowed
        if allowed is not None:
            granted = frozenset(name for name in granted if covers(allowed, name))
        self._scopes = granted
        self.result = ValidationResult(
            key=self.key,
            scopes=tuple(sorted(granted)),
            policy=credential.policy,
            rotated=self.rotation is not None,
            grace_ends=self.grace_ends,
        )
        """What a valid request gets, but for the state of its rate limit."""

    def require(self, scopes: Iterable[str]) -> None:
        """Raises `InsufficientScopeError` unless all of these scopes are granted."""
        names = name_list(scopes)
        if not self._scopes.issuperset(names):
            missing = [name for name in names if not self._grants(name)]
            if missing:
                raise InsufficientScopeError(missing=missing)

    def _grants(self, name: str) -> bool:
        """Whether a scope is granted that may be declared nowhere, but lies below one by name."""
        allowed = self._credential.allowed
        return covers(self._credential.granted, name) and (allowed is None or covers(allowed, name))


AtOnce = Callable[[Callable[[str], Candidate], str], Candidate | None]
"""See `CredentialRepository`."""


class Candidates:
    """Finds the candidate for a secret: in memory, as long as the store has not changed since."""

    def __init__(self, credentials: CredentialRepository, size: int) -> None:
        """`size`: how many secrets are remembered at most; 0 for none."""
        self._credentials = credentials
        self._version = credentials.version
        self._at_once: AtOnce | None = getattr(credentials, "at_once", None)
        self._size = max(0, size)
        self._known: dict[str, Candidate] = {}
        self.hits = 0
        self.misses = 0

    def find(self, key_hash: str) -> Candidate:
        """The candidate for the secret with that hash; else raises `InvalidKeyError`.

        What it answers is to be `count`ed.
        """
        # Before the row is read: what changes in between makes the candidate old, never wrong.
        version, known = self._version(), self._known.get(key_hash)
        if known is not None and known.version == version and version is not None:
            return known
        try:
            candidate = Candidate(self._credentials.find(key_hash), version)
        except KeyNotFoundError:
            self._known.pop(key_hash, None)
            self.misses += 1
            raise InvalidKeyError from None
        if version is not None and self._size:
            self._remember(key_hash, candidate)
        return candidate

    def find_at_once(self, key_hash: str) -> Candidate | None:
        """As `find`; `None` where the secret was not found before, or has to be waited for."""
        if key_hash not in self._known:
            return None
        return self.find(key_hash) if self._at_once is None else self._at_once(self.find, key_hash)

    def count(self, candidate: Candidate) -> None:
        """Counts an answer, when it is given: one that has to wait is looked for twice."""
        if candidate.fresh:
            candidate.fresh = False
            self.misses += 1
        else:
            self.hits += 1

    def statistics(self) -> CacheStatistics:
        """Hits and misses since the engine was made."""
        return CacheStatistics(self.hits, self.misses, len(self._known))

    def _remember(self, key_hash: str, candidate: Candidate) -> None:
        known = self._known
        excess = len(known) - self._size
        if excess >= 0 and key_hash not in known:
            for oldest in list(known)[: excess + self._size // 8 + 1]:
                known.pop(oldest, None)
        known[key_hash] = candidate
