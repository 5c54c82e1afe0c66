"""Token figures as providers write them, checked.

Rule 1: a figure that can not be (negative, a float, a string, beyond `MAX_COUNT`) is None: "not said", never zero.
Rule 2: parts of a whole are held to the whole.
Rule 3: what the provider said stays readable in `Usage.raw`, cut to what can be written down again (`storable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_COUNT = 2**31 - 1
"""More tokens than any answer has."""


def count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def part_of(whole: int | None, part: int | None) -> int | None:
    return part if part is None or whole is None else min(part, whole)


def tier_name(value: Any) -> str | None:
    """A service tier's name, where it is one that can be written down."""
    return value if isinstance(value, str) and 0 < len(value) <= 32 and value.isascii() and value.isprintable() else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def storable(said: Mapping[str, Any], deep: int = 2) -> dict[str, Any]:
    """What can be written down again: no integer beyond 64 bits, no text without end, nothing nested deeply."""
    kept: dict[str, Any] = {}
    for name, value in said.items() if len(said) <= 64 else list(said.items())[:64]:
        name = name[:64]
        if type(value) is int and -(2**63) < value < 2**63:
            kept[name] = value  # nearly all
        elif isinstance(value, dict):
            if deep > 1:
                kept[name] = storable(value, deep - 1)
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            kept[name] = value
        else:
            # Never the text of a list: one of a million takes a second, and a deep one is a RecursionError.
            kept[name] = value[:64] if isinstance(value, str) else "integer beyond 64 bits" if isinstance(value, int) else "list"
    return kept
