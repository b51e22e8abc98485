"""Nine readers of what strangers send, fuzzed: `make torture ARGS="--only fuzz"`.

Atheris, which is guided by coverage, lives in an environment of its own, build/fuzz.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from proofs.environments import environment
from proofs.fuzzing import TARGETS, Target, at_length, by_chance, try_one

PROMISE = (
    "Whatever a stranger sends as a key, a header, an address, a path, an origin, a duration or a "
    "cursor is read rightly or refused with a documented error, within a second of "
    "the processor's time."
)
BROKEN = (
    "`*` in a path glob matched an empty segment; `parse_duration` let `OverflowError` out; the "
    "first address of X-Forwarded-For was believed; spaces in Forwarded took the square of their "
    "time"
)

TOOLS = ("atheris==3.0.0",)
SCRIPT = """
import sys
import atheris
with atheris.instrument_imports(include=["keysmith", "urllib.parse", "ipaddress"]):
    from proofs import fuzzing
fuzzing.fuzz(atheris, *sys.argv[1:])
"""

SECONDS, BRIEFLY = 8, 0.15
"""For each target."""

LONG_ONES = 20
"""Long inputs for each target, in brief."""


def trial(quick: bool = False) -> str:
    """Tells how many inputs were tried. With `quick` they are made by chance alone."""
    seed = random.randrange(1, 10**6)
    tried = _by_chance(seed) if quick else _guided(seed)
    how = "" if quick else ", guided by coverage,"
    return f"{tried:,} inputs{how} to {len(TARGETS)} readers (seed {seed}): each read or refused"


def _by_chance(seed: int) -> int:
    chance, tried = random.Random(seed), 0
    for target in TARGETS:
        end = time.monotonic() + BRIEFLY
        while time.monotonic() < end:
            for data in by_chance(target, chance, 10):
                try_one(target, data)
                tried += 1
        for data in chance.sample(list(at_length(target)), LONG_ONES):
            try_one(target, data)
            tried += 1
    return tried


def _guided(seed: int) -> int:
    [libraries] = environment("fuzz", *TOOLS).parent.glob("lib/python*/site-packages")
    with ThreadPoolExecutor(2) as several:
        tried = sum(several.map(partial(_fuzz, libraries, seed), TARGETS))
    for target in TARGETS:
        for data in at_length(target):
            try_one(target, data)
            tried += 1
    return tried


def _fuzz(libraries: Path, seed: int, target: Target) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, target.__name__, str(SECONDS), str(seed)],
        env={**os.environ, "PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = re.search(r"Done (\d+) runs", done.stderr)
    assert found, f"seed {seed}: {_told(done.stdout + done.stderr)}"
    assert done.returncode == 0, f"seed {seed}: {_told(done.stdout + done.stderr)}"
    return int(found[1])


def _told(shown: str) -> str:
    """The line that says what went wrong."""
    lines = [line for line in shown.splitlines() if "AssertionError" in line or "ERROR" in line]
    return lines[0] if lines else shown[-2000:]


def main() -> None:
    """Prints the figure."""
    print(trial())


if __name__ == "__main__":
    main()
