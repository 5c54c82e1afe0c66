"""Conditions, compiled: each becomes a function from facts to True, False or None, where it is not known.

Rule 1: all that is written must hold (Kleene's logic): one that does not hold decides, whatever the others may be.
Rule 2: cheap ones are asked first, the prompt's text last.
Rule 3: patterns are RE2's: time grows with the text, not with the pattern's cunning.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

import re2

from clawproxy.config import (
    DAYS,
    Comparison,
    SizeConfig,
    TimeConfig,
    WhenConfig,
    fits,
    parse_budget,
    parse_comparison,
    parse_hours,
)
from clawproxy_router.policies.facts import Facts

Check = Callable[[Facts], bool | None]
Share = Callable[[str, Facts], float | None]
"""How much of a budget is used, for who is asking: 1.0 is all of it; None where it is not known."""

_WORDS = ("key", "user", "team", "role", "app", "tag", "model", "surface", "operation")


def condition(when: WhenConfig, share: Share) -> Check:
    """Raises ValueError for what the configuration's own check would have refused."""
    checks: list[Check] = [_said(name, getattr(when, name)) for name in _WORDS if getattr(when, name)]
    checks += [_metadata(name, words) for name, words in when.metadata.items()]
    if when.time is not None:
        checks.append(_time(when.time))
    checks += [_budget([parse_budget(text) for text in when.budget], share)] if when.budget else []
    if when.size is not None:
        checks += _sizes(when.size)
    if when.needs:
        checks.append(_needs(when.needs))
    if when.content:
        checks.append(_content(when.content))
    return checks[0] if len(checks) == 1 else lambda facts: both(check(facts) for check in checks)


def both(answers: Iterable[bool | None]) -> bool | None:
    """Kleene's `and` over all of them; none is asked after the first that is False."""
    unknown = False
    for answer in answers:
        if answer is False:
            return False
        unknown = unknown or answer is None
    return None if unknown else True


def _any_fits(said: tuple[str, ...] | None, words: tuple[str, ...]) -> bool | None:
    return None if said is None else any(fits(each, words) for each in said)


def _said(name: str, words: tuple[str, ...]) -> Check:
    plain = frozenset(words) if not any(word.endswith("*") for word in words) else None

    def check(facts: Facts) -> bool | None:
        said = facts.words(name)
        if plain is None or said is None:
            return _any_fits(said, words)
        return not plain.isdisjoint(said)

    return check


def _metadata(name: str, words: tuple[str, ...]) -> Check:
    return lambda facts: _any_fits(facts.metadata(name), words)


def _needs(words: tuple[str, ...]) -> Check:
    return lambda facts: _any_fits(facts.needs(), words)


def _sizes(size: SizeConfig) -> list[Check]:
    def check(name: str, compared: Comparison) -> Check:
        def holds(facts: Facts) -> bool | None:
            figure = facts.size(name)
            return None if figure is None else compared.holds(figure)

        return holds

    given = (("messages", size.messages), ("input_tokens", size.input_tokens), ("bytes", size.bytes))
    return [check(name, parse_comparison(text, sizes=name == "bytes")) for name, text in given if text is not None]


def _budget(asked: list[tuple[str, Comparison]], share: Share) -> Check:
    def check(facts: Facts) -> bool | None:
        unknown = False
        for name, compared in asked:
            used = share(name, facts)
            if used is not None and compared.holds(used):
                return True
            unknown = unknown or used is None
        return None if unknown else False

    return check


def _time(time: TimeConfig) -> Check:
    zone = datetime.UTC if time.zone == "UTC" else zoneinfo.ZoneInfo(time.zone)
    days = frozenset(DAYS.index(day) for day in time.days)
    hours = [parse_hours(text) for text in time.hours]
    after, before = time.after, time.before

    def check(facts: Facts) -> bool:
        now = facts.now()
        if (after is not None and now < after) or (before is not None and now >= before):
            return False
        if not (days or hours):
            return True
        there = datetime.datetime.fromtimestamp(now, zone)
        if days and there.weekday() not in days:
            return False
        minute = there.hour * 60 + there.minute
        return not hours or any(begin <= minute < end if begin < end else not end <= minute < begin for begin, end in hours)

    return check


def _content(patterns: tuple[str, ...]) -> Check:
    compiled = compile_patterns(patterns)

    def check(facts: Facts) -> bool | None:
        texts = facts.texts()
        return None if texts is None else any(compiled.search(text) is not None for text in texts)

    return check


def compile_patterns(patterns: tuple[str, ...]) -> Any:
    """One that fits where any of them does."""
    chosen = re2.Options()
    chosen.log_errors = False
    chosen.never_capture = True
    try:
        return re2.compile("|".join(f"(?:{pattern})" for pattern in patterns).encode(), chosen)
    except re2.error as error:
        raise ValueError(f"RE2 refuses {', '.join(patterns)}: {error}") from None
