"""Identifiers: TypeIDs, that is, a prefix naming the kind and a UUIDv7 that sorts by creation.

TypeID: https://github.com/jetify-com/typeid. UUIDv7: RFC 9562, section 5.7.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from threading import Lock

from typeid.base32 import encode

from keysmith.forks import renew_after_fork


class IdPrefix(StrEnum):
    """The prefix that tells what an ID identifies."""

    KEY = "akey"
    POLICY = "kpol"
    SCOPE = "kscp"
    USAGE = "kusg"
    ROTATION = "krot"


ID_LENGTH = 31
"""Characters in an ID: four of prefix, an underscore, and 26 of base32."""

ID_PATTERN = r"[0-7][0-9a-hjkmnp-tv-z]{25}"
"""What follows the underscore: 128 bits in Crockford's base32."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_VERSION = 0x7 << 76 | 0b10 << 62
"""The bits that say which version of which variant of UUIDs it is."""
_LOW_BITS = (1 << 62) - 1
_SUFFIX = re.compile(ID_PATTERN)


class _Sequence:
    """UUIDv7 values of one kind that never step back within one millisecond.

    The time comes from the caller, so that IDs follow the engine's clock. Within a millisecond the
    74 random bits are counted up (RFC 9562, section 6.2, method 2): newest first stays true also
    for keys created under a clock that stands still.
    """

    def __init__(self) -> None:
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """Begins anew in a forked child: to count on where the parent does gives the same IDs."""
        self._lock = Lock()
        self._millisecond = -1
        self._random = 0

    def next(self, at: datetime) -> int:
        millisecond = (at - _EPOCH) // _MILLISECOND
        with self._lock:
            if millisecond == self._millisecond:
                self._random += 1
            else:
                self._millisecond = millisecond
                self._random = secrets.randbits(73)
            random = self._random
        return (millisecond << 80) | _VERSION | (random >> 62 << 64) | (random & _LOW_BITS)


_sequences = {prefix: _Sequence() for prefix in IdPrefix}
"""Of each kind its own: usage gets IDs of earlier moments, whenever it is written."""


def new_id(prefix: IdPrefix, at: datetime) -> str:
    """A new ID of that kind, created at the moment `at`."""
    return prefix + "_" + encode(_sequences[prefix].next(at).to_bytes(16, "big"))


def is_id(prefix: IdPrefix, text: object) -> bool:
    """Whether `text` has the form of an ID of that kind (not whether the object exists)."""
    return (
        isinstance(text, str)
        and len(text) == ID_LENGTH
        and text.startswith(f"{prefix.value}_")
        and _SUFFIX.fullmatch(text, len(prefix.value) + 1) is not None
    )
