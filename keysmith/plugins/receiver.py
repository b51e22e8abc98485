"""The receiver of webhooks: requests signed as Standard Webhooks 1.0.0 has it, and its answers.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401  see _get_ready
import hashlib
import hmac
import re
import secrets
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
PRINTABLE = re.compile("[!-~]+")


def new_secret() -> str:
    """A secret of 32 random bytes, as it is shown to people."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, or a problem in its place."""

    status: int = 0
    retry_after: str | None = None
    problem: str = ""

    def __str__(self) -> str:
        return self.problem or f"HTTP {self.status}"

    @property
    def accepted(self) -> bool:
        """Whether the message has arrived."""
        return 200 <= self.status < 300

    def pause(self, now: datetime) -> float | None:
        """The seconds for which the receiver asks to be left alone (RFC 9110, 10.2.3)."""
        if self.retry_after is None:
            return None
        if self.retry_after.isdecimal():
            return float(self.retry_after)
        try:
            return max(0.0, (parsedate_to_datetime(self.retry_after) - now).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None


class Receiver:
    """Who is told, and the secrets shared with them. Its text shows neither path nor query."""

    def __init__(self, url: str, shared: Iterable[str], *, timeout: float) -> None:
        """`timeout` is in seconds. Raises `ValueError` for a URL or a secret that is none."""
        parts = _split(url)
        if parts is None:
            raise ValueError(
                "A webhook needs a URL that begins with https:// or http://, has no user name, and "
                "has all but printable ASCII in percent-encoding."
            )
        self.__url = url
        self.__keys = [_decoded(secret) for secret in shared]
        if not self.__keys:
            raise ValueError("Webhooks need a secret; Webhooks.new_secret() makes one.")
        self._shown = f"{parts.scheme}://{parts.netloc}"
        self._timeout = timeout
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(),
            HTTPHandler(),
            HTTPSHandler(context=ssl.create_default_context() if parts.scheme == "https" else None),
            HTTPErrorProcessor(),
            HTTPDefaultErrorHandler(),  # and no handler of redirects: those are no receipt
        ):
            self._opener.add_handler(handler)
        self._get_ready()

    def __str__(self) -> str:
        return self._shown

    def send(self, id: str, body: bytes, now: datetime) -> Answer:
        """Sends a message, once. Whatever goes wrong is in the answer."""
        timestamp = str(int(now.timestamp()))
        request = Request(  # noqa: S310  the scheme has been checked
            self.__url,
            data=body,
            method="POST",
            headers={
                "Content-Type": "application/json",
                "User-Agent": "keysmith",
                "webhook-id": id,
                "webhook-timestamp": timestamp,
                "webhook-signature": self._signatures(f"{id}.{timestamp}.".encode() + body),
            },
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return Answer(response.status)
        except HTTPError as error:
            with error:
                return Answer(error.code, error.headers.get("Retry-After"))
        except Exception as error:  # noqa: BLE001  nobody else is there to hear of it
            return Answer(problem=_problem(error))

    def _get_ready(self) -> None:
        """Has everything loaded that would be loaded by the first delivery, on its thread.

        A process that is forked meanwhile would inherit the locks of that, and never deliver: those
        on the import of the codec of host names, and on what OpenSSL loads to sign.
        """
        self._signatures(b"")

    def _signatures(self, content: bytes) -> str:
        return " ".join(
            f"v1,{base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()}"
            for key in self.__keys
        )


def _split(url: str) -> SplitResult | None:
    """The parts of a URL that can be sent to; errors of the library would show it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    usable = parts.scheme in {"http", "https"} and parts.hostname and port != 0
    return parts if usable and "@" not in parts.netloc and PRINTABLE.fullmatch(url) else None


def _problem(error: Exception) -> str:
    """What to say of it: the system's errors speak of hosts at most, others show whole requests."""
    cause = error.reason if isinstance(error, URLError) else error
    return repr(cause) if isinstance(cause, OSError) else type(cause).__name__


def _decoded(secret: str) -> bytes:
    text = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if text == secret or len(key) not in KEY_BYTES:
        raise ValueError(
            f"A webhook secret is {PREFIX!r} and 24 to 64 random bytes in base64; "
            "Webhooks.new_secret() makes one."
        )
    return key
