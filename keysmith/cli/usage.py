"""`keysmith usage`: requests and errors over time, as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from keysmith.cli.options import (
    AsJson,
    DatabaseUrl,
    OfApp,
    OfKey,
    OfTenant,
    Since,
    Until,
    duration_option,
    refuse_both,
)
from keysmith.cli.output import dump, note, print_json, print_objects, print_table
from keysmith.cli.session import open_engine
from keysmith.clock import utc_now
from keysmith.models import Period, UsageAggregatePublic, UsageSummary
from keysmith.stores import DEFAULT_DATABASE_URL
from keysmith.stores.base import UsageFilters

BAR_WIDTH = 48
COLUMNS = ("key_id", "period_start", "request_count", "error_count", "p50_latency", "p99_latency")
_NOTHING = {
    "request_count": 0,
    "error_count": 0,
    "total_latency": 0.0,
    "p50_latency": 0.0,
    "p99_latency": 0.0,
}
DEFAULT_LAST = {Period.DAILY: timedelta(days=30), Period.MONTHLY: timedelta(days=366)}


def usage(
    *,
    tenant: OfTenant = None,
    app: OfApp = None,
    key: OfKey = None,
    period: Annotated[Period, typer.Option(help="What each line adds up.")] = Period.DAILY,
    by_key: Annotated[
        bool, typer.Option("--by-key", help="List each key by itself, newest first.")
    ] = False,
    last: Annotated[
        timedelta | None,
        duration_option("--last", "How far back: 30 days, or a year of months, if left out."),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many lines, with --by-key.")
    ] = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Plot requests and errors over time, by days or months of UTC."""
    refuse_both(last=last, since=since)
    if limit is not None and not by_key:
        raise typer.BadParameter("is for lists: give --by-key", param_hint="'--limit'")
    since = period.start(since or _ago(last or DEFAULT_LAST[period]))
    until = until or _next(period, period.start(utc_now()))
    whose: UsageFilters = {
        "tenant_id": tenant,
        "app_id": app,
        "key_id": key,
        "since": since,
        "until": until,
    }
    nothing = f"Nothing was recorded since {since:%Y-%m-%d}."
    with open_engine(database_url) as engine:
        if key is not None:
            engine.get_key(key)  # an unknown one is an error, and not an empty plot
        if by_key:
            listed = engine.aggregate_usage(period=period, limit=limit, **whose)
            public = [UsageAggregatePublic.model_validate(each) for each in listed]
            print_objects(public, COLUMNS, as_json=as_json, empty=nothing)
            return
        found = engine.summarize_usage(period=period, **whose)
    if as_json:
        print_json([dump(each) for each in found])
    elif found:
        print_table(_plot(_with_gaps(found)))
    else:
        note(nothing)


def _ago(length: timedelta) -> datetime:
    try:
        return utc_now() - length
    except OverflowError:
        raise typer.BadParameter("reaches back before the year 1", param_hint="'--last'") from None


def _with_gaps(found: Sequence[UsageSummary]) -> list[UsageSummary]:
    """The periods from the first to the last; those without requests are no time left out."""
    by_start = {each.period_start: each for each in found}
    period, start, last = found[0].period, found[0].period_start, found[-1].period_start
    filled = []
    while start < last:
        filled.append(
            by_start.get(start) or found[0].model_copy(update=_NOTHING | {"period_start": start})
        )
        start = _next(period, start)
    return [*filled, found[-1]]


def _next(period: Period, start: datetime) -> datetime:
    return period.start(start + timedelta(days=32 if period is Period.MONTHLY else 1))


def _plot(summaries: Sequence[UsageSummary]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Month" if summaries[0].period is Period.MONTHLY else "Day")
    for heading in ("Requests", "Errors", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    table.add_column(Text.assemble("█ answered ", ("▒ errors", "red")))
    most = max(each.request_count for each in summaries)
    for each in summaries:
        table.add_row(
            _day(each.period, each.period_start),
            f"{each.request_count:,}",
            f"{each.error_count:,}",
            f"{each.p50_latency:.1f}",
            f"{each.p99_latency:.1f}",
            _bar(each.request_count, each.error_count, most),
        )
    return table


def _day(period: Period, start: datetime) -> str:
    return f"{start:%Y-%m}" if period is Period.MONTHLY else f"{start:%Y-%m-%d}"


def _bar(requests: int, errors: int, most: int) -> Text:
    """A bar in proportion; whatever there was is at least one character."""
    if not requests:
        return Text()
    width = max(1, round(BAR_WIDTH * requests / most))
    failed = max(1, round(width * errors / requests)) if errors else 0
    return Text.assemble("█" * (width - failed), ("▒" * failed, "red"))
