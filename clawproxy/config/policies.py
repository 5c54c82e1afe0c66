"""`[policies.NAME]` as attrs classes, and the small words their values are written in.

Rule 1: a policy holds where everything under `when` holds, and not everything under `unless`. A list means any of its words.
Rule 2: a word is a whole value, or `prefix*`; `*` alone is any value at all.
Rule 3: every table is None where it is not written, so that an empty one can be told from none (and refused).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Final, NewType

from attrs import field, frozen

from clawproxy.config.units import parse_size, shown

Words = NewType("Words", tuple[str, ...])
"""In the file one string, or an array of them."""
NONE: Final = Words(())
Moment = NewType("Moment", float)
"""A TOML date-time in the file, with its offset; Unix time here."""

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SIZES: Final = ("input_tokens", "bytes", "messages")
ACTIONS: Final = ("refuse", "model", "choose", "restrict", "cap", "final")
"""What a policy can do, in the words of the audit row and the metric. `final` is one that does nothing else than end the list."""

_COMPARISON = re.compile(r"(>=|<=|>|<)\s*(.+)")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_BUDGET = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.@*-]{0,63})\s*(>=|<=|>|<)\s*(\d{1,6}(?:\.\d{1,3})?)\s*%")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@frozen
class RestrictConfig:
    """Only routes that fit everything given here."""

    provider: Words = NONE
    region: Words = NONE
    route: Words = NONE
    """`PROVIDER/MODEL`."""


@frozen
class TimeConfig:
    days: Words = NONE
    """`mon` ... `sun`: the day on which it is that time there."""
    hours: Words = NONE
    """`"22:00-06:00"`: from the first minute up to, not including, the last; over midnight too."""
    zone: str = "UTC"
    after: Moment | None = None
    before: Moment | None = None


@frozen
class SizeConfig:
    """Each a comparison or two: `"> 4000"`, `">= 10, < 20"`."""

    input_tokens: str | None = None
    """An estimate: bytes through four."""
    bytes: str | None = None
    """Of the prompt's texts, in UTF-8, and of its inline media as they came."""
    messages: str | None = None


@frozen
class WhenConfig:
    user: Words = NONE
    team: Words = NONE
    role: Words = NONE
    app: Words = NONE
    key: Words = NONE
    tag: Words = NONE
    metadata: Mapping[str, Words] = field(factory=dict)
    """The client's own word: anybody can say it."""
    model: Words = NONE
    """As the client asked for it."""
    surface: Words = NONE
    operation: Words = NONE
    size: SizeConfig | None = None
    needs: Words = NONE
    content: Words = NONE
    """RE2 patterns, sought in the prompt's texts."""
    time: TimeConfig | None = None
    budget: Words = NONE
    """`"NAME >= 80%"`."""


@frozen
class PolicyConfig:
    when: WhenConfig | None = None
    """None: every request."""
    unless: WhenConfig | None = None
    refuse: str | None = None
    """The sentence that the client gets."""
    model: str | None = None
    """Answered as if the client had asked for this model; it need not be allowed to."""
    choose: str | None = None
    """Answered by this model's routes, or by the route `PROVIDER/MODEL`, under the name that was asked for."""
    restrict: RestrictConfig | None = None
    cap: int | None = None
    """The most output tokens."""
    final: bool = False
    """Where it applies, no later policy is looked at."""
    shadow: bool = False
    """It is evaluated and recorded, and changes nothing."""


@frozen(slots=True)
class Comparison:
    """`holds(figure)` where every part does."""

    parts: tuple[tuple[Callable[[float, float], bool], float], ...]

    def holds(self, figure: float) -> bool:
        return all(compare(figure, bound) for compare, bound in self.parts)


def parse_comparison(text: str, *, sizes: bool = False) -> Comparison:
    """Of `"> 4000"`, `">= 10, < 20"`; with `sizes`, `"< 1MiB"`. Raises ValueError with a sentence."""
    parts = []
    for part in text.split(","):
        match = _COMPARISON.fullmatch(part.strip())
        if match is None:
            raise ValueError(f'"{shown(text)}" is no comparison; write it like "> 4000" or ">= 10, < 20"')
        number = match[2].strip()
        if not (sizes or re.fullmatch(r"\d{1,15}", number)):
            raise ValueError(f'"{shown(number)}" is no whole number; write it like "> 4000"')
        bound = parse_size(int(number) if re.fullmatch(r"\d{1,15}", number) else number)
        parts.append((_OPERATORS[match[1]], float(bound)))
    return Comparison(tuple(parts))


def parse_hours(text: str) -> tuple[int, int]:
    """Minutes of the day, from and to, of `"09:00-17:30"`. Raises ValueError with a sentence."""
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError(f'"{shown(text)}" are no hours; write them like "09:00-17:30" or "22:00-06:00"')
    begin = int(match[1]) * 60 + int(match[2])
    end = 24 * 60 if match[3] is None else int(match[3]) * 60 + int(match[4])
    if begin == end:
        raise ValueError(f'"{shown(text)}" is no time at all; leave `hours` out where the whole day is meant')
    return begin, end


def parse_budget(text: str) -> tuple[str, Comparison]:
    """A budget's name, and what its used share (1.0 is all of it) is compared with. Raises ValueError with a sentence."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{shown(text)}" is no state of a budget; write it like "team-day >= 80%"')
    return match[1], Comparison(((_OPERATORS[match[2]], float(match[3]) / 100),))


def fits(word: str, patterns: tuple[str, ...]) -> bool:
    """Whether the word is one of them, or begins as one that ends in `*`."""
    return any(word.startswith(each[:-1]) if each.endswith("*") else word == each for each in patterns)
