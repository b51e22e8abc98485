"""docs/cli.md tells of every command, argument and option that there is, and of no other."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from keysmith.cli.failures import ExitCode
from tests.command_line import COMMANDS, GROUP

DOCUMENT = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^###? (.+?)\n(.*?)(?=^###? |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
OF_EVERY_COMMAND = ("database_url", "as_json")


def table(section: str) -> dict[str, str]:
    rows = re.findall(r"^\| (`.+?`) \| (.+) \|$", SECTIONS[section], re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def row(parameter: Any) -> tuple[str, str]:
    """How the documentation presents an option."""
    kind = parameter.type_descriptor.annotation
    choices = isinstance(kind, type) and issubclass(kind, Enum) and not parameter.metavar
    value = parameter.metavar or {int: "N"}.get(kind, "NAME" if choices else "TEXT")
    name = parameter.opts[0] + ("" if parameter.is_flag else f" {value}")
    meaning = parameter.help
    if choices:
        meaning += f" One of {', '.join(f'`{choice.value}`' for choice in kind)}."
    if parameter.default not in (None, "", False):
        meaning += f" Default: `{parameter.default}`."
    return f"`{name}`", meaning


def heading(name: str) -> str:
    arguments = [p for p in COMMANDS[name].params if not p.opts[0].startswith("-")]
    words = [f"{p.metavar}{'…' if p.nargs == -1 else ''}" for p in arguments]
    return f"`{' '.join(['keysmith', name, *words])}`"


def test_every_command_has_a_section_and_no_other() -> None:
    documented = {section for section in SECTIONS if section.startswith("`keysmith ")}
    assert documented == {heading(name) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command(name: str) -> None:
    command = COMMANDS[name]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    assert table(heading(name)) == dict(row(p) for p in options if p.name not in OF_EVERY_COMMAND)
    assert SECTIONS[heading(name)].lstrip().startswith(command.help)
    assert {p.name for p in options} >= set(
        OF_EVERY_COMMAND if name != "serve" else ["database_url"]
    )


def test_the_options_of_every_command() -> None:
    options = {p.name: p for p in COMMANDS["keys list"].params}
    assert table("Every command") == {
        **dict(row(options[name]) for name in OF_EVERY_COMMAND),
        "`--help`": "Show this message and exit.",
    }


def test_the_options_of_keysmith_itself() -> None:
    assert table("`keysmith`") == dict(row(p) for p in GROUP.params)


def test_exit_codes() -> None:
    documented = set(map(int, re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)))
    assert documented == set(ExitCode)


def test_every_command_is_named_in_the_contents() -> None:
    contents = DOCUMENT.split("\n## ")[0]
    for name in COMMANDS:
        anchor = re.sub(r"[^a-z_ -]", "", heading(name).lower()).replace(" ", "-")
        assert f"](#{anchor})" in contents, anchor
