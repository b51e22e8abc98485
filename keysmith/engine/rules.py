"""What a policy says about where a request may come from and what it may ask for."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from keysmith.errors import (
    IPNotAllowedError,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
)
from keysmith.models import Policy
from keysmith.models.policies import normal_origin

MAX_ADDRESS_LENGTH = 64
MAX_ORIGIN_LENGTH = 512
MAX_PATH_LENGTH = 8192

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Request(NamedTuple):
    """What a request says of itself; `None` where it does not say."""

    ip: str | None
    origin: str | None
    method: str | None
    path: str | None


def check_request(policy: Policy, request: Request) -> None:
    """Raises the `PolicyViolationError` of the first rule that the request breaks.

    An empty list allows all. With a list, a request that does not say is refused.
    """
    if policy.allowed_ips and not _ip_allowed(request.ip, policy.allowed_ips):
        raise IPNotAllowedError
    if policy.allowed_origins and not _origin_allowed(request.origin, policy.allowed_origins):
        raise OriginNotAllowedError
    if policy.allowed_methods and not _method_allowed(request.method, policy.allowed_methods):
        raise MethodNotAllowedError
    if policy.allowed_paths and not _path_allowed(request.path, policy.allowed_paths):
        raise PathNotAllowedError


def _ip_allowed(ip: str | None, networks: Sequence[str]) -> bool:
    address = parse_address(ip)
    return address is not None and any(address in _network(network) for network in networks)


def parse_address(ip: str | None) -> Address | None:
    """The address, IPv4 also where it comes mapped into IPv6; `None` for anything doubtful.

    Doubtful are zone IDs, leading zeros, spaces and ports: what two parsers read differently is
    no basis for letting somebody in.
    """
    if not isinstance(ip, str) or not 0 < len(ip) <= MAX_ADDRESS_LENGTH or "%" in ip:
        return None
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=4096)
def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def _origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    if not isinstance(origin, str) or len(origin) > MAX_ORIGIN_LENGTH:
        return False
    try:
        return normal_origin(origin) in allowed
    except ValueError:
        return False


def _method_allowed(method: str | None, allowed: Sequence[str]) -> bool:
    return isinstance(method, str) and method.upper() in allowed


def _path_allowed(path: str | None, globs: Sequence[str]) -> bool:
    if not isinstance(path, str) or not path.startswith("/") or len(path) > MAX_PATH_LENGTH:
        return False
    segments = path.split("/")
    if "." in segments or ".." in segments:
        return False  # what a server behind us makes of these is not for us to guess
    return any(_matches(segments, glob.split("/")) for glob in globs)


def _matches(path: Sequence[str], glob: Sequence[str]) -> bool:
    """Whether the path's segments match the glob's, in time proportional to their product.

    `reach` holds the lengths of the path's beginnings that the glob so far can match, so nothing
    is ever tried twice: there is no backtracking to exploit.
    """
    reach = {0}
    for part in glob:
        if part == "**":
            reach = set(range(min(reach), len(path) + 1))
        else:
            reach = {
                length + 1 for length in reach if length < len(path) and _fits(path[length], part)
            }
        if not reach:
            return False
    return len(path) in reach


def _fits(segment: str, part: str) -> bool:
    """Whether a segment matches a part, in which `*` stands for any characters, or none.

    A part that is only `*` wants at least one character.
    """
    if part == "*":
        return segment != ""
    if "*" not in part:
        return segment == part
    first, *middle, last = part.split("*")
    if len(segment) < len(first) + len(last):
        return False
    if not (segment.startswith(first) and segment.endswith(last)):
        return False
    position, end = len(first), len(segment) - len(last)
    for piece in middle:
        found = segment.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
