"""Addresses, origins, methods and paths: what a policy lets through."""

from __future__ import annotations

import ipaddress
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keysmith import (
    IPNotAllowedError,
    MethodNotAllowedError,
    OriginNotAllowedError,
    PathNotAllowedError,
    Policy,
    PolicyCreate,
    PolicyViolationError,
)
from keysmith.engine.rules import MAX_PATH_LENGTH, MAX_REMEMBERED, Networks, Rules


def allowed(policy: Policy, **says: str | None) -> bool:
    rules = Rules.of(policy)
    if rules is None:
        return True
    request = dict.fromkeys(["ip", "origin", "method", "path"]) | says
    try:
        rules.check(**request)
    except PolicyViolationError:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "error", "what"),
    [
        ({"allowed_ips": ["10.0.0.0/8"]}, IPNotAllowedError, "IP address"),
        ({"allowed_origins": ["https://a.example"]}, OriginNotAllowedError, "origin"),
        ({"allowed_methods": ["GET"]}, MethodNotAllowedError, "method"),
        ({"allowed_paths": ["/v1/**"]}, PathNotAllowedError, "path"),
    ],
)
def test_a_request_that_does_not_say_is_refused(
    rule: dict[str, list[str]], error: type[PolicyViolationError], what: str
) -> None:
    rules = Rules.of(Policy(name="p", **rule))
    assert rules is not None
    with pytest.raises(error, match=f"by the {what} of a request, and this one told none"):
        rules.check(None, None, None, None)
    with pytest.raises(error) as refused:
        rules.check("11.0.0.1", "https://b.example", "POST", "/v2")
    assert str(refused.value) == str(error()), "what is told and not allowed is another matter"
    assert Rules.of(Policy(name="p")) is None


@pytest.mark.parametrize(
    ("networks", "address", "expected"),
    [
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["10.0.0.0/8"], "::ffff:0a00:1", True),
        (["10.0.0.0/8"], "::10.0.0.1", False),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "::ffff:10.1.2.3", True),
        (["192.0.2.7"], "192.0.2.7", True),
        (["2001:db8::/32"], "2001:db8:ffff::1", True),
        (["2001:db8::/32"], "2001:DB8:FFFF:0::1", True),
        (["2001:db8::/32"], "10.0.0.1", False),
        (["::/0"], "2001:db8::1", True),
        (["::/0"], "10.0.0.1", False),
        (["::/0"], "::ffff:10.0.0.1", False),
        (["0.0.0.0/0"], "::ffff:10.0.0.1", True),
        (["::ffff:0:0/96"], "10.0.0.1", True),
        (["::ffff:192.0.2.7"], "192.0.2.7", True),
        (["::ffff:192.0.2.7"], "192.0.2.8", False),
        (["10.0.0.0/255.0.0.0"], "10.1.2.3", True),
        (["0.0.0.0/0"], "１０.0.0.1", False),
        (["0.0.0.0/0"], "10.0.0.1/32", False),
        (["0.0.0.0/0"], "10.0.0.1\0", False),
        (["::/0"], "::ffff:10.0.0.1%1", False),
        (["fe80::/10"], "fe80::1%eth0", False),
        (["10.0.0.0/8"], "010.0.0.1", False),
        (["10.0.0.0/8"], "10.0.0.1 ", False),
        (["10.0.0.0/8"], " 10.0.0.1", False),
        (["10.0.0.0/8"], "10.0.0.1:80", False),
        (["10.0.0.0/8"], "10.0.1", False),
        (["10.0.0.0/8"], "167772161", False),
        (["10.0.0.0/8"], "10.0.0.1\n", False),
        (["::/0", "0.0.0.0/0"], "[::1]", False),
        (["::/0", "0.0.0.0/0"], "", False),
        (["::/0", "0.0.0.0/0"], "unknown", False),
        (["::/0", "0.0.0.0/0"], "1" * 1_000_000, False),
    ],
)
def test_addresses(networks: list[str], address: str, expected: bool) -> None:
    assert allowed(Policy(name="p", allowed_ips=networks), ip=address) is expected


@given(
    st.ip_addresses(),
    st.ip_addresses(v=4).flatmap(
        lambda a: st.integers(0, 32).map(lambda n: ipaddress.ip_network((a, n), strict=False))
    ),
)
def test_any_address_is_judged_as_the_standard_library_would(
    address: ipaddress.IPv4Address, network: ipaddress.IPv4Network
) -> None:
    policy = Policy(name="p", allowed_ips=[str(network)])
    mapped = getattr(address, "ipv4_mapped", None) or address
    assert allowed(policy, ip=str(address)) is (mapped in network)


whatever = st.one_of(
    st.text(),
    st.text("0123456789abcdefABCDEF:.%/[] \t", max_size=70),
    st.tuples(
        st.ip_addresses().map(str), st.sampled_from(["", " ", "%eth0", ":80", "/8", "\n", "."])
    )
    .map("".join)
    .flatmap(
        lambda text: st.sampled_from([text, text.upper(), f"[{text}]", f" {text}", f"0{text}"])
    ),
)


@given(whatever)
def test_what_is_no_plain_address_is_refused_by_all_networks(text: str) -> None:
    everything = Policy(name="p", allowed_ips=["0.0.0.0/0", "::/0"])
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert not allowed(everything, ip=text)
    else:
        assert allowed(everything, ip=text) is ("%" not in text)


@pytest.mark.parametrize(
    "says", [b"10.0.0.1", 167772161, ipaddress.ip_address("10.0.0.1"), True, 1.5, ["10.0.0.1"], {}]
)
def test_what_is_no_text_is_refused(says: object) -> None:
    for name, rule in (
        ("ip", {"allowed_ips": ["0.0.0.0/0", "::/0"]}),
        ("origin", {"allowed_origins": ["https://a.example"]}),
        ("method", {"allowed_methods": ["GET"]}),
        ("path", {"allowed_paths": ["/**"]}),
    ):
        assert not allowed(Policy(name="p", **rule), **{name: says})


def test_only_so_many_addresses_are_remembered() -> None:
    networks = Networks(["10.0.0.0/8"])
    for number in range(MAX_REMEMBERED + 100):
        assert str(ipaddress.ip_address(0x0A000000 + number)) in networks
    assert len(networks._seen) == MAX_REMEMBERED
    assert "11.0.0.1" not in networks


@pytest.mark.parametrize("network", ["fe80::%eth0/10", "fe80::1%eth0", "10.0.0.1/8", "10.0.0", ""])
def test_networks_that_cannot_be_meant_are_refused(network: str) -> None:
    with pytest.raises(ValidationError, match="CIDR"):
        PolicyCreate(name="p", allowed_ips=[network])


@given(st.text())
def test_no_text_crashes_a_rule(text: str) -> None:
    for rule, says in (
        ({"allowed_ips": ["0.0.0.0/0", "::/0"]}, {"ip": text}),
        ({"allowed_origins": ["https://a.example"]}, {"origin": text}),
        ({"allowed_methods": ["GET"]}, {"method": text}),
        ({"allowed_paths": ["/a/*/b/**"]}, {"path": text}),
    ):
        allowed(Policy(name="p", **rule), **says)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://app.example.com", True),
        ("HTTPS://APP.example.COM", True),
        ("https://app.example.com:443", True),
        ("https://app.example.com:8443", False),
        ("http://app.example.com", False),
        ("https://app.example.com.evil.example", False),
        ("https://app.example.com@evil.example", False),
        ("https://evil.example/https://app.example.com", False),
        ("https://app.example.com/", False),
        ("https://app.example.com?x", False),
        ("https://app.example.com#x", False),
        ("https:\\\\app.example.com", False),
        ("https://app.example.com\t", False),
        ("http://localhost:3000", True),
        ("null", False),
        ("", False),
        ("https://" + "a" * 1_000_000, False),
    ],
)
def test_origins(origin: str, expected: bool) -> None:
    policy = Policy(
        name="p", allowed_origins=["https://App.Example.com:443", "http://localhost:3000"]
    )
    assert allowed(policy, origin=origin) is expected


@pytest.mark.parametrize(
    ("written", "sent", "expected"),
    [
        ("http://[::1]:3000", "http://[0:0:0:0:0:0:0:1]:3000", True),
        ("http://[2001:DB8::0:1]", "http://[2001:db8::1]:80", True),
        ("http://[::1]", "http://[::2]", False),
        ("http://[::1]", "http://::1", False),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example:443", True),
        ("https://xn--bcher-kva.example", "https://bücher.example", False),
        ("https://a.example", "https://a.example.", False),
        ("https://a.example", "https://user@a.example", False),
        ("https://a.example", "https://a.example:", True),
        ("https://a.example:0", "https://a.example", False),
        ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
    ],
)
def test_origins_are_compared_as_origins(written: str, sent: str, expected: bool) -> None:
    policy = PolicyCreate(name="p", allowed_origins=[written])
    assert allowed(policy, origin=sent) is expected


@pytest.mark.parametrize(
    "origin",
    ["null", "*", "https://*.example", "https://bücher.example", "https://[v1.a]", "https://[::1"]
    + ["https://[fe80::1%25eth0]", "https://a%2eexample", "https://a/", "https://a:99999", "a.b"],
)
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="origin"):
        PolicyCreate(name="p", allowed_origins=[origin])


def test_methods_are_compared_without_case() -> None:
    policy = Policy(name="p", allowed_methods=["get", "PATCH"])
    assert allowed(policy, method="GET")
    assert allowed(policy, method="patch")
    assert not allowed(policy, method="POST")
    assert not allowed(policy, method="GETS")


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("/v1/users", "/v1/users", True),
        ("/v1/users", "/v1/users/", False),
        ("/v1/users", "/v1/Users", False),
        ("/v1/users/*", "/v1/users/17", True),
        ("/v1/users/*", "/v1/users/", False),
        ("/v1/users/*", "/v1/users", False),
        ("/v1/users/*", "/v1/users/17/notes", False),
        ("/v1/*/notes", "/v1/users/notes", True),
        ("/v1/**", "/v1", True),
        ("/v1/**", "/v1/", True),
        ("/v1/**", "/v1/a/b/c", True),
        ("/v1/**", "/v10", False),
        ("/a*b*c", "/a1b2c", True),
        ("/a*b*c", "/a12c", False),
        ("/v1/**/notes", "/v1/notes", True),
        ("/v1/**/notes", "/v1/a/b/notes", True),
        ("/v1/**/notes", "/v1/a/b/note", False),
        ("/**", "/anything/at/all", True),
        ("/", "/", True),
        ("/files/*.txt", "/files/a.txt", True),
        ("/files/*.txt", "/files/.txt", True),
        ("/files/*.txt", "/files/a.txt.exe", False),
        ("/files/a*b*c", "/files/aXbYc", True),
        ("/files/a*b*c", "/files/acb", False),
        ("/files/a*a", "/files/a", False),
        ("/a.c", "/abc", False),
        ("/v1/**", "/v1/../admin", False),
        ("/v1/**", "/v1/./x", False),
        ("/v1/**", "/v1/%2e%2e/admin", False),
        ("/v1/**", "/v1/.%2E/admin", False),
        ("/v1/**", "/v1/%2e/x", False),
        ("/v1/**", "/v1/..%2fadmin", False),
        ("/v1/**", "/v1/x%2f..%2f..", False),
        ("/v1/**", "/v1/..\\admin", False),
        ("/v1/**", "/v1/..%5Cadmin", False),
        ("/v1/**", "/v1/..;/admin", False),
        ("/v1/**", "/v1/..;x=1/admin", False),
        ("/v1/**", "/v1/a%20b/%c3%28/...", True),
        ("/v1/*", "/v1/a;b=c", True),
        ("/v1/*", "/v1/group%2Fproject", True),
        ("/v1/users", "/v1/us%65rs", False),
        ("/v1/**", "/v1//x", True),
        ("/v1/*", "/v1//", False),
        ("/v1/*/x", "/v1//x", False),
        ("/v1/*a*", "/v1/abc", True),
        ("/v1/*a*a*", "/v1/abc", False),
        ("/**", "/a" * 99, True),
        ("/**", "/a" * 100, False),
        ("/v1/**", "v1/x", False),
        ("/v1/**", "//v1/x", False),
        ("/a*b*b", "/ab", False),
        ("/x*ab*ab*y", "/xxxaby", False),
        ("/x*ab*ab*y", "/xabxaby", True),
        ("/**", "/" + "x" * (MAX_PATH_LENGTH - 1), True),
        ("/**", "/" + "x" * MAX_PATH_LENGTH, False),
        ("/**", "/" + "x" * 1_000_000, False),
    ],
)
def test_paths(glob: str, path: str, expected: bool) -> None:
    assert allowed(Policy(name="p", allowed_paths=[glob]), path=path) is expected


def test_the_table_of_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "limits.md").read_text()
    [table] = re.findall(r"^\| glob .*\n(?:\|.*\n)+", text, re.MULTILINE)
    head, _, *rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    ]
    assert len(rows) == 5
    for glob, *cells in rows:
        policy = PolicyCreate(name="p", allowed_paths=[glob])
        for path, cell in zip(head[1:], cells, strict=True):
            assert allowed(policy, path=path) is (cell == "yes"), (glob, path)


parts = st.sampled_from(["a", "b", "ab", "*", "**", "a*", "*b", "a*b", "*a*", ""])


@given(
    st.lists(parts, max_size=5), st.lists(st.sampled_from(["a", "b", "ab", "aab", ""]), max_size=6)
)
def test_globs_agree_with_a_regular_expression(glob: list[str], path: list[str]) -> None:
    pattern = "".join(
        "(/[^/]*)*"
        if part == "**"
        else "/" + ("[^/]+" if part == "*" else re.escape(part).replace(r"\*", "[^/]*"))
        for part in glob
    )
    text, subject = "/" + "/".join(glob), "/" + "/".join(path)
    expected = re.fullmatch(pattern or "/", subject) is not None
    assert allowed(Policy(name="p", allowed_paths=[text]), path=subject) is expected


@pytest.mark.parametrize(
    ("globs", "path"),
    [
        (["/**/a" * 170 + "/b"] * 100, "/a" * 99),
        (["/**/a*" * 150 + f"/{number}" for number in range(100)], "/a" * 99),
        (["/" + "a*" * 400 + "b"] * 100, "/" + "a" * 8000),
        (["/**/*a*a*" * 100], "".join(f"/{'a' * n}b" for n in range(90))),
    ],
)
def test_no_glob_backtracks(globs: list[str], path: str) -> None:
    policy = Policy(name="p", allowed_paths=globs)
    began = time.process_time()
    assert not allowed(policy, path=path)
    assert time.process_time() - began < 1, "anything exponential would not end in this century"
