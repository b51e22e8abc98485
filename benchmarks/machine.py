"""The machine that measured, as far as it matters and does not tell whose it is."""

from __future__ import annotations

import os
import platform
import sqlite3
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, versions, and how busy it was before."""

    processor: str
    cores: int
    load: float
    """Processes that wanted to run, on average over the last minute."""
    system: str
    python: str
    sqlite: str
    keysmith: str
    fastapi: str

    @classmethod
    def here(cls) -> Self:
        """The machine of this process."""
        return cls(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
            system=f"{platform.system()} {platform.release().partition('-')[0]}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            sqlite=sqlite3.sqlite_version,
            keysmith=version("keysmith"),
            fastapi=version("fastapi"),
        )

    @property
    def busy(self) -> bool:
        """Whether others are likely to have disturbed the measurements."""
        return self.load > self.cores / 2

    def __str__(self) -> str:
        return (
            f"{self.processor} with {self.cores} cores (load {self.load} at the start), "
            f"{self.system}, {self.python}, SQLite {self.sqlite}, FastAPI {self.fastapi}, "
            f"Keysmith {self.keysmith}"
        )


def _processor() -> str:
    """The model, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
