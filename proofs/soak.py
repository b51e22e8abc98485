"""Ten seconds of sixteen threads against a process that rotates their keys: `make soak`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.test_soak import THREADS, Soak

SECONDS = 10.0


def main() -> None:
    """The seconds may be given as an argument."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        soaked = Soak(Path(folder) / "keys.db").run(seconds)
    print(
        f"{THREADS} threads, {seconds:.0f} s: {soaked.validated} validated and recorded, "
        f"none lost; {soaked.rotated} rotations, each seen at once; "
        f"{soaked.growth / 2**20:.1f} MiB more at the end than after a third of the time"
    )
    assert soaked.growth < 50 * 2**20


if __name__ == "__main__":
    main()
