"""`make profile`: where the microseconds of a validation go.

Each stage is timed by itself, with what it would be given. The rest is what lies between them:
calls, comparisons, the dictionary.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.cases import BUFFERED, WARM, drawn_warm
from benchmarks.databases import ADDRESS, SCOPES, hashes, plain, ruled, scattered, usage
from benchmarks.harness import Plan, Side, Timed, alone, drawn, each
from benchmarks.options import DATABASES, Databases, Keys, ProcessorTime, Quick
from benchmarks.workshop import KEYS, Workshop
from keysmith import Engine
from keysmith.clock import utc_now
from keysmith.engine.candidates import Candidate
from keysmith.engine.context import present
from keysmith.engine.limits import CountingRateLimiter, Limits
from keysmith.engine.rules import Rules
from keysmith.raw_keys import Hasher, check_form
from keysmith.stores.credentials import FIND

Stages = dict[str, Side]

_PART = "… of that, "
"""Begins what is part of the stage before."""

_ROUNDS = 5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def warm(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """A key in memory, without a policy."""
    engine, keys = shop.engine(database), scattered(plain(shop.keys), WARM)
    whole = Timed(drawn_warm(engine, keys), each(engine.validate_key))
    return _always(engine, keys), whole


def judged(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """A key in memory, with a policy."""
    engine, keys = shop.engine(database), scattered(ruled(shop.keys), WARM)
    result = engine.validate_key(keys[0], ip=ADDRESS, method="GET")
    rules, limits = Rules.of(result.policy), Limits.of(result.policy)
    if rules is None or limits is None:
        raise ValueError("The policy needs rules and limits.")
    take = CountingRateLimiter(engine.store.counters, utc_now).take
    key_id = result.key.id

    def validate(raw_key: str) -> None:
        engine.validate_key(raw_key, ip=ADDRESS, method="GET", path="/", scopes=SCOPES[:1])

    stages: Stages = {
        **_always(engine, keys),
        "from where, and how?": _repeated(lambda: rules.check(ADDRESS, None, "GET", "/")),
        "how often?": _repeated(lambda: take(key_id, limits, 1)),
    }
    return stages, Timed(drawn_warm(engine, keys), each(validate))


def recorded(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """The record of a request, as far as the request waits for it."""
    engine = shop.engine(database)
    key_id = engine.validate_key(scattered(plain(shop.keys), 1)[0]).key.id
    record = usage(key_id, 1)

    def flushed(count: int) -> range:
        engine.flush()
        return range(count)

    stages: Stages = {
        "make it": _repeated(lambda: usage(key_id, 1)),
        "buffer it": Timed(flushed, each(lambda _: engine.record_usage(record))),
    }
    return stages, Timed(flushed, each(lambda _: engine.record_usage(usage(key_id, 1))))


def cold(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """A key not in memory, without a policy."""
    engine, keys = shop.engine(database, cache_size=0), scattered(plain(shop.keys), shop.keys)
    find, known = engine.store.credentials.find, hashes(keys)
    cursor = sqlite3.connect(database, isolation_level=None).cursor()
    credential = find(known[0])

    def read(key_hash: str) -> None:
        cursor.execute(FIND, {"hash": key_hash}).fetchone()

    stages: Stages = {
        **_always(engine, keys),
        "find it in the store": Timed(drawn(known), each(find)),
        f"{_PART}the statement": Timed(drawn(known), each(read)),
        "make it ready for judging": _repeated(lambda: Candidate(credential, 1)),
    }
    return stages, Timed(drawn(keys), each(engine.validate_key))


def _always(engine: Engine, keys: Sequence[str]) -> Stages:
    version = engine.store.credentials.version
    return {
        "form and checksum": Timed(drawn(keys), each(check_form)),
        "hash": Timed(drawn(keys), each(Hasher().hash)),
        "has anything changed?": _repeated(version),
        "what time is it?": _repeated(lambda: present(utc_now)),
    }


def _repeated(call: Callable[[], object]) -> Side:
    return Timed(range, each(lambda _: call()))


PATHS = (
    ("validate_key, warm", warm),
    ("validate_key, warm, with a policy", judged),
    ("record_usage", recorded),
    ("validate_key, first sight", cold),
)


@app.command()
def main(
    quick: Quick = False,
    processor_time: ProcessorTime = False,
    databases: Databases = DATABASES,
    keys: Keys = KEYS,
) -> None:
    """Prints a table of stages for each way through a validation."""
    console = Console()
    shop = Workshop(databases, keys)
    plan = Plan(seconds=0, rounds=1 if quick else _ROUNDS, processor=processor_time)
    for title, path in PATHS:
        with shop:
            stages, whole = path(shop, shop.copy())
            console.print(_table(title, *_costs(stages, whole, plan)))


def _costs(stages: Stages, whole: Side, plan: Plan) -> tuple[dict[str, float], float]:
    """Microseconds of each stage, and of all together. They take turns, as times drift."""
    time = partial(alone, clock=plan.clock, batch=0.005, batches=5, most=BUFFERED)
    measured = [
        ({name: time(side) for name, side in stages.items()}, time(whole))
        for _ in range(plan.rounds)
    ]
    costs = {name: median(each[name] for each, _ in measured) for name in stages}
    return costs, median(total for _, total in measured)


def _table(title: str, costs: dict[str, float], total: float) -> Table:
    table = Table("stage", "µs", "share", title=title, title_justify="left", box=SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    rest = total - sum(cost for name, cost in costs.items() if not name.startswith(_PART))
    for name, cost in {**costs, "the rest": rest, "the whole call": total}.items():
        table.add_row(name, f"{cost:.2f}", f"{cost / total:.0%}")
    return table


if __name__ == "__main__":
    app()
