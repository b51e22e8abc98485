"""What to install where a library is missing that only a part of the package needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(name: str) -> Iterator[None]:
    """Names this extra to whoever imports, within the block, what is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "keysmith").partition(".")[0]
        if missing == "keysmith":
            raise
        raise ModuleNotFoundError(
            f"{missing} comes with the extra `{name}`: install Keysmith with it.", name=missing
        ) from None
