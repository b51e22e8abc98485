"""Small changes to the engine and the stores, each of which some test must notice: `make mutants`.

Which tests come by which line is learnt once, from a run with coverage contexts, and kept under
build/. See `proofs.hunting` for how they are run.
"""

from __future__ import annotations

import argparse
import html
import random
import re
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from proofs.hunting import run
from proofs.knowledge import KNOWLEDGE, PACKAGES
from proofs.mutations import Mutant, mutants

AT_LEAST = 0.9
"""The share of small mistakes that tests notice."""

SURVIVORS = KNOWLEDGE / "survivors.txt"

JUDGED = Path(__file__).with_name("MUTANTS.md")
"""Tells of changes that are no mistakes, as nobody could tell the difference, or hardly."""


def every() -> list[Mutant]:
    """All mutants there are."""
    return [m for folder in PACKAGES for path in sorted(folder.glob("*.py")) for m in mutants(path)]


def sample(size: int, seed: int) -> list[Mutant]:
    """So many of them, by chance."""
    found = every()
    return random.Random(seed).sample(found, min(size, len(found)))


def judged() -> set[tuple[str, str, str]]:
    """Path, place and change of those mutants that are no mistakes."""
    rows = re.findall(r"^\| `(\S+)`(?: `(\S+)`)? \| `(.+)` \| ", JUDGED.read_text(), re.MULTILINE)
    return {(f"keysmith/{path}", place, html.unescape(what)) for path, place, what in rows}


def figure(results: dict[Mutant, str], seed: int | None) -> str:
    """The share that was noticed, in a sentence. Raises `AssertionError` if it is too small.

    Of a sample that is if hardly any of so many would be as bad by chance. Those that were not
    noticed stand in build/mutants/survivors.txt, to be judged.
    """
    harmless = judged()
    mistakes = {m: how for m, how in results.items() if (m.path, m.place, m.what) not in harmless}
    survivors = sorted(mutant for mutant, how in mistakes.items() if how == "survived")
    noticed = 1 - len(survivors) / max(1, len(mistakes))
    where = "" if seed is None else f" (a sample, seed {seed})"
    told = f"{noticed:.1%} of {len(mistakes):,} mutants were noticed{where}"
    SURVIVORS.write_text("".join(f"{each.place}\t{each}\n" for each in survivors))
    chance = 0.0 if seed is None else 2 * sqrt(AT_LEAST * (1 - AT_LEAST) / max(1, len(mistakes)))
    assert noticed >= AT_LEAST - chance, "\n".join([told, *map(str, survivors)])
    return told


def main() -> None:
    """All of them, or a sample; survivors go to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="try so many, by chance")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", help="those of paths that have this in them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--results",
        type=Path,
        default=KNOWLEDGE / "results.txt",
        help="where to note what became of each; those noted already are not tried again",
    )
    asked: Any = parser.parse_args()
    chosen = sample(asked.sample or sys.maxsize, asked.seed)
    chosen = [mutant for mutant in chosen if asked.only is None or asked.only in mutant.path]
    results = _noted(asked.results, chosen)
    chosen = [mutant for mutant in chosen if mutant not in results]
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    with asked.results.open("a", buffering=1) as file:
        results |= run(
            chosen,
            workers=asked.workers,
            note=lambda mutant, result: print(f"{result}\t{mutant.number}\t{mutant}", file=file),
        )
    print(figure(results, asked.seed if asked.sample else None))


def _noted(path: Path, chosen: Sequence[Mutant]) -> dict[Mutant, str]:
    """What a run that was stopped has noted already."""
    if not path.exists():
        return {}
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    noted = {(number, text): result for result, number, text in rows}
    by_row = {(str(mutant.number), str(mutant)): mutant for mutant in chosen}
    return {by_row[row]: result for row, result in noted.items() if row in by_row}


if __name__ == "__main__":
    main()
