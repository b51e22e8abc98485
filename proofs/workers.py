"""Several processes that serve one file: quotas are exact, a stop loses nothing: `make workers`.

Ten thousand requests for a key with a quota of a thousand; then SIGTERM amid the load, ten times.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.test_workers import assert_a_quota_is_exact, assert_a_stop_loses_nothing

WORKERS = 4
REQUESTS = 10_000
QUOTA = 1_000
STOPS = 10


def main() -> None:
    """How many processes serve may be given as an argument."""
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else WORKERS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rate = assert_a_quota_is_exact(folder / "quota", workers, REQUESTS, QUOTA)
        print(
            f"{workers} processes: of {REQUESTS} requests exactly {QUOTA} were granted, and are in "
            f"the usage; {rate:.0f} a second"
        )
        answered = sum(
            assert_a_stop_loses_nothing(folder / str(number), workers, 300 * number)
            for number in range(1, STOPS + 1)
        )
        print(f"stopped {STOPS} times amid the load: all {answered} that were granted are there")


if __name__ == "__main__":
    main()
