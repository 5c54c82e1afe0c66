"""The value of one key, from what TOML or an environment variable has: exactly of its type, or a sentence about it.

Rule: nothing is coerced but text of the environment (`EnvText`), which has no types.
"""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from typing import Any, NewType

from cattrs.errors import IterableValidationError, IterableValidationNote

from clawproxy.config.policies import Words
from clawproxy.config.prices import Factor, PerRequest, Price
from clawproxy.config.schema import Duration, Hedge, Size
from clawproxy.config.units import (
    kind_of,
    parse_dollars,
    parse_duration,
    parse_factor,
    parse_price,
    parse_rate,
    parse_size,
    shown,
)

Clock = NewType("Clock", float)
"""Stands for `Duration` in the tables of a provider's and a model's own clocks."""
_QUANTILE = re.compile(r"p([5-9][0-9])")


class Wrong(ValueError):
    """One wrong value: a sentence that says what is wrong and, after a semicolon, what would be right."""


class EnvText(str):
    """A value that came from an environment variable: text, whatever its key's type."""

    __slots__ = ()


def text_of(value: Any, _: Any = None) -> str:
    if not isinstance(value, str):
        raise Wrong(f"is {kind_of(value)}; write a string in quotes")
    return str(value)


def integer_of(value: Any, _: Any = None) -> int:
    if isinstance(value, EnvText):
        try:
            return int(value)
        except ValueError:
            raise Wrong(f'"{shown(value)}" is no integer; write a whole number, like 2') from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"is {kind_of(value)}; write a whole number without quotes, like 2")
    return value


def number_of(value: Any, _: Any = None) -> float:
    if isinstance(value, EnvText):
        try:
            value = float(value)
        except ValueError:
            raise Wrong(f'"{shown(value)}" is no number; write one like 0.5') from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise Wrong(f"is {kind_of(value)}; write a number without quotes, like 0.5")
    return float(value)


def boolean_of(value: Any, _: Any = None) -> bool:
    if isinstance(value, EnvText) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Wrong(f"is {kind_of(value)}; write true or false, without quotes")
    return value


def duration_of(value: Any, _: Any = None) -> Duration:
    try:
        return Duration(parse_duration(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def rate_of(value: Any, _: Any = None) -> float:
    try:
        return parse_rate(value)
    except ValueError as error:
        raise Wrong(str(error)) from None


def clock_of(value: Any, _: Any = None) -> float:
    """A provider's or a model's own limit, of whichever clock."""
    return rate_of(value) if isinstance(value, str) and "token" in value else duration_of(value)


def size_of(value: Any, _: Any = None) -> Size:
    if isinstance(value, EnvText) and value.isdecimal():
        value = int(value)
    try:
        return Size(parse_size(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def price_of(value: Any, _: Any = None) -> Price:
    try:
        return Price(parse_price(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def per_request_of(value: Any, _: Any = None) -> PerRequest:
    try:
        return PerRequest(parse_dollars(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def factor_of(value: Any, _: Any = None) -> Factor:
    try:
        return Factor(parse_factor(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def hedge_of(value: Any, _: Any = None) -> Hedge:
    if isinstance(value, str) and (match := _QUANTILE.fullmatch(value)) is not None:
        return Hedge(quantile=int(match[1]) / 100)
    try:
        after = parse_duration(value)
    except ValueError:
        seen = f'"{shown(value)}"' if isinstance(value, str) else kind_of(value)
        raise Wrong(f'{seen} says no moment to hedge at; write "p95" (p50 to p99), or a duration like "800ms"') from None
    if not 0 < after < math.inf:
        raise Wrong(f'"{shown(str(value))}" is no time to wait before a hedge; write one like "800ms", or leave the key out')
    return Hedge(Duration(after))


def expires_of(value: Any, _: Any = None) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise Wrong("is no date and time; write one with its offset, like 2027-01-31T00:00:00Z") from None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        what = "has no offset from UTC" if isinstance(value, datetime.datetime) else f"is {_date_or(value)}"
        raise Wrong(f"{what}; write a date and time with its offset, like 2027-01-31T00:00:00Z")
    return value.timestamp()


def _date_or(value: Any) -> str:
    return "a date without a time" if isinstance(value, datetime.date) else kind_of(value)


def words_of(value: Any, _: Any = None) -> Words:
    if isinstance(value, str) and not isinstance(value, EnvText):
        return Words((value,))
    if not isinstance(value, (str, list)):
        raise Wrong(f"is {kind_of(value)}; write a string, or an array of them")
    made, errors = [], []
    for index, item in enumerate(array_of(value)):
        try:
            made.append(text_of(item))
        except Wrong as error:
            errors.append(noted(error, IterableValidationNote("", index, str)))
    if errors:
        raise IterableValidationError("array", errors, tuple)
    if not made:
        raise Wrong("is empty; write a string, or leave the key out")
    return Words(tuple(made))


def array_of(value: Any) -> list[Any]:
    if isinstance(value, EnvText):
        if not value.startswith("["):
            return [EnvText(part.strip()) for part in value.split(",") if part.strip()]
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            raise Wrong("is no TOML array; write [...], or values with commas between them") from None
    if not isinstance(value, list):
        raise Wrong(f"is {kind_of(value)}; write an array, like [...]")
    return value


def table_of(value: Any) -> dict[str, Any]:
    if isinstance(value, EnvText):
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            raise Wrong("is no TOML table; write it like {key = 1}") from None
    if not isinstance(value, dict):
        raise Wrong(f"is {kind_of(value)}; write a table")
    return value


def noted(error: Exception, note: str) -> Exception:
    error.__notes__ = [*getattr(error, "__notes__", []), note]
    return error
