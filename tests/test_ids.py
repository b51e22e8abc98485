"""IDs: their form, and that they sort by creation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typeid import TypeID

from keysmith.ids import IdPrefix, is_id, new_id

moments = st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.just(UTC))


@given(st.sampled_from(IdPrefix), moments)
def test_an_id_is_a_typeid_over_a_uuid7_of_its_moment(prefix: IdPrefix, at: datetime) -> None:
    text = new_id(prefix, at)
    assert is_id(prefix, text)
    typeid = TypeID.from_string(text)
    assert typeid.prefix == prefix.value
    assert typeid.uuid.version == 7
    assert typeid.uuid.variant == "specified in RFC 4122"
    assert typeid.uuid.timestamp == (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        milliseconds=1
    )


@given(st.lists(moments, min_size=2, max_size=20))
def test_ids_sort_as_their_moments(times: list[datetime]) -> None:
    times.sort()
    ids = [new_id(IdPrefix.KEY, at) for at in times]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_of_one_moment_sort_as_they_were_made() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    ids = [new_id(IdPrefix.KEY, at) for _ in range(1000)]
    assert ids == sorted(set(ids))


def test_ids_of_usage_that_is_written_meanwhile_change_nothing_about_that() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    ids = []
    for number in range(100):
        ids.append(new_id(IdPrefix.KEY, at))
        new_id(IdPrefix.USAGE, at - timedelta(seconds=number))
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    "text",
    ["", "akey_", "akey_" + "0" * 25, "kpol_" + "0" * 26, "akey_" + "8" + "0" * 25, None, 5]
    + ["akey_" + "0" * 25 + "u", "AKEY_" + "0" * 26, "akey_" + "0" * 26 + "\n"],
)
def test_what_is_no_key_id(text: object) -> None:
    assert not is_id(IdPrefix.KEY, text)
