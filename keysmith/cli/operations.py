"""`keysmith doctor`, `backup` and `restore`: for whoever looks after the database."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from keysmith.cli.failures import ExitCode
from keysmith.cli.options import AsJson, DatabaseUrl
from keysmith.cli.output import confirm, note, print_json, print_line, progress_bar
from keysmith.clock import utc_now
from keysmith.stores import DEFAULT_DATABASE_URL, open_store
from keysmith.stores.sqlite_checkup import Finding, Verdict, check_up

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.PROBLEM: "bold red"}
_WIDTH = 12

BackupFile = Annotated[Path, typer.Argument(metavar="PATH", help="The file of the backup.")]


def doctor(database_url: DatabaseUrl = DEFAULT_DATABASE_URL, as_json: AsJson = False) -> None:
    """Look whether all is well with the database, and say what to do. It changes nothing.

    The exit code is 1 if there is a problem.
    """
    with open_store(database_url) as store:
        findings = check_up(store, utc_now())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print_finding(finding)
    if any(finding.verdict is Verdict.PROBLEM for finding in findings):
        raise typer.Exit(ExitCode.REFUSED)


def backup(
    path: BackupFile,
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Copy the database into a file, also while services use it."""
    with open_store(database_url) as store, progress_bar("Copying") as progress:
        store.backup(path, overwrite=force, progress=progress)
    size = path.stat().st_size
    if as_json:
        print_json({"path": str(path), "bytes": size})
    else:
        print_line(f"Copied {database_url} into {path}: {size:,} bytes, checked.")


def restore(
    path: BackupFile,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Put a backup in place of all that is in the database, also while services use it."""
    if not yes:
        note("Everything that was written since the backup will be gone, revocations too.")
        confirm(f"Replace {database_url} with {path}?")
    with open_store(database_url) as store, progress_bar("Copying") as progress:
        store.restore(path, progress=progress)
    if as_json:
        print_json({"database_url": database_url, "path": str(path)})
    else:
        print_line(f"{database_url} is what {path} holds, at the newest revision.")


def _print_finding(finding: Finding) -> None:
    verdict = Text(finding.verdict.ljust(_WIDTH), _STYLES[finding.verdict])
    print_line(Text.assemble(verdict, finding.check.ljust(_WIDTH), finding.found))
    if finding.advice:
        print_line(" " * 2 * _WIDTH + finding.advice, "bold")
