"""Secrets, looked for in part, too, and in all the ways in which bytes are written."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator

SHORT, LONG = 8, 16
"""Characters that are no coincidence: of text and base64, and of hexadecimal, which holds less."""


class Search:
    """Finds every run of a secret that is `2 * SHORT - 1` characters long: such a run has a piece
    of `SHORT` in it that begins where a cut is, if the content is cut into pieces of that length.
    """

    def __init__(self, *secrets: tuple[str, Iterable[bytes]]) -> None:
        """`secrets`: what they are, and they themselves."""
        self._kinds = {piece: what for what, each in secrets for piece in _pieces(each)}

    def refuse(self, where: str, content: bytes) -> None:
        """Raises `AssertionError` if a secret is in it, with what is before that, to find it by."""
        for size in (SHORT, LONG):
            for at in range(0, len(content), size):
                what = self._kinds.get(content[at : at + size])
                if what is not None:
                    before = content[max(0, at - 2_000) : max(0, at - size)]
                    raise AssertionError(f"{what} is in {where}: {before.decode(errors='replace')}")


def _pieces(secrets: Iterable[bytes]) -> Iterator[bytes]:
    for secret in secrets:
        for size, text in _writings(secret):
            yield from (text[at : at + size] for at in range(len(text) - size + 1))


def _writings(secret: bytes) -> Iterator[tuple[int, bytes]]:
    yield SHORT, secret
    yield LONG, secret.hex().encode()
    yield LONG, repr(secret)[2:-1].encode()
    for skipped in range(3):  # it takes three at a time, from wherever the text begins
        yield SHORT, b64encode(secret[skipped:])
