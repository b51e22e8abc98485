"""What a case works with, and that it is all gone after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from benchmarks.databases import Progress, database
from keysmith import Engine, SqliteStore

KEYS = 100_000
"""Keys in the usual database; the targets are meant for so many."""


class Unavailable(Exception):
    """What a row needs is not there; the message says what."""


class Workshop:
    """Gives databases and engines; as a context manager, takes them away after each case."""

    def __init__(
        self, folder: Path, keys: int = KEYS, progress: Progress = lambda steps, _: steps
    ) -> None:
        """`folder` keeps the databases, of `keys` keys, from run to run."""
        self.folder = folder
        self.keys = keys
        self._progress = progress
        self._made: dict[int, Path] = {}
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def original(self, count: int) -> Path:
        """The database of `count` keys, for reading; last uses may be written to it."""
        if count not in self._made:
            self._made[count] = database(self.folder, count, self._progress)
        return self._made[count]

    def copy(self) -> Path:
        """A copy of the usual database, for this case alone."""
        original = self.original(self.keys)
        folder = Path(mkdtemp(prefix="case-", dir=self.folder))
        self.after(shutil.rmtree, folder)
        return Path(shutil.copyfile(original, folder / "keys.db"))

    def engine(self, path: Path, **options: Any) -> Engine:
        """An engine on a database."""
        return self._exits.enter_context(Engine(SqliteStore(path), **options))

    def after(self, callback: Callable[..., object], *arguments: object) -> None:
        """Calls this after the case."""
        self._exits.callback(callback, *arguments)
