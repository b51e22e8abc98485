"""Trial: small mistakes, of which the tests must notice nearly all. See `proofs.mutants`."""

from __future__ import annotations

import ast
import random
from pathlib import Path

from proofs.hunting import run
from proofs.mutants import figure, sample

PROMISE = "Of small mistakes in the engine and the stores, the tests notice nine in ten."
BROKEN = "the tests of rules, limits and rotation were left out"

SAMPLE = 150
"""Mistakes that are made: `make mutants` makes them all."""


def trial(quick: bool = False) -> str:
    """Tries a sample. With `quick` none is tried, but each is one that can be."""
    seed = random.randrange(10**6)
    if not quick:
        return figure(run(sample(SAMPLE, seed)), seed)
    found = sample(10, seed)
    for mutant in found:
        before = ast.parse(Path(mutant.path).read_text())
        assert ast.dump(mutant.tree()) != ast.dump(before), mutant
        compile(mutant.tree(), mutant.path, "exec")
    return f"{len(found)} mistakes (seed {seed}) can be made"


def main() -> None:
    """Prints the figure."""
    print(trial())
