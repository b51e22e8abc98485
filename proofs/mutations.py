"""Small changes to source code that a test should notice, each made to the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
"""What an operator may have been mistaken for."""

TYPING = {"TypeVar", "ParamSpec", "TypeAdapter", "Annotated", "cast", "getLogger"}
"""Calls that say nothing of what happens, or only for the type checker."""

_TIMES = {"datetime", "timedelta", "UTC"}

Change = Callable[[ast.AST], ast.AST]


@dataclass(frozen=True, order=True)
class Mutant:
    """One change to one module."""

    path: str
    line: int
    number: int
    """Which of the module's mutants it is."""
    what: str
    place: str
    """The function or class that it is in, such as `Keys.create`; empty outside of all."""

    @property
    def module(self) -> str:
        """The module's name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.what}"

    def tree(self) -> ast.Module:
        """The module with this change."""
        tree = ast.parse(Path(self.path).read_text())
        for number, (node, parent, field, index, change) in enumerate(_changes(tree)):
            if number == self.number:
                changed = ast.copy_location(change(deepcopy(node)), node)
                if index is None:
                    setattr(parent, field, changed)
                else:
                    getattr(parent, field)[index] = changed
                return ast.fix_missing_locations(tree)
        raise LookupError(self)


def mutants(path: Path) -> list[Mutant]:
    """All the mutants of a module, from its first line to its last."""
    found = []
    tree = ast.parse(path.read_text())
    places = dict(_places(tree))
    for number, (node, _, _, _, change) in enumerate(_changes(tree)):
        what = f"{_text(node)} ⇒ {_text(change(deepcopy(node)))}"
        found.append(Mutant(str(path), node.lineno, number, what, places[node]))
    return found


def _places(tree: ast.AST, within: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Where each node is."""
    for node in ast.iter_child_nodes(tree):
        yield node, within
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _places(node, f"{within}.{node.name}".lstrip(".") if named else within)


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 90 else f"{text[:89]}…"


Place = tuple[ast.AST, ast.AST, str, int | None, Change]
"""A node, where it hangs, and what may be done to it."""


def _changes(tree: ast.AST) -> Iterator[Place]:
    for field, value in ast.iter_fields(tree):
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _says_nothing(tree, field, node):
                continue
            if hasattr(node, "lineno"):
                for change in _of(node):
                    yield node, tree, field, index, change
            yield from _changes(node)


def _says_nothing(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """Annotations, decorators, docstrings, messages, protocols, and what only names things."""
    if field in ("annotation", "returns", "decorator_list", "type_params", "bases"):
        return True
    if isinstance(parent, ast.ClassDef) and field == "keywords":
        return True
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return not isinstance(node, ast.Raise)
    if isinstance(parent, ast.Raise):
        return True
    if isinstance(node, ast.ClassDef):
        return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases) or (
            any(
                isinstance(base, ast.Subscript) and _name(base.value) == "Protocol"
                for base in node.bases
            )
        )
    if isinstance(node, ast.Assign):
        targets = {getattr(target, "id", "") for target in node.targets}
        if isinstance(parent, ast.Module) and _is_arithmetic(node.value):
            return True  # one that might as well be another: a limit, a size, a pause
        if targets & {"__all__", "__slots__"} or _name(getattr(node.value, "func", None)) in TYPING:
            return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(parent, ast.If) and "win32" in ast.unparse(parent.test):
        return field != "orelse"  # what is not run here
    return isinstance(node, ast.Subscript) and _name(node.value) in ("Annotated", "dict", "list")


def _name(node: object) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", None) or ""


def _of(node: ast.AST) -> Iterator[Change]:  # noqa: PLR0912  a table
    """What may be done to a node."""
    match node:
        case ast.Compare(ops=[_]) | ast.Compare(ops=[_, _]):
            for place, op in enumerate(node.ops):
                for other in SWAPS.get(type(op), ()):
                    yield lambda new, place=place, other=other: _with_op(new, place, other())
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if type(node.op) in SWAPS:
            if not (isinstance(node.op, ast.Mod | ast.Add) and _has_text(node)):
                yield lambda new: _set(new, "op", SWAPS[type(new.op)][0]())
            if isinstance(node, ast.AugAssign):
                yield lambda _: ast.Pass()
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda new: new.operand
        case ast.If() | ast.While() | ast.IfExp():
            yield lambda new: _set(new, "test", ast.UnaryOp(ast.Not(), new.test))
        case ast.Constant(value=bool()):
            yield lambda new: ast.Constant(not new.value)
        case ast.Constant(value=int() | float()):
            yield lambda new: ast.Constant(new.value + 1)
        case ast.Constant(value=str()) if node.value.strip() and not _is_sentence(node.value):
            yield lambda new: ast.Constant(f"XX{new.value}")
        case ast.Return(value=ast.expr()) if not _is_plain(node.value):
            yield lambda _: ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Delete():
            yield lambda _: ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield lambda _: ast.Pass()
        case ast.Break():
            yield lambda _: ast.Continue()
        case ast.Continue():
            yield lambda _: ast.Break()
        case ast.Call():
            for place, keyword in enumerate(node.keywords):
                if keyword.arg is not None and len(node.keywords) + len(node.args) > 1:
                    yield lambda new, place=place: _without(new, place)


def _with_op(node: ast.AST, place: int, op: ast.AST) -> ast.AST:
    node.ops[place] = op  # type: ignore[attr-defined]
    return node


def _set(node: ast.AST, name: str, value: object) -> ast.AST:
    setattr(node, name, value)
    return node


def _without(node: ast.AST, place: int) -> ast.AST:
    del node.keywords[place]  # type: ignore[attr-defined]
    return node


def _has_text(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.JoinedStr)
        or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        for each in ast.walk(node)
    )


def _is_sentence(text: str) -> bool:
    return " " in text and text.rstrip().endswith(".")


def _is_arithmetic(node: ast.expr) -> bool:
    """Whether nothing goes in but numbers, or how long something takes."""
    parts = ast.Constant | ast.BinOp | ast.operator | ast.Tuple | ast.expr_context | ast.keyword
    return all(
        isinstance(part, parts) or _name(getattr(part, "func", part)) in _TIMES
        for part in ast.walk(node)
    )


def _is_plain(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))
