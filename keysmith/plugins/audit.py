"""An audit trail: who did what to which key, when, and how it ended."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from keysmith.clock import Clock, utc_now
from keysmith.models.base import moment
from keysmith.plugins.events import Event, EventPlugin

Entry = dict[str, str | None]
"""An entry of the trail; see `AuditLog` for the fields."""

Target = str | os.PathLike[str] | logging.Logger | Callable[[Entry], object]


class AuditLog(EventPlugin):
    """Writes one structured entry for every event to a file, a logger or a callable of yours.

    Every entry has every field, `None` where a field does not apply or nobody knows: `when` (the
    time in UTC, as ISO 8601), `what` (`key.revoked`), `who` (`created_by` or `rotated_by`),
    `key_id`, `masked_key` of a raw key that was refused, `policy_id`, `scope` (its name),
    `tenant_id`, `outcome` (`done` or `refused`), `severity` (`info`, `warning`, `error`), `reason`
    and `code`.
    """

    def __init__(
        self,
        target: Target,
        *,
        successes: bool = False,
        failures: bool = True,
        clock: Clock = utc_now,
    ) -> None:
        """`target` is the path of a file, a logger, or what is to be called with each entry.

        A file gets JSON lines; it is created for its owner's eyes only, appended to, and may be
        moved away at any time. Where it cannot be written to, this raises `OSError`. A logger gets
        the same line at the level of its severity, and the entry as the record's `audit`.

        `successes` also notes each validation that succeeds, and `failures` each one that does not.
        """
        self._write = _writer(target)
        self._unwanted = {
            type
            for type, wanted in (
                ("key.validated", successes),
                ("key.validation_failed", failures),
            )
            if not wanted
        }
        self._clock = clock

    def wants(self, type: str) -> bool:
        """All but the validations that were declined."""
        return type not in self._unwanted

    def on_event(self, event: Event) -> None:
        """Writes the entry."""
        self._write(
            {
                "when": moment(self._clock()).isoformat(timespec="microseconds"),
                "what": event.type,
                "who": event.who,
                "key_id": event.key_id if event.key is None else event.key.id,
                "masked_key": event.masked_key,
                "policy_id": event.policy_id,
                "scope": None if event.scope is None else event.scope.name,
                "tenant_id": event.tenant_id,
                "outcome": "refused" if event.refused else "done",
                "severity": event.severity.value,
                "reason": event.reason,
                "code": event.code,
            }
        )


def _writer(target: Target) -> Callable[[Entry], object]:
    if isinstance(target, logging.Logger):
        return _LogWriter(target)
    if isinstance(target, (str, os.PathLike)):
        return _FileWriter(target)
    if callable(target):
        return target
    raise TypeError("The target of an AuditLog is a path, a logging.Logger or a callable.")


class _LogWriter:
    """Writes entries to a logger."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __call__(self, entry: Entry) -> None:
        level = logging.getLevelNamesMapping()[(entry["severity"] or "info").upper()]
        self._logger.log(level, "%s", json.dumps(entry), extra={"audit": entry})


_A_WRITE = 0.001
"""Seconds that another process takes to write an entry, at most; as a rule."""


class _FileWriter:
    """Appends entries to a file.

    The file is opened for each entry: wherever logrotate has moved the old one, the entry is in the
    file of this name; and there is nothing that a forked process would share. An entry is written
    by one call in append mode, so that those of several processes do not mix. What somebody left
    half written, when a disk was full, is ended before the next entry.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._append(b"")

    def __call__(self, entry: Entry) -> None:
        line = json.dumps(entry).encode() + b"\n"
        torn = self._torn_at()
        if torn is not None:
            time.sleep(_A_WRITE)  # another process may be at it
            torn = torn if torn == self._torn_at() else None
        self._append(line if torn is None else b"\n" + line)

    def _torn_at(self) -> int | None:
        """The size of the file, if it ends amid a line."""
        if not self._path.is_file():
            return None  # such as a pipe, which has no end
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                return None if file.read(1) in (b"", b"\n") else size
        except OSError:
            return None  # it may be that we may write only

    def _append(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            written = os.write(file, line)
        finally:
            os.close(file)
        if written < len(line):
            raise OSError(f"An audit entry was cut short in {self._path}. Is the disk full?")
