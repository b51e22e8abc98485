"""Raw keys: how the secret that a customer holds is made, checked, hashed and masked.

Format: `{prefix}_{environment}_{secret}{checksum}`. The secret is 32 random bytes as 43 base62
characters; the checksum is CRC-32 over all before it, as six more. A checksum in the key lets a
mistyped key be refused without a lookup, and lets secret scanners tell a leaked key from noise.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from enum import StrEnum

from keysmith.errors import InvalidKeyError

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_BYTES = 32
SECRET_LENGTH = 43
CHECKSUM_LENGTH = 6
HINT_LENGTH = 4
PREFIX_PATTERN = r"[a-z][a-z0-9]{0,19}"
MAX_RAW_KEY_LENGTH = 512
"""Longer text is refused unread: a key in a foreign format is short, an attack need not be."""


class Environment(StrEnum):
    """What a key is for. It is written into the raw key, so that people can see it."""

    LIVE = "live"
    TEST = "test"
    STAGING = "staging"


_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
"""Base62 two digits at a time: a checksum is computed for every request."""
_BASE = len(_PAIRS)

_BODY, _CLAIMED = slice(None, -CHECKSUM_LENGTH), slice(-CHECKSUM_LENGTH, None)
"""Where the checksum is not, and where it is; made once, as every request takes both."""

_WITHIN = re.compile(rf"{PREFIX_PATTERN}_(?:{'|'.join(Environment)})_[0-9A-Za-z]{{20,}}")
_OUR_FORMAT = re.compile(
    rf"({PREFIX_PATTERN})_({'|'.join(Environment)})_"
    rf"[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)


class KeyGenerator:
    """Makes raw keys: Keysmith's own format, 256 bits of randomness and a checksum.

    Subclass it, and give the engine yours, to mint keys in another format, of at most 512
    characters: whatever is longer is no key for `validate_key`.
    """

    def generate(self, prefix: str, environment: str) -> str:
        """A new raw key that nobody can guess. `prefix` and `environment` are taken as they are."""
        secret = _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), SECRET_LENGTH)
        body = f"{prefix}_{environment}_{secret}"
        return body + checksum(body)


class Hasher:
    """Turns a raw key into what is stored and looked up by: here SHA-256 (FIPS 180-4).

    Raw keys carry 256 bits of randomness, so one fast hash suffices: there is nothing to guess,
    and a slow password hash would only make every request pay for it. Subclass it, and give the
    engine yours, to hash another way; the result is always 64 lower-case hexadecimal characters.
    """

    def hash(self, raw_key: str) -> str:
        """The lower-case hexadecimal SHA-256 of the whole raw key."""
        return hashlib.sha256(raw_key.encode()).hexdigest()


class HmacSha256Hasher(Hasher):
    """HMAC-SHA-256 (RFC 2104) with a pepper that is kept outside the database.

    Without the pepper, somebody who holds the database cannot even test a guess. Losing the
    pepper, or changing it, makes every stored key unusable.
    """

    def __init__(self, pepper: str | bytes) -> None:
        """`pepper`: a secret of at least 16 bytes; shorter ones raise `ValueError`."""
        self.__pepper = pepper.encode() if isinstance(pepper, str) else bytes(pepper)
        del pepper  # an error tracker would show it
        if len(self.__pepper) < 16:
            raise ValueError("A pepper needs at least 16 bytes; secrets.token_bytes(32) makes one.")

    def hash(self, raw_key: str) -> str:
        """The lower-case hexadecimal HMAC of the raw key."""
        return hmac.new(self.__pepper, raw_key.encode(), hashlib.sha256).hexdigest()


def checksum(body: str) -> str:
    """Six base62 characters of CRC-32 over the ASCII text before them."""
    high, low = divmod(zlib.crc32(body.encode()), _BASE)
    return _PAIRS[high // _BASE] + _PAIRS[high % _BASE] + _PAIRS[low]


def check_form(raw_key: object) -> str:
    """Gives the raw key back if it is worth a lookup.

    Raises `InvalidKeyError` for what cannot be a key: not text, empty, overlong, not encodable, or
    in Keysmith's format with a wrong checksum. Text in any other format passes, because imported
    keys have the format of wherever they came from.
    """
    if not isinstance(raw_key, str) or not 0 < len(raw_key) <= MAX_RAW_KEY_LENGTH:
        raise InvalidKeyError
    if raw_key.isascii():
        # The checksum first: a key that is good needs no other look.
        if checksum(raw_key[_BODY]) != raw_key[_CLAIMED] and _OUR_FORMAT.fullmatch(raw_key):
            raise InvalidKeyError
    elif any("\ud800" <= character <= "\udfff" for character in raw_key):
        raise InvalidKeyError
    return raw_key


def hint_of(raw_key: str) -> str:
    """The last four characters: enough for its owner to recognise a key, useless to anyone else."""
    return raw_key[-HINT_LENGTH:]


def mask(raw_key: object) -> str:
    """The raw key as a log may show it: prefix, environment and hint, or only its length.

    Text in another format may be somebody's password in the wrong field, so nothing of it shows.
    """
    if isinstance(raw_key, str) and len(raw_key) <= MAX_RAW_KEY_LENGTH:
        ours = _OUR_FORMAT.fullmatch(raw_key)
        if ours:
            return f"{ours[1]}_{ours[2]}_…{hint_of(raw_key)}"
        return f"…({len(raw_key)} characters)"
    return "…"


def without_raw_keys(text: str) -> str:
    """The text with whatever looks like a raw key of ours masked."""
    return _WITHIN.sub(lambda found: mask(found[0]), text)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
