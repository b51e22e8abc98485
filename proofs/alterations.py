"""Puts a mutant in the place of what it was made from, in this process."""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.machinery
import importlib.util
from collections import defaultdict
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType

from proofs.mutations import Mutant

Place = tuple[str, str, int]
"""Where a function is: its file, its name and its first line."""

Codes = dict[Place, CodeType]


class Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of its module, where that has not been imported yet."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, *_: object, **__: object
    ) -> importlib.machinery.ModuleSpec | None:
        """Only for the one module."""
        if fullname != self._mutant.module:
            return None
        loader = _Loader(fullname, _file(self._mutant), self._mutant.tree())
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002  so it is called
        return compile(self._tree, self.path, "exec", dont_inherit=True)


def changed(mutant: Mutant) -> Codes:
    """The code of the functions that a mutant changes.

    None if it changes what is outside, or what a function within another has from that.
    """
    file = _file(mutant)
    before, after = _as_written(file), _codes(mutant.tree(), file)
    if before.keys() != after.keys():
        return {}
    codes = {
        place: code
        for place, code in after.items()
        if code.co_flags & CO_OPTIMIZED and code != before[place]
    }
    if any(code.co_freevars != before[place].co_freevars for place, code in codes.items()):
        return {}
    return codes


def functions() -> dict[Place, list[FunctionType]]:
    """The functions that there are."""
    found = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType):
            code = thing.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(thing)
    return found


def alter(there: dict[Place, list[FunctionType]], codes: Codes) -> bool:
    """Gives the functions that are there this code; whether there were any."""
    altered = False
    for place, code in codes.items():
        for function in there.get(place, ()):
            function.__code__ = code
            altered = True
    return altered


def _file(mutant: Mutant) -> str:
    return str(Path(mutant.path).absolute())


@cache
def _as_written(file: str) -> Codes:
    return _codes(ast.parse(Path(file).read_text()), file)


def _codes(tree: ast.Module, file: str) -> Codes:
    """The code of all functions."""
    found: Codes = {}
    waiting = [compile(tree, file, "exec", dont_inherit=True)]
    while waiting:
        for code in waiting.pop().co_consts:
            if isinstance(code, CodeType):
                waiting.append(code)
                found[file, code.co_qualname, code.co_firstlineno] = code
    return found
