"""The base of all steps, and the checks their values go through (attrs validators: ValueError with what would be right)."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from attrs import frozen

MAX_TOKENS = 1_000_000
MAX_SIZE = 1024 * 1024 * 1024
MAX_SECONDS = 86_400.0

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?")  # RFC 9110, 5.5, no folding


@frozen
class Step:
    """Anything a script may hold."""

    text: ClassVar[str] = ""
    """The text form of a step without values."""

    def __str__(self) -> str:
        return self.text


def seconds(_step: Any, attribute: Any, value: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= MAX_SECONDS):
        raise ValueError(f"`{attribute.name}` must be from 0 to {MAX_SECONDS:g} seconds, not {value!r}")


def between(low: int, high: int) -> Any:
    def check(_step: Any, attribute: Any, value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"`{attribute.name}` must be from {low} to {high}, not {value!r}")

    return check


def one_of(*choices: str) -> Any:
    def check(_step: Any, attribute: Any, value: str) -> None:
        if value not in choices:
            raise ValueError(f"`{attribute.name}` must be one of {', '.join(choices)}, not {value!r}")

    return check


def word(_step: Any, attribute: Any, value: Any) -> None:
    if value is not None and not _WORD.fullmatch(value):
        raise ValueError(f"`{attribute.name}` must be one word of letters, digits and _ . -, not {value!r}")


def header_name(_step: Any, _attribute: Any, value: str) -> None:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"a header's name must be a token (RFC 9110), not {value!r}")


def header_value(_step: Any, attribute: Any, value: Any) -> None:
    if value is not None and not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"`{attribute.name}` must be one line of visible characters, not {value!r}")


def headers(step: Any, attribute: Any, value: tuple[tuple[str, str], ...]) -> None:
    for name, content in value:
        header_name(step, attribute, name)
        header_value(step, attribute, content)
