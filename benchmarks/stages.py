"""`make profile`: where the microseconds go.

Each stage is timed by itself, with what it would be given. The rest is what lies between them:
calls, comparisons, the dictionary.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import bare
from benchmarks.cases import BUFFERED, USED, WARM, drawn_warm
from benchmarks.databases import ADDRESS, SCOPES, hashes, key_id, plain, ruled, scattered, usage
from benchmarks.harness import Plan, Side, Timed, alone, drawn, each
from benchmarks.machine import Machine
from benchmarks.options import DATABASES, ROOT, Databases, Keys, ProcessorTime, Quick
from benchmarks.routes import bare_app, empty_app, guarded_app, in_app
from benchmarks.workshop import KEYS, Workshop
from keysmith import Engine, KeyCreate
from keysmith.clock import utc_now
from keysmith.engine.candidates import Candidate
from keysmith.engine.context import present
from keysmith.engine.limits import CountingRateLimiter, Limits
from keysmith.engine.rules import Rules
from keysmith.raw_keys import Hasher, KeyGenerator, check_form
from keysmith.stores.credentials import FIND

Stages = dict[str, Side]

_PART = "… of that, "
"""Begins what is part of the stage before."""

_ROUNDS = 5

PROFILE = "PROFILE.md"

Cells = tuple[str, str, str]
_COLUMNS: Cells = ("stage", "µs", "share")

_EXPLANATION = """\
Each stage is timed by itself, with what it would be given, over and over: within a whole call it
takes longer, as caches hold other things by then. Medians, in microseconds. `make profile` makes
these tables; [RESULTS.md](RESULTS.md) has what they add up to, beside the bare things."""

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
    """The record of a request, until it is in the store: several hundred at a time."""
    engine = shop.engine(database)
    key_ids = [key_id(number) for number in plain(shop.keys)[:USED]]
    made = [usage(of, number) for number, of in enumerate(key_ids)]
    draw = drawn(made)

    def flushed(count: int) -> range:
        engine.flush()
        return range(count)

    def buffered(count: int) -> None:
        for record in draw(count):
            engine.record_usage(record)

    def whole(requests: range) -> None:
        for number in requests:
            engine.record_usage(usage(key_ids[number % USED], number))
        engine.flush()

    stages: Stages = {
        "make it": _repeated(lambda: usage(key_ids[0], 1)),
        "check and buffer it": Timed(flushed, each(lambda _: engine.record_usage(made[0]))),
        "write it, its day and its month": Timed(buffered, lambda _: engine.flush()),
        f"{_PART}sqlite3": bare.insert_usage(shop.copy(), key_ids, aggregates=True),
    }
    return stages, Timed(flushed, whole)


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


def created(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """A key, durable when the call returns."""
    engine = shop.engine(database)
    generator, hash_ = KeyGenerator(), Hasher().hash
    request = KeyCreate(name="Production")
    key = engine.create_key(request).key
    fields = {name: getattr(key, name) for name in type(key).model_fields}

    def transaction() -> None:
        with engine.store.transaction():
            pass

    stages: Stages = {
        "make a raw key, and hash it": _repeated(lambda: hash_(generator.generate("sk", "live"))),
        "make the key, validated": _repeated(lambda: type(key)(**fields)),
        "validate it once more, for the row": _repeated(key.to_row),
        "begin a transaction and end it, with nothing in it": _repeated(transaction),
        "sqlite3: insert and commit": bare.insert_key(shop.copy()),
    }
    return stages, Timed(range, each(lambda _: engine.create_key(request)))


def served(shop: Workshop, database: Path) -> tuple[Stages, Side]:
    """A request through FastAPI, without a server."""
    engine, keys = shop.engine(database), scattered(plain(shop.keys), USED)
    apps = {
        "the bare route": bare_app(),
        "… an empty dependency and an empty middleware": empty_app(),
        "… APIKeyAuth instead of the empty dependency": guarded_app(engine, metered=False),
        "… and UsageMiddleware": guarded_app(engine),
    }
    calls = {name: in_app(shop, app, keys) for name, app in apps.items()}

    def flushed(count: int) -> range:
        engine.flush()
        calls["… and UsageMiddleware"](range(USED))  # what has been forgotten over it is read again
        return range(count)

    stages: Stages = {name: Timed(flushed, call) for name, call in calls.items()}
    return stages, Timed(flushed, calls["… and UsageMiddleware"])


@dataclass(frozen=True, slots=True)
class Way:
    """A way through Keysmith, and the stages on it."""

    title: str
    stages: Callable[[Workshop, Path], tuple[Stages, Side]]
    contained: bool = False
    """Whether a stage contains the one before it, instead of following it."""
    batch: float = 0.005
    """Seconds that a batch should take."""


WAYS = (
    Way("validate_key, warm", warm),
    Way("validate_key, warm, with a policy", judged),
    Way("record_usage", recorded, batch=0.1),
    Way("validate_key, first sight", cold),
    Way("create_key", created, batch=0.1),
    Way("A request through FastAPI", served, contained=True, batch=0.05),
)


@app.command()
def main(
    quick: Quick = False,
    processor_time: ProcessorTime = False,
    output: Annotated[Path | None, typer.Option(help=f"Folder for {PROFILE}.")] = None,
    databases: Databases = DATABASES,
    keys: Keys = KEYS,
) -> None:
    """Prints a table of stages for each way through Keysmith.

    A full run, with default settings, renews the tables in the checkout.
    """
    console = Console()
    shop = Workshop(databases, keys)
    plan = Plan(seconds=0, rounds=1 if quick else _ROUNDS, processor=processor_time)
    tables = []
    for way in WAYS:
        with shop, console.status(f"{way.title} …"):
            stages, whole = way.stages(shop, shop.copy())
            rows = _rows(way, *_costs(stages, whole, plan, way.batch))
        tables.append((way.title, rows))
        console.print(_table(way.title, rows))
    if output is None and (quick, processor_time, keys) == (False, False, KEYS):
        output = ROOT / "benchmarks"
    if output is not None:
        (output / PROFILE).write_text(_markdown(tables, Machine.here()))


def _costs(stages: Stages, whole: Side, plan: Plan, batch: float) -> tuple[dict[str, float], float]:
    """Microseconds of each stage, and of all together. They take turns, as times drift."""
    time = partial(alone, clock=plan.clock, batch=batch, batches=5, most=BUFFERED)
    measured = [
        ({name: time(side) for name, side in stages.items()}, time(whole))
        for _ in range(plan.rounds)
    ]
    costs = {name: median(each[name] for each, _ in measured) for name in stages}
    return costs, median(total for _, total in measured)


def _rows(way: Way, costs: dict[str, float], total: float) -> list[Cells]:
    """Stage, microseconds and share."""
    if not way.contained:
        stages = sum(cost for name, cost in costs.items() if not name.startswith(_PART))
        costs = {**costs, "the rest": total - stages}
    return [
        (name, f"{cost:.2f}", f"{cost / total:.0%}")
        for name, cost in {**costs, "the whole": total}.items()
    ]


def _table(title: str, rows: Sequence[Cells]) -> Table:
    table = Table(*_COLUMNS, title=title, title_justify="left", box=SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(tables: Sequence[tuple[str, Sequence[Cells]]], machine: Machine) -> str:
    lines = ["# Where the time goes", "", _EXPLANATION]
    for title, rows in tables:
        cells = [_COLUMNS, ("-", "-:", "-:"), *rows]
        lines += ["", f"## {title}", "", *(f"| {' | '.join(each)} |" for each in cells)]
    return "\n".join([*lines, "", f"Measured on {machine}.", ""])


if __name__ == "__main__":
    app()
