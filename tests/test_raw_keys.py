"""The format of raw keys, their checksum, hashes and masks."""

from __future__ import annotations

import hashlib
import hmac
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keysmith import Hasher, HmacSha256Hasher, InvalidKeyError, KeyGenerator
from keysmith.raw_keys import check_form, checksum, mask

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
prefixes = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True)
environments = st.sampled_from(["live", "test", "staging"])


@given(prefixes, environments)
def test_format_is_as_documented(prefix: str, environment: str) -> None:
    raw_key = KeyGenerator().generate(prefix, environment)
    start, rest = raw_key[: len(prefix) + len(environment) + 2], raw_key[-49:]
    assert start == f"{prefix}_{environment}_"
    assert len(raw_key) == len(start) + 43 + 6
    assert set(rest) <= set(BASE62)
    assert check_form(raw_key) == raw_key


@given(st.text(alphabet=string.ascii_letters + "_", max_size=80))
def test_checksum_is_crc32_in_six_base62_digits(body: str) -> None:
    value = 0
    for digit in checksum(body):
        value = value * 62 + BASE62.index(digit)
    assert value == zlib.crc32(body.encode())
    assert len(checksum(body)) == 6


@given(prefixes, environments, st.data())
def test_one_wrong_character_is_refused(prefix: str, environment: str, data: st.DataObject) -> None:
    raw_key = KeyGenerator().generate(prefix, environment)
    place = data.draw(st.integers(len(raw_key) - 49, len(raw_key) - 1))
    other = data.draw(st.sampled_from([c for c in BASE62 if c != raw_key[place]]))
    with pytest.raises(InvalidKeyError):
        check_form(raw_key[:place] + other + raw_key[place + 1 :])


@given(st.text(min_size=1, max_size=512).filter(lambda text: "_" not in text))
def test_other_formats_are_worth_a_lookup(text: str) -> None:
    assert check_form(text) == text


@pytest.mark.parametrize("text", ["", "x" * 513, "\ud800", "ключ\udfff", None, 7, b"sk_live_x"])
def test_what_cannot_be_a_key_is_refused(text: object) -> None:
    with pytest.raises(InvalidKeyError):
        check_form(text)


def test_keys_do_not_repeat_and_use_the_whole_alphabet() -> None:
    keys = {KeyGenerator().generate("sk", "live") for _ in range(2000)}
    assert len(keys) == 2000
    assert {character for key in keys for character in key[8:]} == set(BASE62)


def test_hash_is_sha256_of_the_whole_key() -> None:
    assert Hasher().hash("sk_live_x") == hashlib.sha256(b"sk_live_x").hexdigest()


def test_pepper_changes_the_hash_and_stays_hidden() -> None:
    pepper = "a pepper of more than 16 bytes"
    hasher = HmacSha256Hasher(pepper)
    assert hasher.hash("k") == hmac.new(pepper.encode(), b"k", hashlib.sha256).hexdigest()
    assert HmacSha256Hasher(pepper.encode()).hash("k") == hasher.hash("k")
    assert pepper not in repr(hasher)
    with pytest.raises(ValueError, match="16 bytes"):
        HmacSha256Hasher("short")


def test_mask_shows_prefix_and_hint_of_our_keys_and_nothing_of_others() -> None:
    raw_key = KeyGenerator().generate("sk", "live")
    assert mask(raw_key) == f"sk_live_…{raw_key[-4:]}"
    assert mask("correct horse battery staple") == "…(28 characters)"
    assert mask("x" * 100_000) == mask(None) == "…"
