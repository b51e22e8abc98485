"""Limits as a caller of `validate_key` meets them: results, errors, costs, hooks, limiters."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keysmith import (
    AsyncEngine,
    Engine,
    IPNotAllowedError,
    KeyCreate,
    KeysmithError,
    Limits,
    PolicyCreate,
    PolicyUpdate,
    QuotaExceededError,
    RateLimitedError,
    RateLimiter,
    RateLimitStatus,
    SqliteStore,
    StoreUnavailableError,
)
from tests.conftest import START, Recorder, TurnableClock, mistyped

Limited = Callable[..., str]


@pytest.fixture
def limited(engine: Engine) -> Limited:
    """Makes a key whose policy has these fields; gives its raw key."""

    def make(**fields: Any) -> str:
        policy = engine.create_policy(PolicyCreate(name="p", **fields))
        return engine.create_key(KeyCreate(name="k", policy_id=policy.id)).raw_key

    return make


def refused(engine: Engine, raw_key: str, **request: Any) -> KeysmithError:
    with pytest.raises(KeysmithError) as caught:
        engine.validate_key(raw_key, **request)
    return caught.value


class TestResults:
    def test_what_is_left_of_a_rate_limit(
        self, engine: Engine, clock: TurnableClock, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=5, rate_limit_window=timedelta(seconds=32))
        status = engine.validate_key(raw_key, cost=2).rate_limit
        assert status is not None
        assert (status.limit, status.remaining) == (5, 3)
        assert START + timedelta(seconds=32) < status.resets_at <= START + timedelta(seconds=33)
        clock.turn(seconds=10)
        later = engine.validate_key(raw_key, cost=0).rate_limit
        assert later == status, "asking costs nothing"
        clock.now = status.resets_at
        empty = engine.validate_key(raw_key, cost=0).rate_limit
        assert empty == RateLimitStatus(5, 5, clock.now)
        assert engine.validate_key(raw_key, cost=5).rate_limit.remaining == 0  # type: ignore[union-attr]

    def test_without_a_rate_limit_there_is_no_status(
        self, engine: Engine, limited: Limited
    ) -> None:
        raw_key = limited(burst_limit=5, daily_quota=5, monthly_quota=5)
        assert engine.validate_key(raw_key).rate_limit is None

    def test_the_rest_of_a_result_is_as_without_limits(
        self, engine: Engine, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=5)
        result = engine.validate_key(raw_key)
        engine.rotate_key(result.key.id)
        rotated = engine.validate_key(raw_key)
        assert rotated.rotated
        assert rotated.grace_ends == START + timedelta(hours=24)
        assert rotated.policy is not None
        assert (rotated.policy.rate_limit, rotated.rate_limit.remaining) == (5, 3)  # type: ignore[union-attr]

    def test_errors_tell_how_long_to_wait(
        self, engine: Engine, clock: TurnableClock, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=1, burst_limit=1)
        engine.validate_key(raw_key)
        error = refused(engine, raw_key)
        assert isinstance(error, RateLimitedError)
        assert 60 < error.retry_after < 62, "the longer of both waits"
        too_much = refused(engine, raw_key, cost=2)
        assert "never succeeds: the limit is 1" in str(too_much)
        assert isinstance(too_much, RateLimitedError)
        assert 60 < too_much.retry_after < 62, "when all is free again"

    def test_rate_limits_come_before_quotas_and_both_after_the_rules(
        self, engine: Engine, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=1, daily_quota=1, allowed_ips=["10.0.0.1"])
        engine.validate_key(raw_key, ip="10.0.0.1")
        assert isinstance(refused(engine, raw_key, ip="10.0.0.1"), RateLimitedError)
        assert isinstance(refused(engine, raw_key, ip="10.0.0.2"), IPNotAllowedError)

    def test_the_secrets_of_a_key_and_its_tenant_s_engine_count_together(
        self, engine: Engine, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=3)
        key = engine.validate_key(raw_key).key
        renewed = engine.rotate_key(key.id).raw_key
        engine.validate_key(renewed)
        engine.for_tenant("default").validate_key(raw_key)
        assert isinstance(refused(engine, renewed), RateLimitedError)

    def test_a_limit_that_is_changed_keeps_what_was_counted(
        self, engine: Engine, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=2, daily_quota=3)
        policy = engine.validate_key(raw_key).policy
        assert policy is not None
        engine.update_policy(policy.id, PolicyUpdate(rate_limit=0))
        engine.validate_key(raw_key)
        engine.update_policy(policy.id, PolicyUpdate(rate_limit=2))
        engine.validate_key(raw_key)
        assert isinstance(refused(engine, raw_key), RateLimitedError)
        engine.update_policy(policy.id, PolicyUpdate(rate_limit=100))
        assert isinstance(refused(engine, raw_key), QuotaExceededError)


class TestCosts:
    @pytest.mark.parametrize("cost", [-1, True, False, 1.0, "1", None, 10**15 + 1, 1 + 0j, [1]])
    @pytest.mark.parametrize("fields", [{}, {"rate_limit": 5}])
    def test_only_whole_numbers_within_reason(
        self, engine: Engine, limited: Limited, cost: Any, fields: dict[str, int]
    ) -> None:
        raw_key = limited(**fields)
        with pytest.raises(ValidationError):
            engine.validate_key(raw_key, cost=cost)
        assert engine.validate_key(raw_key, cost=5)

    def test_nothing_is_refused_that_costs_nothing(self, engine: Engine, limited: Limited) -> None:
        raw_key = limited(rate_limit=1, burst_limit=1, daily_quota=1, monthly_quota=1)
        engine.validate_key(raw_key)
        for _ in range(3):
            assert engine.validate_key(raw_key, cost=0).rate_limit.remaining == 0  # type: ignore[union-attr]
        refused(engine, raw_key)


@pytest.mark.usefixtures("patient")
class TestHooks:
    @pytest.mark.parametrize(
        ("fields", "hook"),
        [
            ({"rate_limit": 1}, "on_key_rate_limited"),
            ({"burst_limit": 1}, "on_key_rate_limited"),
            ({"daily_quota": 1}, "on_key_quota_exceeded"),
            ({"monthly_quota": 1}, "on_key_quota_exceeded"),
        ],
    )
    def test_each_refusal_is_told_once(
        self,
        engine: Engine,
        recorder: Recorder,
        limited: Limited,
        fields: dict[str, int],
        hook: str,
    ) -> None:
        raw_key = limited(**fields)
        key = engine.validate_key(raw_key).key
        recorder.events.clear()
        for times in (1, 2, 3):
            refused(engine, raw_key)
            told = [arguments for name, arguments in recorder.events if name == hook]
            assert told == [(key,)] * times
        assert set(recorder.names()) == {hook, "on_key_validation_failed"}

        recorder.events.clear()
        engine.validate_key(raw_key, cost=0)
        refused(engine, mistyped(raw_key))
        assert set(recorder.names()) == {"on_key_validated", "on_key_validation_failed"}

    def test_also_when_an_event_loop_asks(
        self, engine: Engine, recorder: Recorder, limited: Limited
    ) -> None:
        raw_key = limited(rate_limit=1)

        async def ask() -> None:
            asynchronous = AsyncEngine(engine)
            await asynchronous.validate_key(raw_key)
            for _ in range(2):
                with pytest.raises(RateLimitedError):
                    await asynchronous.validate_key(raw_key)

        asyncio.run(ask())
        assert recorder.names().count("on_key_rate_limited") == 2


class Own:
    """A limiter of the host's: it lets the first request through, and notes where it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Limits, int, str]] = []

    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        self.asked.append((key_id, limits, cost, threading.current_thread().name))
        if len(self.asked) > 1:
            raise RateLimitedError(retry_after=7)
        return RateLimitStatus(9, 8, START)


class Immediate(Own):
    immediate = True


class OutOfReach(Immediate):
    def take(self, key_id: str, limits: Limits, cost: int) -> RateLimitStatus | None:
        self.asked.append((key_id, limits, cost, ""))
        raise StoreUnavailableError("It is out of reach.")


class TestLimiters:
    def test_one_of_the_host_s_own(self, memory: SqliteStore, recorder: Recorder) -> None:
        own = Own()
        limiter: RateLimiter = own
        with Engine(memory, rate_limiter=limiter, plugins=[recorder]) as engine:
            policy = engine.create_policy(PolicyCreate(name="p", rate_limit=3, monthly_quota=4))
            created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
            result = engine.validate_key(created.raw_key, cost=2)
            assert result.rate_limit == RateLimitStatus(9, 8, START)
            [(key_id, limits, cost, _)] = own.asked
            assert (key_id, cost) == (created.key.id, 2)
            assert limits == Limits(3, timedelta(minutes=1), 0, 0, 4)
            error = refused(engine, created.raw_key)
            assert isinstance(error, RateLimitedError)
            assert error.retry_after == 7
            assert recorder.names().count("on_key_rate_limited") == 1

    def test_is_not_asked_where_there_are_no_limits(self, memory: SqliteStore) -> None:
        own = Own()
        with Engine(memory, rate_limiter=own) as engine:
            policy = engine.create_policy(PolicyCreate(name="p", allowed_methods=["GET"]))
            for fields in ({}, {"policy_id": policy.id}):
                created = engine.create_key(KeyCreate(name="k", **fields))
                assert engine.validate_key(created.raw_key, method="GET").rate_limit is None
        assert own.asked == []

    def test_one_that_is_out_of_reach_is_asked_once(self, memory: SqliteStore) -> None:
        own = OutOfReach()
        with Engine(memory, rate_limiter=own) as engine:
            policy = engine.create_policy(PolicyCreate(name="p", rate_limit=3))
            raw_key = engine.create_key(KeyCreate(name="k", policy_id=policy.id)).raw_key

            async def ask() -> None:
                for asked in (1, 2):
                    with pytest.raises(StoreUnavailableError):
                        await AsyncEngine(engine).validate_key(raw_key)
                    assert len(own.asked) == asked

            asyncio.run(ask())

    @pytest.mark.usefixtures("patient")
    @pytest.mark.parametrize(("kind", "on_loop"), [(Own, False), (Immediate, True)])
    def test_one_that_may_wait_does_not_hold_up_an_event_loop(
        self, memory: SqliteStore, kind: type[Own], on_loop: bool
    ) -> None:
        own = kind()
        with Engine(memory, rate_limiter=own) as engine:
            policy = engine.create_policy(PolicyCreate(name="p", rate_limit=3))
            created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))

            async def ask() -> None:
                asynchronous = AsyncEngine(engine)
                await asynchronous.validate_key(created.raw_key)
                with pytest.raises(RateLimitedError):
                    await asynchronous.validate_key(created.raw_key)

            asyncio.run(ask())
        loop = threading.current_thread().name
        assert (own.asked[1][3] == loop) is on_loop

    def test_the_default_counts_in_a_file_beside_the_database(self, tmp_path: Path) -> None:
        with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
            engine.store.migrate()
            policy = engine.create_policy(PolicyCreate(name="p", rate_limit=1))
            created = engine.create_key(KeyCreate(name="k", policy_id=policy.id))
            engine.validate_key(created.raw_key)
            (tmp_path / "keys.db-counters").write_text("somebody else's")
            engine.store.counters.close()
            with pytest.raises(KeysmithError, match="Remove it"):
                engine.validate_key(created.raw_key)

    def test_a_name_that_is_no_uri(self, memory: SqliteStore) -> None:
        with pytest.raises(StoreUnavailableError, match="redis://localhost"):
            Engine(memory, rate_limiter="redis")
