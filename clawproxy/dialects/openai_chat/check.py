"""Checks with the path of what they check in their words: `messages[2].content must be a string.`

Rule: a message says what would be right and never what came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from clawproxy.errors import ClawError


def refuse(param: str, right: str) -> NoReturn:
    """`right` continues the sentence "`param` must ...": `be a string`."""
    raise ClawError("invalid_request", f"`{param}` must {right}.", param=param)


def text(value: object, param: str, *, longest: int | None = None) -> str:
    if not isinstance(value, str):
        refuse(param, "be a string")
    if longest is not None and len(value) > longest:
        refuse(param, f"be at most {longest} characters long")
    return value


def token(value: object, param: str, *, longest: int = 128, empty: bool = False) -> str:
    """A string that no log line, header or label can be broken with: no control characters, bounded."""
    said = text(value, param, longest=longest)
    if not said and not empty:
        refuse(param, "not be empty")
    if not said.isprintable():
        refuse(param, "hold printable characters only")
    return said


def integer(value: Any, param: str, low: int, high: int) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        refuse(param, "be an integer")
    if not low <= value <= high:
        refuse(param, f"be between {low} and {high}")
    return value


def number(value: Any, param: str, low: float, high: float) -> float:
    if type(value) is not int and type(value) is not float:
        refuse(param, "be a number")
    if not low <= value <= high:
        refuse(param, f"be between {low:g} and {high:g}")
    return value


def flag(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        refuse(param, "be true or false")
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(param, "be an object")
    return value


def array(value: Any, param: str, *, longest: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        refuse(param, "be an array")
    if longest is not None and len(value) > longest:
        refuse(param, f"hold at most {longest} items")
    return value


def need(values: Mapping[str, Any], key: str, where: str) -> Any:
    """`values[key]`, or the sentence that it is missing. `where` is the path of `values`, "" for the document."""
    if key not in values:
        param = f"{where}.{key}" if where else key
        raise ClawError("invalid_request", f"`{param}` is missing.", param=param)
    return values[key]


def beyond(values: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The fields of `values` that are not in `known`, for `extra`."""
    if values.keys() <= known:
        return {}
    return {key: value for key, value in values.items() if key not in known}
