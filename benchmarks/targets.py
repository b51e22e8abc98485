"""What is measured, against what, and how much it may cost: the one place that says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the ratio of two times, or, if it is a bound from below, of two rates."""

    limit: float
    from_below: bool = False

    def met(self, ratio: float) -> bool:
        """Whether the ratio keeps to it."""
        return ratio >= self.limit if self.from_below else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.from_below else '≤'} {self.limit:.2f}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table."""

    name: str
    work: str
    against: str
    target: Target | None = None
    rates: bool = False
    """Whether the two are shown as so many a second instead of microseconds each."""
    why: str = ""
    """What it takes to fall short of the target, where that is known."""


LOOKUP = "sqlite3: one key by its hash"

ROWS = (
    Row("validate_warm", "validate_key, warm, no policy", LOOKUP, Target(0.6)),
    Row(
        "validate_ruled",
        "… policy, IP, scopes, rate limit; last use and usage buffered",
        LOOKUP,
        Target(1.5),
        why="to count with other processes and to validate a record cost more than a lookup does",
    ),
    Row("validate_sustained", "… and all of it written, too", LOOKUP),
    Row(
        "validate_cold",
        "… first sight of a key",
        "sqlite3: … with its scopes",
        Target(3),
        why="half of it is the statement, which looks for outgoing secrets and policies, too",
    ),
    Row(
        "wrong_checksum",
        "… a wrong checksum, refused",
        LOOKUP,
        Target(0.2),
        why="a refusal empties the frames that it leaves, so that no error tracker shows raw keys",
    ),
    Row(
        "create_key",
        "create_key",
        "sqlite3: insert and commit, synchronous FULL",
        Target(2),
        why="SQLAlchemy's transaction and two validations add as much again",
    ),
    Row(
        "usage",
        "record_usage … flush: rows and aggregates",
        "sqlite3: executemany of the rows",
        Target(0.6, from_below=True),
        rates=True,
        why="to check records and to add up percentiles costs as much as to write the rows",
    ),
    Row(
        "usage_floor",
        "… sqlite3: executemany of rows, and of days and months without percentiles",
        "sqlite3: executemany of the rows",
        rates=True,
    ),
    Row("async_warm", "AsyncEngine.validate_key, warm", "Engine.validate_key, warm", Target(1.3)),
    Row(
        "fastapi",
        "FastAPI route with APIKeyAuth and UsageMiddleware, in process",
        "the bare route",
        Target(0.85, from_below=True),
        rates=True,
        why="an empty dependency and an empty middleware fall short, too: fastapi_floor",
    ),
    Row(
        "fastapi_wrk",
        "… behind uvicorn, asked by wrk",
        "the bare route",
        Target(0.85, from_below=True),
        rates=True,
        why="most of that goes to what asks nothing and writes rows as they are: fastapi_wrk_floor",
    ),
    Row(
        "fastapi_wrk_floor",
        "… with an empty dependency, and rows that sqlite3 writes as they are",
        "the bare route",
        rates=True,
    ),
    Row(
        "fastapi_floor",
        "… with an empty dependency and middleware instead, in process",
        "the bare route",
        rates=True,
    ),
    Row("scale_warm", "validate_key, warm, among 1,000,000 keys", "… among 1,000", Target(1.2)),
    Row(
        "scale_cold",
        "… first sight of a key",
        "… among 1,000",
        Target(1.2),
        why="so does SQLite by itself: scale_floor",
    ),
    Row("scale_floor", "… sqlite3: one key with its scopes, among 1,000,000", "… among 1,000"),
    Row("keyshield_cached", "keyshield 2.0.1: verify_key, cached, no delays", LOOKUP),
    Row("keyshield_uncached", "… not cached", LOOKUP),
    Row("drf_api_key", "djangorestframework-api-key 3.1: is_valid", LOOKUP),
)

BY_NAME = {row.name: row for row in ROWS}
