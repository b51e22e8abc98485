"""Doing something to many keys, one after the other: what was begun can be gone on with."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Unpack

import typer

from keysmith.cli.failures import ExitCode
from keysmith.cli.output import note, print_json, print_line, progress_bar
from keysmith.engine import Engine
from keysmith.engine.lifecycle import state_at
from keysmith.errors import KeyNotFoundError, KeysmithError, StoreError
from keysmith.models import Key
from keysmith.stores.base import TenantFilters

_PAGE = 500


class Sweep:
    """The living keys of which a secret from before some moment still works.

    A key that was dealt with is not among them any more: whoever begins again with the same moment
    goes on where the last one stopped, whatever stopped it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        before: datetime,
        ends_grace: bool,
        **whose: Unpack[TenantFilters],
    ) -> None:
        """`ends_grace` tells whether an old secret in its grace is to be stopped as well."""
        self.engine = engine
        self._before = before
        self._ends_grace = ends_grace
        self._skipped: Counter[str] = Counter()
        self._expired: list[str] = []
        """Those of which nobody has written down yet that they have expired."""
        self._failed: list[dict[str, str]] = []
        self._done = 0
        self.key_ids = [key.id for key in self._all(whose) if self._concerns(key)]
        self._left = len(self.key_ids)

    @property
    def size(self) -> str:
        """How many keys there are, in words."""
        return _keys(len(self.key_ids))

    def carry_out(
        self,
        what: str,
        deed: Callable[[str], object],
        *,
        as_json: bool,
        output: Path | None = None,
    ) -> None:
        """Does it to each key, a transaction for each, and reports; Ctrl-C ends it between two.

        `what` is what keys are then, such as "rotated". Raises `Exit` where something is left to
        do, and `StoreError` or `OSError`, after the report, where nothing more can be done.
        """
        interrupted = False
        try:
            self._settle_expired()
            with progress_bar(what.capitalize()) as progress, interrupts() as asked:
                for number, key_id in enumerate(self.key_ids):
                    progress(number, len(self.key_ids))
                    if interrupted := asked():
                        break
                    self._do(key_id, deed)
        finally:
            self._report(what, output if self._done else None, as_json=as_json)
        if interrupted:
            raise typer.Exit(ExitCode.INTERRUPTED)
        if self._failed:
            raise typer.Exit(ExitCode.REFUSED)

    def _do(self, key_id: str, deed: Callable[[str], object]) -> None:
        try:
            with self.engine.store.transaction():
                # Somebody else may have been at it since the list was made.
                concerned = self._concerns(self.engine.get_key(key_id))
                if concerned:
                    deed(key_id)
        except KeyNotFoundError:
            self._skipped["deleted"] += 1
        except StoreError:
            raise
        except KeysmithError as error:
            self._failed.append({"key_id": key_id, "code": error.code, "message": str(error)})
        else:
            self._done += concerned
        self._left -= 1

    def _settle_expired(self) -> None:
        """Has what is skipped as expired stay so, should the clock be wrong."""
        for key_id in self._expired:
            with suppress(KeyNotFoundError):
                self.engine._lifecycle.expire(key_id)  # noqa: SLF001

    def _all(self, whose: TenantFilters) -> Iterator[Key]:
        """Every key, by descending ID: whatever changes meanwhile, that order does not."""
        after = None
        while page := self.engine.list_keys(limit=_PAGE, after=after, **whose):
            yield from page
            after = page[-1].id

    def _concerns(self, key: Key) -> bool:
        """Whether something is to be done; if not, notes why."""
        state = state_at(key, self.engine.now())
        if state.final:
            self._skipped[state.value] += 1
            if state is not key.state:
                self._expired.append(key.id)
        elif not self._works(key):
            self._skipped["newer"] += 1
        else:
            return True
        return False

    def _works(self, key: Key) -> bool:
        """Whether a secret from before that moment works."""
        if (key.rotated_at or key.created_at) < self._before:
            return True
        if key.rotated_at is None or not self._ends_grace:
            return False
        now, rotations = self.engine.now(), self.engine.list_rotations(key_id=key.id)
        issued = [*(rotation.created_at for rotation in rotations[1:]), key.created_at]
        return any(
            rotation.in_grace(now) and at < self._before
            for rotation, at in zip(rotations, issued, strict=True)
        )

    def _report(self, what: str, output: Path | None, *, as_json: bool) -> None:
        before = self._before.isoformat()
        if as_json:
            document: dict[str, Any] = {what: self._done, "skipped": dict(self._skipped)}
            document |= {"failed": self._failed, "left": self._left, "before": before}
            print_json(document if output is None else {**document, "output": str(output)})
            return
        where = "." if output is None else f"; their raw keys are in {output}."
        print_line(f"{_keys(self._done)} {what}{where}", "bold green" if self._done else "")
        if self._skipped:
            why = ", ".join(f"{count:,} {why}" for why, count in sorted(self._skipped.items()))
            print_line(f"{_keys(self._skipped.total())} skipped: {why}.")
        for failure in self._failed:
            note(f"{failure['key_id']} failed: {failure['message']}", "red")
        if self._left or self._failed:
            note(f"{_keys(self._left + len(self._failed))} left: go on with --before {before}.")


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count:,} keys"


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Gives what tells whether Ctrl-C was pressed. Whoever presses it twice ends the process."""
    pressed = False

    def press(number: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(number, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
