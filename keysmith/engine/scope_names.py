"""Scope names: what lies below what, by name alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def name_list(names: Iterable[str]) -> list[str]:
    """The names; a single string is one name, not a sequence of letters."""
    return [names] if isinstance(names, str) else list(names)


def covers(granted: Collection[str], name: str) -> bool:
    """Whether one of the granted scopes is this one or stands above it by name."""
    while name not in granted:
        name, colon, _ = name.rpartition(":")
        if not colon:
            return False
    return True
