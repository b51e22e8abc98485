"""Tools that are no part of the development environment, each set in one of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def environment(name: str, *tools: str) -> Path:
    """The folder of the programs of a virtual environment with these tools, made when needed."""
    folder = Path("build") / name
    ready, wanted = folder / ".ready", "\n".join(tools)
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", *tools]
        subprocess.run(pip, check=True, capture_output=True)
        ready.write_text(wanted)
    return (folder / "bin").absolute()
