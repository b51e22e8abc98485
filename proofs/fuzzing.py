"""What reads text that strangers send, each with a check of what came of it.

A target takes any text, and raises `AssertionError` where the answer is wrong; whatever else it
raises is no documented error.
"""

from __future__ import annotations

import ipaddress
import random
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import TypeAdapter, ValidationError

from keysmith import (
    Engine,
    InvalidKeyError,
    KeyCreate,
    KeyPublic,
    PolicyViolationError,
    SqliteStore,
)
from keysmith.cli.options import parse_duration
from keysmith.engine.context import Tenancy
from keysmith.engine.idempotency import Mark
from keysmith.engine.rules import Networks, Rules
from keysmith.fastapi.clients import MAX_HEADER_LENGTH, ClientAddress
from keysmith.fastapi.credentials import read_credential
from keysmith.fastapi.headers import etag, require_match
from keysmith.fastapi.problems import HTTPProblem
from keysmith.fastapi.schemas import AggregateQuery, KeyQuery, ScopeQuery, UsageQuery
from keysmith.models import Policy
from keysmith.models.base import Duration, iso_8601
from keysmith.models.policies import Network, Origin, PathGlob
from keysmith.raw_keys import ALPHABET, KeyGenerator, check_form, mask

LONGEST = 1.0
"""Seconds of the processor's time that an input may take: on a busy machine all takes long."""

LONG = 8_000
"""Characters: as many as a server takes in a header."""

_ours = re.compile(r"[a-z][a-z0-9]{0,19}_(?:live|test|staging)_[0-9A-Za-z]{49}", re.ASCII)

RAW_KEY = KeyGenerator().generate("sk", "live")


@cache
def engine() -> Engine:
    """An engine on a store in memory, with a key."""
    store = SqliteStore(":memory:")
    store.migrate()
    made = Engine(store)
    made.create_key(KeyCreate(name="n"))
    return made


@cache
def document() -> KeyPublic:
    """A key, as an API shows it."""
    return KeyPublic.model_validate(engine().list_keys()[0])


VERSION = "{version}"
"""The word in `If-Match` for the version of that key."""


@cache
def _adapter(kind: object) -> TypeAdapter[object]:
    return TypeAdapter(kind)


# ---------------------------------------------------------------------------- targets


def raw_keys(text: str) -> None:
    """Accepted unless malformed or with a wrong checksum; shown by no more than its hint."""
    try:
        accepted = check_form(text) == text
    except InvalidKeyError:
        accepted = False
    masked = mask(text)
    if _ours.fullmatch(text):
        number, digits = zlib.crc32(text[:-6].encode()), ""
        for _ in range(6):
            number, digit = divmod(number, 62)
            digits = ALPHABET[digit] + digits
        assert accepted == text.endswith(digits)
        assert text[-49:-4] not in masked
    else:
        assert masked in ("…", f"…({len(text)} characters)")
        assert accepted == (0 < len(text) <= 512 and _encodable(text))
    with suppress(InvalidKeyError):
        raise AssertionError(engine().validate_key(text))


def credentials(text: str) -> None:
    """One key, none, or a refusal with status 400."""
    headers = _headers(text)
    authorizations = [value for name, value in headers if name == b"authorization"]
    sent = [value for name, value in headers if name == b"x-api-key"]
    try:
        found = read_credential({"type": "http", "headers": headers})
    except HTTPProblem as problem:
        if problem.status_code != 400:
            raise
        return
    assert len(authorizations) <= 1
    assert len(sent) <= 1
    if found is None:
        assert not sent
    else:
        assert len(found.split()) == 1
        assert found.encode("latin-1") in (sent or authorizations)[0]


def clients(text: str) -> None:
    """The peer is believed only if it is trusted, and only about what it added itself."""
    headers, added = _headers(text), ("client", "203.0.113.9")
    client = ClientAddress(["10.0.0.0/8", "::1"])
    scope = {"type": "http", "client": ("10.0.0.1", 1), "headers": headers}
    found = client(scope)
    assert found is None or str(ipaddress.ip_address(found)) == found
    assert client({**scope, "client": ("192.0.2.1", 1)}) == "192.0.2.1"
    for name, more in ((b"x-forwarded-for", b"203.0.113.9"), (b"forwarded", b"for=203.0.113.9")):
        last = client({**scope, "headers": [*headers, (name, more)]})
        assert last in (None, added[1])
        values = [value for header, value in headers if header == name]
        alone = all(header == name for header, _ in headers if header in _ADDRESSES)
        if name == b"x-forwarded-for" and alone and sum(map(len, values)) < MAX_HEADER_LENGTH // 2:
            assert last == added[1]


_ADDRESSES = (b"x-forwarded-for", b"forwarded")


def networks(text: str) -> None:
    """As numbers would be compared; doubtful addresses are in no network."""
    network, _, address = text.partition("\n")
    try:
        normal = str(_adapter(Network).validate_python(network))
    except ValidationError:
        return
    assert _adapter(Network).validate_python(normal) == normal
    found = address in Networks([normal])
    try:
        asked, where = ipaddress.ip_address(address), ipaddress.ip_network(normal)
    except ValueError:
        assert not found
        return
    if "%" in address or len(address) > 64:
        assert not found
        return
    width, number, begin, bits = 32, int(asked), int(where.network_address), where.prefixlen
    if asked.version == 6:
        width, number = (32, number & 0xFFFF_FFFF) if number >> 32 == 0xFFFF else (128, number)
    size = 32 if where.version == 4 else 128
    if size == 128 and bits >= 96 and begin >> 32 == 0xFFFF:
        size, begin, bits = 32, begin & 0xFFFF_FFFF, bits - 96
    assert found == (width == size and (number ^ begin) >> (size - bits) == 0)


def paths(text: str) -> None:
    """As a matcher that tries everything; and what may climb is refused."""
    glob, _, path = text.partition("\n")
    try:
        _adapter(PathGlob).validate_python(glob)
    except ValidationError:
        return
    allowed = _allowed(Policy(name="p", allowed_paths=[glob]), path=path)
    parts, segments = tuple(glob.split("/")), tuple(path.split("/"))
    if len(parts) > 16 or len(segments) > 40:
        return
    matches = path.startswith("/") and len(path) <= 8192 and _matches(parts, segments)
    climbs = {".", ".."} & {*re.split(r"[/\\;]", unquote(path)), *segments}
    assert allowed == (matches and not climbs)


def origins(text: str) -> None:
    """What is accepted is in a form that stays as it is, and lets in what was written."""
    policy = Policy(name="p", allowed_origins=["https://app.example.com"])
    allowed = _allowed(policy, origin=text)
    try:
        normal = str(_adapter(Origin).validate_python(text))
    except ValidationError:
        assert not allowed
        return
    assert allowed == (normal == "https://app.example.com")
    assert _adapter(Origin).validate_python(normal) == normal
    assert _allowed(Policy(name="p", allowed_origins=[text]), origin=normal)


def durations(text: str) -> None:
    """A duration or a refusal; written as ISO 8601 it is read as the same."""
    found: list[object] = []
    with suppress(ValueError):
        found.append(parse_duration(text))
    with suppress(ValidationError):
        found.append(_adapter(Duration).validate_python(text))
    for duration in found:
        assert isinstance(duration, timedelta)
        if duration % timedelta(milliseconds=1) == timedelta(0) <= duration:
            assert _adapter(Duration).validate_python(iso_8601(duration)) == duration


def cursors(text: str) -> None:
    """A page or a refusal, of lists by ID, by name, by time and of aggregates by day."""
    with suppress(ValidationError):
        asked = KeyQuery.model_validate({"cursor": text}).page()
        engine().list_keys(**asked)
    with suppress(ValidationError):
        engine().list_keys(after=text)
    with suppress(ValidationError):
        asked = AggregateQuery.model_validate({"cursor": text}).page()
        engine().aggregate_usage(key_id=document().id, **asked)
    with suppress(ValidationError):
        engine().query_usage(**UsageQuery.model_validate({"cursor": text}).page())
    with suppress(ValidationError):
        engine().list_scopes(**ScopeQuery.model_validate({"cursor": text}).page())


def headers(text: str) -> None:
    """`If-Match` lets through its version alone, and an `Idempotency-Key` is one or refused."""
    tag = etag(document())
    text = text.replace(VERSION, tag)
    try:
        require_match(text, document())
    except HTTPProblem as problem:
        if problem.status_code != 412 or text.strip() == "*":
            raise
    else:
        assert text.strip() == "*" or re.fullmatch(rf"(.*,)?\s*{tag}\s*(,.*)?", text, re.DOTALL)
    with suppress(ValidationError):
        mark = Mark.of(Tenancy("t"), text, {"a": 1})
        assert mark == Mark.of(Tenancy("t"), text, {"a": 1})
        assert mark.request_token != Mark.of(Tenancy("u"), text, {"a": 1}).request_token


# ---------------------------------------------------------------------------- what they share


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _headers(text: str) -> list[tuple[bytes, bytes]]:
    pairs = [line.partition(":") for line in text.split("\n")]
    return [
        (name.strip().lower().encode("latin-1", "ignore"), value.encode("latin-1", "ignore"))
        for name, _, value in pairs
    ]


def _allowed(policy: Policy, **says: str) -> bool:
    rules = Rules.of(policy)
    assert rules is not None
    try:
        rules.check(**{**dict.fromkeys(("ip", "origin", "method", "path")), **says})  # type: ignore[arg-type]
    except PolicyViolationError:
        return False
    return True


def _matches(parts: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    reached = {0}
    for part in parts:
        if part == "**":
            reached = _from(reached, len(segments))
        else:
            reached = {
                place + 1
                for place in reached
                if place < len(segments) and _fits(segments[place], part)
            }
    return len(segments) in reached


def _fits(segment: str, part: str) -> bool:
    reached = {0}
    for wanted in part:
        if wanted == "*":
            reached = _from(reached, len(segment))
        else:
            reached = {at + 1 for at in reached if segment[at : at + 1] == wanted}
    return len(segment) in reached and (part != "*" or segment != "")


def _from(reached: set[int], length: int) -> set[int]:
    return set(range(min(reached), length + 1)) if reached else set()


Target = Callable[[str], None]

TARGETS: dict[Target, list[str]] = {
    raw_keys: [RAW_KEY, RAW_KEY[:-6], "sk_live_", "_test_", "a" * 43, "\ud800", "é", "0" * 600],
    credentials: [
        "\n",
        "Authorization: ",
        "Bearer ",
        "X-API-Key: ",
        "Basic ",
        "\t",
        RAW_KEY,
        "\x85",
    ],
    clients: [
        *("\n", "X-Forwarded-For: ", "Forwarded: ", "for=", 'for="[2001:db8::1]:80"', ";", ", "),
        *("10.0.0.1", "192.0.2.7", "::1", "unknown", "_hidden", '"', "\\", "proto=https"),
    ],
    networks: [
        "\n",
        "10.0.0.0/8",
        "::ffff:",
        "2001:db8::/32",
        "0",
        "/",
        "10.1.2.3",
        "%",
        ":",
        "255",
    ],
    paths: ["\n", "/", "**", "*", "v1", "users", "..", ".", "%2e", "\\", ";", "%2F", "é", "a" * 50],
    origins: [
        *(
            "https",
            "http",
            "://",
            "app.example.com",
            ":443",
            ":",
            "[::1]",
            "@",
            "/",
            "xn--",
            "null",
        ),
    ],
    durations: [
        "P",
        "T",
        "D",
        "H",
        "M",
        "S",
        "1",
        "9" * 12,
        "30s",
        "24h",
        "7d",
        ".",
        "-",
        "W",
        "0",
    ],
    cursors: [
        "akey_",
        "kusg_",
        "kscp_",
        "0" * 26,
        "2" + "9" * 17,
        "2026-03-01.",
        "2026-W01-1",
        "01h" + "0" * 23,
        ".",
        "7",
        "9999-12-31",
    ],
    headers: [VERSION, "W/", '"', "*", ", ", "\\", "é", "\ud800", "a" * 1100, "\x00"],
}
"""Each with words that inputs are made of, beside single characters."""


def text_of(target: Target, data: bytes) -> str:
    """The text that bytes stand for: characters, and from 128 on the words of the target."""
    words = TARGETS[target]
    return "".join(chr(byte) if byte < 128 else words[(byte - 128) % len(words)] for byte in data)


def by_chance(target: Target, chance: random.Random, count: int) -> Iterator[bytes]:
    """So many inputs, of words for the most part."""
    for _ in range(count):
        words = len(TARGETS[target])
        yield bytes(
            chance.randrange(128) if chance.random() < 0.2 else 128 + chance.randrange(words)
            for _ in range(chance.randrange(1, 12))
        )


def at_length(target: Target) -> Iterator[bytes]:
    """Long inputs: a word, another one or a character over and over, and what fits nowhere.

    Whoever reads them back and forth takes the square of their length.
    """
    words = range(128, 128 + len(TARGETS[target]))
    for first, over in product(words, (*words, *range(128))):
        times = LONG // len(text_of(target, bytes([over])))
        yield bytes([first, *[over] * times, 127])


def try_one(target: Target, data: bytes) -> None:
    """Tries an input. Raises `AssertionError` with it where anything is wrong."""
    text = text_of(target, data)
    began = time.thread_time()
    try:
        target(text)
    except Exception as error:
        raise AssertionError(f"{target.__name__}: {text!r}: {error!r}") from error
    took = time.thread_time() - began
    assert took < LONGEST, f"{target.__name__}: {text!r} took {took:.1f} s"


def fuzz(atheris: Any, name: str, seconds: str, seed: str) -> None:
    """Fuzzes a target for so long, guided by what of Keysmith each input runs."""
    [target] = [each for each in TARGETS if each.__name__ == name]
    engine(), document()
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=512", "-rss_limit_mb=0"]
    options += ["-len_control=0", "-artifact_prefix=build/fuzz/"]
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(by_chance(target, random.Random(seed), 200)):
            (Path(corpus) / str(number)).write_bytes(data)
        atheris.Setup([name, *options, corpus], lambda data: try_one(target, data))
        atheris.Fuzz()
