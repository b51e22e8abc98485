"""Models: every table validates, nothing public carries a hash, the host's metadata is its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.orm.attributes import set_attribute
from sqlmodel import Session, select

import keysmith
from keysmith import (
    Key,
    KeyCreate,
    KeyPublic,
    KeyUpdate,
    Period,
    Policy,
    PolicyCreate,
    PolicyPublic,
    PolicyUpdate,
    Rotation,
    RotationPublic,
    ScopeCreate,
    SqliteStore,
    UsageCreate,
    metadata,
)
from keysmith.models.base import Public, Table
from keysmith.models.docstrings import field_docstrings

HASH = "ab" * 32


def a_key(**fields: Any) -> Key:
    return Key(**{"name": "n", "hint": "abcd", "key_hash": HASH} | fields)


TABLES = {
    mapper.local_table.name: mapper.class_
    for mapper in Key._sa_registry.mappers  # type: ignore[attr-defined]
}


def test_seven_tables() -> None:
    assert (
        sorted(metadata.tables)
        == sorted(TABLES)
        == sorted(
            f"keysmith_{name}"
            for name in (
                "keys",
                "policies",
                "scopes",
                "key_scopes",
                "usage",
                "usage_agg",
                "rotations",
            )
        )
    )


def test_every_constraint_and_index_has_a_name_of_the_convention() -> None:
    for table in metadata.tables.values():
        for item in [*table.constraints, *table.indexes]:
            name = str(item.name)
            assert name.split("_", maxsplit=1)[0] in {"pk", "fk", "uq", "ck", "ix"}
            assert table.name in name
            assert len(name) <= 63, "PostgreSQL cuts longer names"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\0b"},
        {"name": "a\x1bb"},
        {"name": None},
        {"key_hash": "short"},
        {"key_hash": HASH.upper()},
        {"state": "asleep"},
        {"environment": "prod"},
        {"prefix": "Sk"},
        {"prefix": "s" * 21},
        {"hint": "abcde"},
        {"id": "akey_1"},
        {"created_at": datetime(2026, 1, 1)},
        {"expires_at": datetime(2026, 1, 1)},
        {"meta": [1]},
        {"meta": {"a": float("nan")}},
        {"meta": {"a": "x" * 20_000}},
        {"meta": {"a": "\0"}},
        {"unknown": 1},
    ],
)
def test_a_table_model_refuses_what_its_table_must_not_hold(
    fields: dict[str, Any], memory: SqliteStore
) -> None:
    with pytest.raises(ValidationError) as refused:
        a_key(**fields)
    assert HASH not in str(refused.value)
    key = a_key()
    [(name, value)] = fields.items()
    if name in Key.model_fields:
        before = getattr(key, name)
        with pytest.raises(ValidationError):
            setattr(key, name, value)
        assert getattr(key, name) == before
        # What gets in by the back door is caught when it is written, by either way.
        key.__dict__[name] = value
        with pytest.raises(ValidationError):
            memory.keys.create(key)
        with Session(memory.db) as session:
            session.add(key)
            with pytest.raises(ValidationError):
                session.flush()
            session.rollback()
    assert memory.keys.count() == 0


def test_a_hosts_own_session_reads_and_writes_the_tables(memory: SqliteStore) -> None:
    key = a_key(meta={"team": "a"}, expires_at=datetime(2030, 1, 1, tzinfo=UTC))
    with Session(memory.db, expire_on_commit=False) as session:
        session.add(key)
        session.commit()
        found = session.exec(select(Key).where(Key.name == "n")).one()
        assert found is key
        key.name = "renamed"
        session.commit()
    stored = memory.keys.get(key.id)
    assert (stored.name, stored.meta, stored.expires_at) == ("renamed", key.meta, key.expires_at)
    stored.name = "merged"
    with Session(memory.db) as session:
        session.merge(stored)
        session.commit()
    assert memory.keys.get(key.id).name == "merged"


def test_what_a_session_writes_is_brought_into_form(memory: SqliteStore) -> None:
    policy = Policy(name="p")
    with Session(memory.db) as session:
        session.add(policy)
        set_attribute(policy, "allowed_methods", ["get"])  # past our own __setattr__
        session.commit()
        assert policy.allowed_methods == ["GET"]
    assert memory.policies.get_by_name("default", "p").allowed_methods == ["GET"]


def test_model_validate_makes_a_table_model_as_well() -> None:
    key = Key.model_validate({"name": "n", "hint": "abcd", "key_hash": HASH, "metadata": {"a": 1}})
    assert key.meta == {"a": 1}


def test_checks_hold_below_python(memory: SqliteStore) -> None:
    memory.keys.create(a_key())
    with memory.db.begin() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(sa.text("UPDATE keysmith_keys SET state = 'asleep'"))


def public_models() -> list[type[Public]]:
    return [
        value
        for value in vars(keysmith).values()
        if isinstance(value, type) and issubclass(value, Public)
    ]


def test_nothing_public_carries_a_hash() -> None:
    assert len(public_models()) == 7
    for model in public_models():
        assert not [name for name in model.model_fields if "hash" in name or "sketch" in name]
    key = a_key()
    public = KeyPublic.model_validate(key)
    assert KeyPublic.model_validate(public) == public
    for shown in (
        repr(key),
        str(key),
        str(key.model_dump()),
        key.model_dump_json(),
        repr(public),
        public.model_dump_json(),
        str(KeyPublic.model_validate({**key.model_dump(), "key_hash": HASH})),
    ):
        assert HASH not in shown
    with pytest.raises(ValidationError):
        public.name = "other"
    rotation = Rotation(
        key_id=key.id, old_key_hash=HASH, new_key_hash=HASH, grace_ends=key.created_at
    )
    assert HASH not in repr(rotation) + RotationPublic.model_validate(rotation).model_dump_json()


def test_json_names_are_the_field_names_and_metadata() -> None:
    policy = Policy(name="p", rate_limit_window="PT10M", meta={"a": 1})
    shown = PolicyPublic.model_validate(policy).model_dump(mode="json", by_alias=True)
    assert shown["metadata"] == {"a": 1}
    assert (shown["rate_limit_window"], shown["grace_period"]) == ("PT10M", "P1D")
    assert shown["created_at"].endswith("Z")
    assert KeyCreate.model_validate_json('{"name": "n", "metadata": {"a": 1}}').meta == {"a": 1}
    assert KeyCreate(name="n", meta={"a": 1}).meta == {"a": 1}


@pytest.mark.parametrize("model", [KeyCreate, KeyUpdate, PolicyCreate, ScopeCreate, UsageCreate])
def test_unknown_fields_are_refused_without_showing_them(model: type[Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        model(name="n", raw_key="sk_live_secret")
    assert "sk_live_secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["name", "description", "meta", "grace_period", "rate_limit"])
def test_an_update_does_not_clear_what_cannot_be_empty(name: str) -> None:
    model: type[Any] = KeyUpdate if name in KeyUpdate.model_fields else PolicyUpdate
    with pytest.raises(ValidationError, match=name):
        model(**{name: None})
    assert KeyUpdate(expires_at=None, policy_id=None).changes() == {
        "expires_at": None,
        "policy_id": None,
    }
    assert KeyUpdate().changes() == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_ips", ["10.0.0.1/8"]),
        ("allowed_ips", ["fe80::1%eth0/64x"]),
        ("allowed_ips", ["010.0.0.1"]),
        ("allowed_ips", ["localhost"]),
        ("allowed_origins", ["example.com"]),
        ("allowed_origins", ["https://example.com/path"]),
        ("allowed_origins", ["https://u:p@example.com"]),
        ("allowed_origins", ["https://example.com:99999"]),
        ("allowed_origins", ["https://"]),
        ("allowed_methods", ["GET POST"]),
        ("allowed_paths", ["users"]),
        ("allowed_scopes", ["Read Users"]),
        ("allowed_ips", ["10.0.0.1"] * 1001),
        ("rate_limit", -1),
        ("rate_limit", 10**16),
        ("rate_limit_window", timedelta(0)),
        ("rate_limit_window", timedelta(microseconds=1500)),
        ("grace_period", timedelta(seconds=-1)),
        ("grace_period", timedelta(days=3651)),
        ("max_key_lifetime", timedelta(0)),
        ("daily_quota", 1.5),
    ],
)
def test_a_policy_refuses_rules_that_mean_nothing(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        PolicyCreate(name="p", **{field: value})
    with pytest.raises(ValidationError, match=field):
        PolicyUpdate(**{field: value})


def test_rules_are_kept_in_their_normal_form() -> None:
    policy = PolicyCreate(
        name="p",
        allowed_ips=["10.0.0.0/8", "2001:DB8::/32", "192.0.2.1"],
        allowed_origins=["HTTPS://App.Example.com:443", "http://localhost:3000", "http://[::1]:80"],
        allowed_methods=["get", "Post"],
    )
    assert policy.allowed_ips == ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32"]
    assert policy.allowed_origins == [
        "https://app.example.com",
        "http://localhost:3000",
        "http://[::1]",
    ]
    assert policy.allowed_methods == ["GET", "POST"]


@given(st.datetimes(timezones=st.timezones()))
def test_times_become_utc_or_are_refused(value: datetime) -> None:
    try:
        key = a_key(expires_at=value)
    except ValidationError:
        assert value.year in (1, 9999)
    else:
        assert key.expires_at == value.astimezone(UTC)
        assert key.expires_at.tzinfo is UTC


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_period_begins_at_midnight_utc(at: datetime) -> None:
    day, month = Period.DAILY.start(at), Period.MONTHLY.start(at)
    assert month <= day <= at < day + timedelta(days=1) or at.date() == datetime.max.date()
    assert (month.day, month.hour, day.date()) == (1, 0, at.date())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_metadata_comes_back_as_it_was_or_is_refused(meta: dict[str, Any]) -> None:
    try:
        key = a_key(meta=meta)
    except ValidationError:
        return
    with SqliteStore(":memory:") as store:
        store.migrate()
        store.keys.create(key)
        assert store.keys.get(key.id).meta == meta


def test_tables_are_validated_by_their_base_alone() -> None:
    assert all(issubclass(table, Table) for table in TABLES.values())


def test_docstrings_of_fields_are_read_where_there_is_source() -> None:
    assert field_docstrings(KeyCreate)["scopes"].startswith("Names of the scopes")
    assert field_docstrings(KeyCreate)["tenant_id"].startswith("Whose it is.")
    made_up = type("MadeUp", (), {"__module__": "nowhere"})
    assert field_docstrings(made_up) == {}
