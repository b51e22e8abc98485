"""Rotations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from keysmith import ConflictError, NotFoundError, RotationNotFoundError, RotationReason, Store
from keysmith.testing.contract.samples import START, a_hash, a_key, a_rotation, ids


class TestRotations:
    def test_round_trip_and_lists(self, store: Store) -> None:
        key, other = a_key(store), a_key(store, tenant_id="acme", app_id="shop")
        first = a_rotation(store, key, reason=RotationReason.SCHEDULED, rotated_by="cron")
        second = a_rotation(store, key)
        third = a_rotation(store, other, tenant_id="acme")
        assert store.rotations.get(first.id).to_row() == first.to_row()
        assert store.rotations.get_by_old_hash(first.old_key_hash).id == first.id
        assert ids(store.rotations.list()) == [third.id, second.id, first.id]
        assert ids(store.rotations.list(limit=1, after=third.id)) == [second.id]
        assert ids(store.rotations.list(key_id=key.id)) == [second.id, first.id]
        assert ids(store.rotations.list(tenant_id="acme")) == [third.id]
        assert ids(store.rotations.list(app_id="shop")) == [third.id]
        assert ids(store.rotations.list(reason=RotationReason.SCHEDULED)) == [first.id]
        assert store.rotations.latest_for_key(key.id).id == second.id

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        key = a_key(store)
        rotation = a_rotation(store, key)
        store.keys.delete(key.id)
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.rotations.get(rotation.id),
            lambda: store.rotations.get_by_old_hash(rotation.old_key_hash),
            lambda: store.rotations.get_by_request(a_hash()),
            lambda: store.rotations.latest_for_key(key.id),
            lambda: store.rotations.update(rotation),
        )
        for call in calls:
            with pytest.raises(RotationNotFoundError):
                call()
        with pytest.raises(NotFoundError):
            a_rotation(store, key)

    def test_an_old_hash_is_rotated_out_once(self, store: Store) -> None:
        key = a_key(store)
        rotation = a_rotation(store, key)
        with pytest.raises(ConflictError):
            a_rotation(store, key, old_key_hash=rotation.old_key_hash)

    def test_a_request_rotates_once(self, store: Store) -> None:
        rotation = a_rotation(store, a_key(store), request_token=a_hash())
        assert store.rotations.get_by_request(str(rotation.request_token)).id == rotation.id
        with pytest.raises(ConflictError):
            a_rotation(store, a_key(store), request_token=rotation.request_token)

    def test_grace(self, store: Store) -> None:
        key, other = a_key(store), a_key(store)
        later = a_rotation(store, key, grace_ends=START + timedelta(hours=2))
        sooner = a_rotation(store, key, grace_ends=START + timedelta(hours=1))
        ended = a_rotation(store, key, grace_ends=START)
        theirs = a_rotation(store, other, grace_ends=START + timedelta(hours=3))
        pending = store.rotations.list_pending_grace
        assert ids(pending(START)) == [sooner.id, later.id, theirs.id]
        assert ids(store.rotations.list_ended_grace(START)) == [ended.id]
        ended.grace_closed = True
        store.rotations.update(ended)
        assert store.rotations.list_ended_grace(START) == []
        assert store.rotations.end_grace(key.id, now=START) == 2
        assert ids(pending(START)) == [theirs.id]
        assert ids(store.rotations.list_ended_grace(START)) == [later.id, sooner.id]

    def test_ended_grace_may_be_of_one_tenant_and_of_so_many(self, store: Store) -> None:
        key, other = a_key(store, app_id="shop"), a_key(store, tenant_id="acme", app_id="shop")
        later = a_rotation(store, key, grace_ends=START)
        sooner = a_rotation(store, key, grace_ends=START - timedelta(hours=2))
        theirs = a_rotation(store, other, tenant_id="acme", grace_ends=START - timedelta(hours=1))
        ended = store.rotations.list_ended_grace
        assert ids(ended(START)) == ids(ended(START, app_id="shop"))
        assert ids(ended(START)) == [sooner.id, theirs.id, later.id]
        assert ids(ended(START, tenant_id="acme")) == [theirs.id]
        assert ids(ended(START, tenant_id="default", limit=1)) == [sooner.id]
        assert ids(ended(START, tenant_id="acme", app_id="blog")) == []
