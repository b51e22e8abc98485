"""Where a request comes from: the peer of the socket, or what trusted proxies say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter
from starlette.types import Scope

from keysmith.engine.rules import Networks, parse_address
from keysmith.engine.scope_names import name_list
from keysmith.fastapi.credentials import header_values
from keysmith.models.policies import Network

MAX_HEADER_LENGTH = 8192

_networks: TypeAdapter[list[str]] = TypeAdapter(list[Network])

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rf"""\s*(?:({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*")\s*)?([;,]|$)""")
"""A pair of the `Forwarded` header, perhaps none, and what follows it (RFC 7239, section 4)."""

_NODE = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+)(?::\d{1,5})?|([0-9A-Fa-f:.]+)")
"""An address, with or without a port, IPv6 in brackets or bare."""

Hops = Sequence[str | None]
"""Addresses as a header lists them, from the client on; `None` for what is no address."""


class ClientAddress:
    """Tells the address that a request comes from.

    That is the peer's. Only where the peer is a trusted proxy is it the nearest hop that is none,
    as `Forwarded` (RFC 7239) or `X-Forwarded-For` has it: what stands further left, anybody may
    have written. Where the nearest hop cannot be told, or the two headers tell different ones,
    there is no address, and a policy with `allowed_ips` refuses the request.
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        """Addresses and networks of proxies; a wrong one raises pydantic's `ValidationError`."""
        networks = _networks.validate_python(name_list(trusted_proxies))
        self._trusted = Networks(networks) if networks else None

    def __call__(self, scope: Scope) -> str | None:
        """The address, by the ASGI scope; `None` where there is none that can be trusted."""
        client = scope.get("client")
        peer: str | None = client[0] if client else None
        if self._trusted is None or peer not in self._trusted:
            return peer
        found = {
            self._nearest(read(",".join(values)))
            for name, read in ((b"forwarded", _forwarded), (b"x-forwarded-for", _forwarded_for))
            if (values := header_values(scope, name))
        }
        if not found:
            return peer
        return found.pop() if len(found) == 1 else None

    def _nearest(self, hops: Hops) -> str | None:
        """The last hop that is no trusted proxy; the first of all if all are."""
        untrusted = (
            hop for hop in reversed(hops) if hop is None or hop not in (self._trusted or ())
        )
        return next(untrusted, hops[0] if hops else None)


def _forwarded_for(value: str) -> Hops:
    if len(value) > MAX_HEADER_LENGTH:
        return [None]
    return [_address(part.strip()) for part in value.split(",") if part.strip()]


def _forwarded(value: str) -> Hops:
    if len(value) > MAX_HEADER_LENGTH:
        return [None]
    hops: list[str | None] = []
    element: dict[str, str] = {}
    position = 0
    while position < len(value):
        pair = _PAIR.match(value, position)
        if pair is None or (pair[1] and pair[1].lower() in element):
            return [None]
        if pair[1]:
            element[pair[1].lower()] = re.sub(r"\\(.)", r"\1", pair[2].strip('"'))
        position = pair.end()
        if pair[3] != ";" or position == len(value):
            if element:
                hops.append(_address(element.get("for", "")))
            element = {}
    return hops


def _address(node: str) -> str | None:
    parts = _NODE.fullmatch(node)
    address = parse_address(next(filter(None, parts.groups()))) if parts else None
    return None if address is None else str(address)
