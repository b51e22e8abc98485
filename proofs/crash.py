"""Two hundred kills at random moments: `make crash`."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.test_crash import assert_nothing_acknowledged_is_lost

TIMES = 200


def main() -> None:
    """Says with which seed, so that it can be repeated."""
    seed = random.randrange(10**6)
    with tempfile.TemporaryDirectory() as folder:
        count = assert_nothing_acknowledged_is_lost(Path(folder), TIMES, seed)
    print(f"killed {TIMES} times (seed {seed}); {count} records are there, and add up")


if __name__ == "__main__":
    main()
