"""A disk that is full, a file that is gone, damaged or out of reach, amid work: `--only failures`.

Threads create keys, validate and record without a pause. Disaster strikes; what they call then
raises the error that is named for it. When the cause is gone the very next call succeeds, and all
that was ever acknowledged is there, each record of usage once.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from proofs.disasters import DISASTERS, OF_ROOT, Service, Strike

PROMISE = (
    "Whatever befalls the database file, the error is the one that is named for it, nothing that "
    "was acknowledged is lost, and service resumes with the first call after the cause is gone."
)
BROKEN = (
    "connections to a file that had been moved were used on; usage was forgotten when writing it "
    "failed; a full disk was told as another error"
)

ROUNDS, QUICK = 6, 1


def trial(quick: bool = False) -> str:
    """Tells how many disasters there were, and what they raised."""
    seed = 1 if quick else random.randrange(10**6)
    chance, raised = random.Random(seed), 0
    disasters = [each for each in DISASTERS if os.geteuid() == 0 or each not in OF_ROOT]
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        folder = Path(name) / "inner"
        folder.mkdir()
        folder.chmod(0o777)
        service = Service(folder / "keys.db")
        for _ in range(QUICK if quick else ROUNDS):
            for disaster in chance.sample(disasters, len(disasters)):
                try:
                    raised += _befall(service, disaster)
                except AssertionError as error:
                    error.add_note(f"It was {disaster.__name__}, the seed {seed}.")
                    raise
        service.engine.close()
    rounds = QUICK if quick else ROUNDS
    return (
        f"{len(disasters)} kinds of failure, {rounds} times each: {raised:,} calls raised the "
        f"error that is named for it, none another; all {len(service.created):,} keys and "
        f"{service.recorded:,} records are there"
    )


def _befall(service: Service, disaster: Strike) -> int:
    """How many calls it made fail."""
    expected = DISASTERS[disaster]
    service.check()
    with disaster(service):
        if expected:
            service.work()
            service.work()
            errors = list(service.errors)
            assert errors, "nothing failed"
            wrong = [error for error in errors if not isinstance(error, expected)]
            assert not wrong, f"not the error that is named for it: {wrong[0]!r}"
    service.check()
    return len(errors) if expected else 0


def main() -> None:
    """Prints the figure."""
    print(trial())
