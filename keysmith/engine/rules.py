"""What a policy says about where a request may come from and what it may ask for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Self
from urllib.parse import unquote

from keysmith.errors import (
    IPNotAllowedError,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
    PolicyViolationError,
)
from keysmith.models.policies import PolicyFields, normal_origin

MAX_ADDRESS_LENGTH = 64
MAX_ORIGIN_LENGTH = 512
MAX_PATH_LENGTH = 8192
MAX_PATH_SEGMENTS = 100
MAX_REMEMBERED = 4096
"""Addresses that are remembered with what the networks of a policy say of them."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SEPARATORS = re.compile(r"[/\\;]")


class Rules:
    """A policy's rules on requests, made ready for judging many.

    An empty list allows all. With a list, a request that does not say is refused, and so is one
    that says something that two programs might read differently.
    """

    __slots__ = ("_ips", "_methods", "_origins", "_paths")

    def __init__(self, policy: PolicyFields) -> None:
        self._ips = _networks(tuple(policy.allowed_ips)) if policy.allowed_ips else None
        self._origins = frozenset(policy.allowed_origins)
        self._methods = frozenset(policy.allowed_methods)
        self._paths = [glob.split("/") for glob in policy.allowed_paths]

    @classmethod
    def of(cls, policy: PolicyFields | None) -> Self | None:
        """The policy's rules; `None` if it has none."""
        if policy is None:
            return None
        ruled = policy.allowed_ips or policy.allowed_origins
        return cls(policy) if ruled or policy.allowed_methods or policy.allowed_paths else None

    def check(
        self, ip: str | None, origin: str | None, method: str | None, path: str | None
    ) -> None:
        """Raises the `PolicyViolationError` of the first rule that the request breaks."""
        if self._ips is not None and ip not in self._ips:
            raise _refusal(IPNotAllowedError, "IP address", ip)
        if self._origins and not _origin_allowed(origin, self._origins):
            raise _refusal(OriginNotAllowedError, "origin", origin)
        if self._methods and not _method_allowed(method, self._methods):
            raise _refusal(MethodNotAllowedError, "method", method)
        if self._paths and not _path_allowed(path, self._paths):
            raise _refusal(PathNotAllowedError, "path", path)


def _refusal(
    error: type[PolicyViolationError], what: str, told: str | None
) -> PolicyViolationError:
    if told is not None:
        return error()
    return error(f"The key's policy goes by the {what} of a request, and this one told none.")


class Networks:
    """Addresses and networks; remembers which addresses it has looked at."""

    __slots__ = ("_networks", "_seen")

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [_network(network) for network in networks]
        self._seen: dict[str, bool] = {}

    def __contains__(self, ip: object) -> bool:
        if not isinstance(ip, str) or len(ip) > MAX_ADDRESS_LENGTH:
            return False
        known = self._seen.get(ip)
        if known is None:
            address = parse_address(ip)
            known = address is not None and any(address in each for each in self._networks)
            if len(self._seen) < MAX_REMEMBERED:
                self._seen[ip] = known
        return known


@lru_cache(maxsize=1024)
def _networks(networks: tuple[str, ...]) -> Networks:
    return Networks(networks)


def parse_address(ip: str | None) -> Address | None:
    """The address, IPv4 also where it comes mapped into IPv6; `None` for anything doubtful.

    Doubtful are zone IDs, leading zeros, spaces and ports: what two parsers read differently is
    no basis for letting somebody in.
    """
    if not isinstance(ip, str) or len(ip) > MAX_ADDRESS_LENGTH or "%" in ip:
        return None
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(text: str) -> Network:
    """The network; one of mapped IPv4 addresses as that of the addresses themselves."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network):
        # A wider one than /96 begins with no such address.
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def _origin_allowed(origin: str | None, allowed: Collection[str]) -> bool:
    if not isinstance(origin, str) or len(origin) > MAX_ORIGIN_LENGTH:
        return False
    try:
        return normal_origin(origin) in allowed
    except ValueError:
        return False


def _method_allowed(method: str | None, allowed: Collection[str]) -> bool:
    return isinstance(method, str) and method.upper() in allowed


def _path_allowed(path: str | None, globs: Iterable[Sequence[str]]) -> bool:
    if not isinstance(path, str) or not path.startswith("/") or len(path) > MAX_PATH_LENGTH:
        return False
    segments = path.split("/")
    if len(segments) > MAX_PATH_SEGMENTS or _climbs(path, segments):
        return False
    asked = Segments(segments)
    return any(asked.match(glob) for glob in globs)


def _climbs(path: str, segments: Collection[str]) -> bool:
    """Whether a segment is `.` or `..`, or may be taken for one by a server behind us.

    Some decode `%2e`, some separate at backslashes, and some leave out what follows a `;`.
    """
    if "%" in path or "\\" in path or ";" in path:
        segments = _SEPARATORS.split(unquote(path))
    return "." in segments or ".." in segments


class Segments:
    """A path's segments, as sets of places: each an integer that has a bit for each place."""

    __slots__ = ("_fitting", "_length", "_places")

    def __init__(self, segments: Sequence[str]) -> None:
        self._length = len(segments)
        self._places: dict[str, int] = {}
        self._fitting: dict[str, int] = {}
        for place, segment in enumerate(segments):
            self._places[segment] = self._places.get(segment, 0) | 1 << place

    def match(self, glob: Iterable[str]) -> bool:
        """Whether they match the glob, given by its own segments.

        `reach` has a bit for each number of segments, from the beginning, that the glob so far can
        match. So nothing is ever tried twice: there is no backtracking to exploit.
        """
        reach = 1
        for part in glob:
            if part == "**":
                reach = (2 << self._length) - (reach & -reach)
            else:
                reach = (reach & self._standing(part)) << 1
            if not reach:
                return False
        return bool(reach >> self._length)

    def _standing(self, part: str) -> int:
        """Where segments stand that the part fits."""
        if "*" not in part:
            return self._places.get(part, 0)
        standing = self._fitting.get(part)
        if standing is None:
            standing = sum(at for segment, at in self._places.items() if _fits(segment, part))
            self._fitting[part] = standing
        return standing


def _fits(segment: str, part: str) -> bool:
    """Whether a segment matches a part, in which `*` stands for any characters, or none.

    A part that is only `*` wants at least one character.
    """
    if part == "*":
        return segment != ""
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
