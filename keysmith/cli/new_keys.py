"""The file that new raw keys go to: its owner's alone, and never behind the database."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from keysmith.cli.output import dump
from keysmith.engine import CreatedKey
from keysmith.models import KeyPublic

FORMATS = (".csv", ".jsonl")

COLUMNS = (
    "id",
    "tenant_id",
    "app_id",
    "name",
    "environment",
    "state",
    "created_by",
    "rotated_at",
    "raw_key",
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How text begins that a spreadsheet would carry out: it could send away the keys beside it."""


class NewKeysFile:
    """A new file of raw keys, each of which is on the disk when `add` returns.

    Raises `OSError` where there is such a file already, or where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._as_csv = path.suffix == ".csv"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._added = False
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if self._as_csv:
            self._write(_csv_line(COLUMNS))

    def add(self, created: CreatedKey) -> None:
        """Adds a key, whole or not at all. Raises `OSError`."""
        key = dump(KeyPublic.model_validate(created.key))
        if self._as_csv:
            fields = {**key, "raw_key": created.raw_key}
            self._write(_csv_line([_as_text(str(fields[name] or "")) for name in COLUMNS]))
        else:
            self._write(json.dumps({"key": key, "raw_key": created.raw_key}) + "\n")
        self._added = True

    def _write(self, line: str) -> None:
        size, data = os.fstat(self._file).st_size, line.encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it. A file that no key was added to is removed, so that its name is free again."""
        os.close(self._file)
        if not self._added:
            self._path.unlink()


def _csv_line(values: tuple[str, ...] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _as_text(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value
