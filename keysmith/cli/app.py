"""The `keysmith` command: its groups, and what is about no single noun."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from keysmith.cli import (
    imports,
    keys,
    leaks,
    lifecycle,
    maintain,
    operations,
    policies,
    requests,
    rotations,
    scopes,
)
from keysmith.cli.failures import CommandLine, ExitCode
from keysmith.cli.options import AsJson, DatabaseUrl, RateLimiter, given
from keysmith.cli.output import note, print_json, print_line
from keysmith.cli.session import open_engine
from keysmith.cli.usage import usage
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    # What Typer would print of a bug shows source and values; a plain traceback shows no values.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
keys.app.add_typer(lifecycle.app)
keys.app.add_typer(imports.app)
keys.app.add_typer(leaks.app)
app.add_typer(keys.app, name="keys")
app.add_typer(policies.app, name="policies")
app.add_typer(scopes.app, name="scopes")
app.add_typer(rotations.app, name="rotations")
app.add_typer(requests.app, name="requests")


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"keysmith {version('keysmith')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Issue, validate, rotate, revoke and limit API keys.

    Exit codes: 0 done; 1 refused; 2 wrong usage or input; 3 the store cannot be used.
    """


@app.command()
def migrate(database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False) -> None:
    """Create the database, or bring it to the newest revision of the schema."""
    with open_engine(database_url) as engine:
        engine.store.migrate()
    if as_json:
        print_json({"database_url": database_url})
    else:
        print_line(f"The schema of {database_url} is up to date.")


@app.command()
def serve(
    *,
    rate_limiter: RateLimiter = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on, if not 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on, if not 8000.", min=0, max=65535)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many processes serve, if not 1.", min=1)
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="A proxy's address or network, whose X-Forwarded-For counts; repeatable."
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Who may read /metrics: root (the default), open or off.")
    ] = None,
    audit_log: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where to note what is done, a JSON object a line."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="How to log: text (the default) or json.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="What to log at least: debug, info, warning or error.")
    ] = None,
    shutdown_timeout: Annotated[
        int | None, typer.Option(help="Seconds to wait for requests under way, if not 30.", min=0)
    ] = None,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
) -> None:
    """Serve the HTTP API until stopped. The first start prints a root key, once.

    What is not given here is taken from the environment: KEYSMITH_PORT, KEYSMITH_LOG_FORMAT, …
    """
    try:
        from keysmith.server import (  # noqa: PLC0415  only here is FastAPI
            Settings,
            prepare,
            require_address,
            run,
        )
    except ModuleNotFoundError as error:
        if (error.name or "keysmith").startswith("keysmith"):
            raise
        note(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
    flags = given(
        database_url=database_url,
        rate_limiter_url=rate_limiter,
        host=host,
        port=port,
        workers=workers,
        trusted_proxies=trusted_proxy,
        metrics=metrics,
        audit_log=audit_log,
        log_format=log_format,
        log_level=log_level,
        shutdown_timeout=shutdown_timeout,
    )
    settings = Settings(**flags)
    require_address(settings)
    with open_engine(
        settings.database_url, settings.rate_limiter_url, settings.audit_log
    ) as engine:
        engine.store.migrate()
        engine.health()  # where limits are counted, too, before a root key is shown
        root_key = prepare(engine)
    if root_key is not None:
        print_line(f"Root key: {root_key}")
        note("Shown once; store it now. Send it as the header `Authorization: Bearer <root key>`.")
    del root_key
    run(settings)


app.command()(usage)
app.command()(maintain.maintain)
app.command()(operations.doctor)
app.command()(operations.backup)
app.command()(operations.restore)
