"""The command line: each command calls the engine and prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs `keysmith`, and exits with its code."""
    try:
        from keysmith.cli.app import app  # noqa: PLC0415  so that what is missing can be told
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write("The command line is the extra `cli`: install Keysmith with it.\n")
        sys.exit(2)
    app(prog_name="keysmith")
