"""Delays at random wherever something is called, as a busy machine has them: `make shaken`.

Under them a test that goes by luck fails sooner or later.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent
ODDS = {str(ROOT / "tests"): 0.02, str(ROOT / "keysmith"): 0.001}
LONGEST = 0.1
CHANCE = random.Random()
"""Of its own: Hypothesis sets the common one back for each example."""


def pytest_configure() -> None:
    threading.setprofile(_delay)
    sys.setprofile(_delay)


def pytest_unconfigure() -> None:
    threading.setprofile(None)
    sys.setprofile(None)


def _delay(frame: FrameType, _event: str, _argument: object) -> None:
    code = frame.f_code
    if code.co_name.startswith("<"):
        return  # a lambda or a comprehension: within one statement, and run for each of many
    for folder, odds in ODDS.items():
        if code.co_filename.startswith(folder):
            if CHANCE.random() < odds:
                time.sleep(CHANCE.uniform(0, LONGEST))
            return
