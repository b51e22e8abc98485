"""The client's address: whom to believe, and what to make of what they write."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keysmith.fastapi import ClientAddress

PROXIES = ("10.0.0.0/8", "2001:db8::1")


def asked(peer: str | None, *headers: tuple[str, str], trusted: object = PROXIES) -> str | None:
    scope = {
        "type": "http",
        "client": None if peer is None else (peer, 4711),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    return ClientAddress(trusted)(scope)  # type: ignore[arg-type]


def forwarded_for(*values: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", value) for value in values]


def forwarded(*values: str) -> list[tuple[str, str]]:
    return [("Forwarded", value) for value in values]


@pytest.mark.parametrize("header", [forwarded_for("1.2.3.4"), forwarded("for=1.2.3.4")])
def test_only_a_trusted_proxy_is_believed(header: list[tuple[str, str]]) -> None:
    assert asked("203.0.113.9", *header) == "203.0.113.9"
    assert asked("10.9.9.9", *header, trusted=()) == "10.9.9.9"
    assert asked(None, *header) is None
    assert asked("10.9.9.9", *header) == "1.2.3.4"
    assert asked("2001:db8::1", *header) == "1.2.3.4"
    assert asked("10.9.9.9") == "10.9.9.9", "a request of the proxy's own"


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        (["6.6.6.6, 1.2.3.4, 10.1.1.1"], "1.2.3.4"),
        (["6.6.6.6", "1.2.3.4", "10.1.1.1,10.1.1.2"], "1.2.3.4"),
        (["10.1.1.1, 10.1.1.2"], "10.1.1.1"),
        (["1.2.3.4:5678"], "1.2.3.4"),
        (["[2001:db8::7]:5678"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["::ffff:1.2.3.4"], "1.2.3.4"),
        (["unknown"], None),
        (["1.2.3.4, unknown"], None),
        (["1.2.3.4, 1.2.3"], None),
        (["1.2.3.4, 010.0.0.1"], None),
        (["1.2.3.4, fe80::1%eth0"], None),
        ([""], None),
        ([", ,"], None),
        (["1.2.3.4," * 2000], None),
        (["1" * 1_000_000], None),
    ],
)
def test_x_forwarded_for(values: list[str], address: str | None) -> None:
    assert asked("10.0.0.1", *forwarded_for(*values)) == address


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["for=6.6.6.6, for=1.2.3.4"], "1.2.3.4"),
        (["For=1.2.3.4;proto=https;by=10.0.0.1, for=10.1.1.1"], "1.2.3.4"),
        (["for=6.6.6.6", 'proto=http; for="1.2.3.4:99"'], "1.2.3.4"),
        (['for="[2001:db8::7]:4711"'], "2001:db8::7"),
        (['host="a,b;c";for=1.2.3.4'], "1.2.3.4"),
        (['for="1.2\\.3.4"'], "1.2.3.4"),
        (["for=1.2.3.4;"], "1.2.3.4"),
        (["for=1.2.3.4, by=10.0.0.1"], None),
        (["for=1.2.3.4, for=_hidden"], None),
        (["for=1.2.3.4, for=unknown"], None),
        (["for=1.2.3.4;for=6.6.6.6"], None),
        (["for=1.2.3.4, for"], None),
        (['for="1.2.3.4'], None),
        (["for=2001:db8::7"], None),
        ([""], None),
        (["for=1.2.3.4," * 1000], None),
        ([" for=1.2.3.4 , for=10.0.0.5 ;by=10.0.0.1 "], "1.2.3.4"),
    ],
)
def test_forwarded(values: list[str], address: str | None) -> None:
    assert asked("10.0.0.1", *forwarded(*values)) == address


def test_a_long_header_takes_no_more_than_its_length() -> None:
    """Not the square of it: anybody can send one, without a key that is good."""

    def time_of(length: int) -> float:
        header = forwarded(f'for=1.2.3.4,{" " * length}"')
        return min(timeit.repeat(lambda: asked("10.0.0.1", *header), number=1, repeat=5))

    assert time_of(8000) < 10 * time_of(1000) + 0.01


def test_two_headers_must_agree() -> None:
    agreed = [*forwarded("for=1.2.3.4"), *forwarded_for("9.9.9.9, 1.2.3.4")]
    assert asked("10.0.0.1", *agreed) == "1.2.3.4"
    made_up = [*forwarded("for=10.0.0.5"), *forwarded_for("1.2.3.4")]
    assert asked("10.0.0.1", *made_up) is None, "a proxy that writes one passes the other on"


def test_wrong_proxies_are_refused_at_once() -> None:
    for wrong in (["10.0.0.1/8"], ["proxy.example"], ["*"], "everybody"):
        with pytest.raises(ValidationError):
            ClientAddress(wrong)
    assert asked("10.0.0.1", *forwarded_for("1.2.3.4"), trusted="10.0.0.1") == "1.2.3.4"


@given(left=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
def test_what_stands_further_left_changes_nothing(left: str) -> None:
    assert asked("10.0.0.1", *forwarded_for(f"{left}, 1.2.3.4"[-8000:])) == "1.2.3.4"


@given(value=st.text(st.sampled_from('for=",;\\ 1.[]:_a'), max_size=300))
def test_no_header_is_too_strange(value: str) -> None:
    for header in (forwarded(value), forwarded_for(value)):
        address = asked("10.0.0.1", *header)
        assert address is None or address.count(".") == 3 or ":" in address
