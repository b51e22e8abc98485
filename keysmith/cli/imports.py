"""`keysmith keys import`: keys that were issued elsewhere, of which only the hashes are known."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from keysmith.cli.failures import ExitCode, fields_of, with_commands
from keysmith.cli.options import AsJson, DatabaseUrl
from keysmith.cli.output import note, print_json, print_line, progress_bar
from keysmith.cli.session import open_engine
from keysmith.cli.sweep import interrupts
from keysmith.engine import Engine
from keysmith.errors import ConflictError, KeyNotFoundError, KeysmithError, StoreError
from keysmith.models import KeyCreate
from keysmith.models.base import Hash
from keysmith.models.keys import Hint
from keysmith.stores import DEFAULT_DATABASE_URL

app = typer.Typer()

SHOWN = 20
"""Lines with mistakes that are told of; whoever has more has made the same one in all."""


class ImportedKey(KeyCreate):
    """A line of the file: what `create` takes, and what is known of the raw key."""

    key_hash: Hash
    hint: Hint = ""


FIELDS = {*ImportedKey.model_fields, "metadata"}

Lines = list[tuple[int, ImportedKey]]
"""With the numbers of the lines."""


@app.command("import")
def import_keys(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE", help="JSON Lines: an object for each key; - for input."),
    ],
    *,
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL,
    as_json: AsJson = False,
) -> None:
    """Take over keys that were issued elsewhere, by the hashes of their raw keys."""
    lines = _read(file)
    with open_engine(database_url) as engine:
        _Import(engine, lines).carry_out(as_json=as_json)


def _read(file: Iterable[bytes]) -> Lines:
    """All lines, or else what is wrong with them: nothing has been imported then."""
    lines: Lines = []
    mistakes: list[str] = []
    first_with: dict[tuple[str, str], int] = {}
    for number, line in enumerate(file, 1):
        text = line.removeprefix(BOM_UTF8).strip()
        if not text:
            continue
        try:
            key = ImportedKey.model_validate_json(text)
        except ValidationError as error:
            mistakes += [f"line {number}: {mistake}" for mistake in fields_of(error, FIELDS)]
            continue
        first = first_with.setdefault((key.tenant_id, key.key_hash), number)
        if first != number:
            mistakes.append(f"line {number}: key_hash: it is that of line {first}")
        lines.append((number, key))
    if mistakes:
        more = len(mistakes) - SHOWN
        shown = [*mistakes[:SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
        raise typer.BadParameter("\n".join(["Nothing was imported.", *shown]))
    return lines


class _Import:
    """An import on its way. Who begins again goes on: what is there already stays as it is."""

    def __init__(self, engine: Engine, lines: Lines) -> None:
        self._engine = engine
        self._lines = lines
        self._imported = self._known = 0
        self._failed: list[dict[str, Any]] = []

    def carry_out(self, *, as_json: bool) -> None:
        """Imports them, a transaction for each, and reports; Ctrl-C ends it between two.

        Raises `Exit` where something is left to do, and `StoreError`, after the report, where
        nothing more can be done.
        """
        try:
            for number, data in self._uninterrupted():
                self._add(number, data)
        finally:
            self._report(as_json=as_json)
        if self._left:
            raise typer.Exit(ExitCode.INTERRUPTED)
        if self._failed:
            raise typer.Exit(ExitCode.REFUSED)

    @property
    def _left(self) -> int:
        return len(self._lines) - self._imported - self._known - len(self._failed)

    def _uninterrupted(self) -> Iterator[tuple[int, ImportedKey]]:
        with progress_bar("Imported") as progress, interrupts() as asked:
            for place, line in enumerate(self._lines):
                progress(place, len(self._lines))
                if asked():
                    return
                yield line

    def _add(self, number: int, data: ImportedKey) -> None:
        key = KeyCreate(**data.model_dump(exclude={"key_hash", "hint"}, exclude_unset=True))
        try:
            self._engine.import_key(key, key_hash=data.key_hash, hint=data.hint)
        except StoreError:
            raise
        except ValidationError as error:
            self._fail(number, "invalid_input", "; ".join(fields_of(error)))
        except KeysmithError as error:
            if isinstance(error, ConflictError) and self._is_known(data):
                self._known += 1
            else:
                self._fail(number, error.code, with_commands(str(error)))
        else:
            self._imported += 1

    def _is_known(self, data: ImportedKey) -> bool:
        """Whether its tenant has it. What another tenant has is not there for this one."""
        try:
            found = self._engine.store.keys.get_by_hash(data.key_hash)
        except KeyNotFoundError:
            return False
        return found.tenant_id == data.tenant_id

    def _fail(self, number: int, code: str, message: str) -> None:
        self._failed.append({"line": number, "code": code, "message": message})

    def _report(self, *, as_json: bool) -> None:
        if as_json:
            document = {"imported": self._imported, "known": self._known, "failed": self._failed}
            print_json({**document, "left": self._left})
            return
        count = self._imported
        print_line(f"{count:,} key{'s' * (count != 1)} imported.", "bold green" if count else "")
        if self._known:
            print_line(f"{self._known:,} there already, and left as they are.")
        for failure in self._failed:
            note(f"Line {failure['line']}: {failure['message']}", "red")
        if self._left:
            note(f"{self._left:,} left: import the same file again to go on.")
