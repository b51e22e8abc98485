"""The command line: each command calls the engine and prints."""

from __future__ import annotations

import sys

from keysmith.extras import from_extra


def main() -> None:
    """Runs `keysmith`, and exits with its code."""
    try:
        with from_extra("cli"):
            from keysmith.cli.app import app  # noqa: PLC0415  so that what is missing can be told
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    app(prog_name="keysmith")
