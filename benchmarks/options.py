"""Options that the programs here share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parent.parent
DATABASES = ROOT / "build" / "bench"

Quick = Annotated[bool, typer.Option("--quick", help="Measure briefly, and roughly.")]
ProcessorTime = Annotated[
    bool,
    typer.Option(
        "--processor-time",
        help="Count the time that the processor spent, not that which passed: for a busy machine. "
        "Waiting, as for the disk, is left out.",
    ),
]
Databases = Annotated[Path, typer.Option(help="Folder that keeps databases for the next run.")]
Keys = Annotated[int, typer.Option(help="Keys in the database. Targets are meant for the default.")]
