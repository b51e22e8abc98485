"""Dictionaries and lists that cannot be changed: what is handed out may be kept and shared.

They are of the built-in types, so that JSON, pydantic and comparisons take them for what they are.
"""

from __future__ import annotations

from typing import Any, NoReturn


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError(f"{type(self).__name__} cannot be changed; make a copy: dict(…) or list(…).")


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """A list that cannot be changed."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = _refuse
    remove = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)


def freeze(value: Any) -> Any:
    """The value, with every dictionary and list in it replaced by one that cannot be changed."""
    if isinstance(value, dict):
        return FrozenDict({name: freeze(each) for name, each in value.items()})
    if isinstance(value, list):
        return FrozenList([freeze(each) for each in value])
    return value
