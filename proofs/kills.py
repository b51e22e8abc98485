"""A process that is started to be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["keysmith", "keysmith.stores.migrations", "proofs.crash"])


class Killable:
    """Runs `work(*arguments, tell)` in another process; `tell` sends what is then told of it."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._told, tell = _context.Pipe(duplex=False)
        self._process = _context.Process(target=work, args=(*arguments, tell), daemon=True)
        self._process.start()
        tell.close()

    def wait(self) -> None:
        """Until it has told something, or has ended."""
        self._told.poll(None)

    def kill(self, delay: float) -> list[Any]:
        """Kills it after that many seconds, and gives all that it has told."""
        self._process.join(delay)
        self._process.kill()
        self._process.join()
        assert self._process.exitcode in (0, -9), "it failed before it was killed"
        told = []
        try:
            while True:
                told.append(self._told.recv())
        except EOFError:
            return told
        finally:
            self._told.close()
            self._process.close()
