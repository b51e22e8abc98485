"""Fork: what a child process must not share with the parent that it was made from.

A lock that another thread held at that moment is never released in the child, and an open database
or file would be one for two processes. What has such things renews them in the child.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """What has locks, connections or threads."""

    def renew(self) -> None:
        """Gives up what the parent still uses, in a child that has just been forked."""


_renewables: WeakSet[Renewable] = WeakSet()


def renew_after_fork(renewable: Renewable) -> None:
    """Lets `renewable.renew()` be called in every child that is forked while it lives."""
    _renewables.add(renewable)


def _renew_all() -> None:
    for renewable in list(_renewables):
        renewable.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
