"""The strings of JSON values, read and changed. Depth is bounded by whoever read the JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any


def strings(value: Any) -> Iterator[str]:
    """The strings in it, keys of objects too: a model reads the names of a schema's properties as it reads the rest."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)


def deep(
    value: Any, change: Callable[[str], str], besides: Collection[str] = (), keys: Callable[[str], str] | None = None
) -> Any:
    """`value` with `change` applied to its strings, keys too; containers without any change stay themselves.

    Args:
        besides: keys whose strings are left alone.
        keys: what is applied to keys, where not `change`.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = [
            ((keys or change)(key), each if key in besides and isinstance(each, str) else deep(each, change, besides, keys))
            for key, each in value.items()
        ]
        same = all(new is key and made is each for (new, made), (key, each) in zip(items, value.items(), strict=True))
        return value if same else dict(items)
    if isinstance(value, list | tuple):
        made = [deep(each, change, besides, keys) for each in value]
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    return value
