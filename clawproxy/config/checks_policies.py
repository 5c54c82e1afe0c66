"""What must be right about `[policies]`: conditions that can hold, actions that can be done, each one reached."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Collection, Mapping
from typing import Any, Final, get_args

import attrs

from clawproxy.config.findings import Findings, Names
from clawproxy.config.groups import flat_routes
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.policies import (
    DAYS,
    PolicyConfig,
    RestrictConfig,
    SizeConfig,
    TimeConfig,
    WhenConfig,
    parse_budget,
    parse_comparison,
    parse_hours,
)
from clawproxy.config.residency import known_regions
from clawproxy.config.schema import Config
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown
from clawproxy.messages import Operation

SURFACES: Final = ("claw", "openai_chat", "openai_responses", "openai_embeddings", "anthropic", "gemini", "cohere", "ollama")
NEEDS: Final = ("tools", "images", "audio", "files", "json_schema")
MOST_CONTENT: Final = 64
"""Conditions on content, in all: each is another look at the whole prompt."""
LONGEST_PATTERN: Final = 4096
LONGEST_SENTENCE: Final = 500
MOST_WORDS: Final = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ASSERTED: Final = {"user_id": "user", "user": "user", "app": "app"}


def check_policies(config: Config, names: Names, found: Findings) -> None:
    if not config.policies:
        return
    if "router" not in config.pipeline.order:
        found.wrong(("policies",), "are evaluated by the plugin `router`, which is not in pipeline.order; add it there")
    looks, ended = 0, ""
    for name, policy in config.policies.items():
        path: KeyPath = ("policies", name)
        if not _NAME.fullmatch(name):
            found.wrong(path, "is no name for a policy; use letters, digits, `_`, `.` and `-`, at most 64")
        if ended:
            found.wrong(path, f"is never reached: policies.{ended} ends the list for every request; put this one before it")
        _check_actions(policy, path, config, names, found)
        for side in ("when", "unless"):
            condition: WhenConfig | None = getattr(policy, side)
            if condition is None:
                continue
            where: KeyPath = (*path, side)
            if condition == WhenConfig():
                found.wrong(where, "is empty; leave it out, or write a condition")
            _check_condition(condition, where, config, names, found)
            looks += bool(condition.content)
            if looks > MOST_CONTENT and condition.content:
                found.wrong((*where, "content"), f"is one too many: {MOST_CONTENT} conditions on content are the most, in all")
        ends = policy.refuse is not None or policy.final
        if ends and policy.when is None and policy.unless is None and not policy.shadow:
            ended = shown(name)
    _check_order(config, found)


def _check_actions(policy: PolicyConfig, path: KeyPath, config: Config, names: Names, found: Findings) -> None:
    done = [key for key in ("refuse", "model", "choose", "restrict", "cap") if getattr(policy, key) is not None]
    if not done and not policy.final:
        found.wrong(path, "does nothing; add refuse, model, choose, restrict or cap (or final, to let what fits pass the rest)")
    if not done and policy.final and policy.shadow:
        found.wrong((*path, "final"), "has no meaning in a shadow; remove it, or the whole policy")
    if policy.refuse is not None:
        if len(done) > 1:
            found.wrong((*path, "refuse"), f"can not stand beside {', '.join(done[1:])}; a refused request goes nowhere")
        if policy.final:
            found.wrong((*path, "final"), "has no meaning beside refuse, which ends it all; remove it")
        if not policy.refuse.strip() or len(policy.refuse) > LONGEST_SENTENCE or not policy.refuse.isprintable():
            sentence = f"must be a sentence for the client, of 1 to {LONGEST_SENTENCE} printable characters"
            found.wrong((*path, "refuse"), f'{sentence}, like "Not outside office hours."')
    if policy.model is not None and policy.choose is not None:
        found.wrong((*path, "choose"), "can not stand beside model: one changes the name, the other keeps it; remove one")
    if policy.cap is not None and policy.cap < 1:
        found.wrong((*path, "cap"), f"{policy.cap} leaves no answer; write 1 or more")
    places = _places(config)
    for key in ("model", "choose"):
        target = getattr(policy, key)
        if target is None or target in names.models or (target in places and (key == "choose" or not names.models)):
            continue
        provider, slash, rest = target.partition("/")
        if not names.models and slash and rest and provider in names.providers:
            continue
        known = [*names.models, *(sorted(places) if key == "choose" else ())]
        what = "[models] or their routes" if key == "choose" else "[models]"
        hint = suggest(target, sorted(known)) if known else 'write "PROVIDER/MODEL"'
        found.wrong((*path, key), f'"{shown(target)}" is not in {what}; {hint}')
    if policy.restrict is not None:
        _check_restrict(policy.restrict, (*path, "restrict"), config, names, found)


def _places(config: Config) -> set[str]:
    """`PROVIDER/MODEL` of every route."""
    return {f"{route.provider}/{route.model}" for model in config.models.values() for route in model.routes if route.provider}


def _check_restrict(restrict: RestrictConfig, path: KeyPath, config: Config, names: Names, found: Findings) -> None:
    if restrict == RestrictConfig():
        found.wrong(path, "is empty; name a provider, a region or a route")
    regions = known_regions(config)
    _known(restrict.provider, (*path, "provider"), names.providers, "a provider", found)
    _known(restrict.region, (*path, "region"), regions, "the region of any route", found)
    if config.models:
        _known(restrict.route, (*path, "route"), _places(config), "any route", found)


def _known(words: Collection[str], path: KeyPath, known: Collection[str], what: str, found: Findings) -> None:
    for word in words:
        if word not in known and not (word.endswith("*") and any(each.startswith(word[:-1]) for each in known)):
            found.wrong(path, f'"{shown(word)}" is not {what}; {suggest(word, sorted(known))}')


def _check_condition(when: WhenConfig, path: KeyPath, config: Config, names: Names, found: Findings) -> None:
    for attribute in attrs.fields(WhenConfig):
        words = getattr(when, attribute.name)
        if isinstance(words, tuple):
            _check_words(words, (*path, attribute.name), found)
    for key, words in when.metadata.items():
        where: KeyPath = (*path, "metadata", key)
        _check_words(words, where, found)
        if not words:
            found.wrong(where, 'is empty; write a value, or "*" for any')
        if key in _ASSERTED:
            found.wrong(where, f"counts only where a key may_assert it; write it as `{_ASSERTED[key]} = ...`")
    _known(when.surface, (*path, "surface"), SURFACES, "a surface", found)
    _known(when.operation, (*path, "operation"), get_args(Operation), "an operation", found)
    _known(when.needs, (*path, "needs"), NEEDS, "anything that is read off a request", found)
    if names.models and not any(policy.model for policy in config.policies.values()):
        for word in when.model:
            if word not in names.models and not (word.endswith("*") and any(n.startswith(word[:-1]) for n in names.models)):
                found.warn((*path, "model"), f'"{shown(word)}" fits none of [models]; {suggest(word, sorted(names.models))}')
    if when.size is not None:
        _check_size(when.size, (*path, "size"), found)
    if when.time is not None:
        _check_time(when.time, (*path, "time"), found)
    for pattern in when.content:
        _check_pattern(pattern, (*path, "content"), found)
    _check_budgets(when, path, config, found)


def _check_words(words: Collection[str], path: KeyPath, found: Findings) -> None:
    if len(words) > MOST_WORDS:
        found.wrong(path, f"has {len(words)} words; {MOST_WORDS} are the most")
    if not all(words):
        found.wrong(path, 'has an empty word; write a value, "prefix*", or "*" for any')


def _check_size(size: SizeConfig, path: KeyPath, found: Findings) -> None:
    if size == SizeConfig():
        found.wrong(path, 'is empty; write a comparison, like input_tokens = "> 4000"')
    for attribute in attrs.fields(SizeConfig):
        text = getattr(size, attribute.name)
        if text is not None:
            try:
                parse_comparison(text, sizes=attribute.name == "bytes")
            except ValueError as error:
                found.wrong((*path, attribute.name), str(error))


def _check_time(time: TimeConfig, path: KeyPath, found: Findings) -> None:
    if not (time.days or time.hours or time.after is not None or time.before is not None):
        found.wrong(path, "says no time; write days, hours, after or before")
    _known(time.days, (*path, "days"), DAYS, "a day", found)
    for text in time.hours:
        try:
            parse_hours(text)
        except ValueError as error:
            found.wrong((*path, "hours"), str(error))
    if time.after is not None and time.before is not None and time.after >= time.before:
        found.wrong((*path, "before"), "is not after `after`, so it would never hold; exchange the two")
    if time.zone != "UTC":
        try:
            zoneinfo.ZoneInfo(time.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            found.wrong(
                (*path, "zone"), f'"{shown(time.zone)}" is no time zone this machine knows; write one like "Europe/Vienna"'
            )


def _check_pattern(pattern: str, path: KeyPath, found: Findings) -> None:
    import re2

    if len(pattern) > LONGEST_PATTERN:
        found.wrong(path, f"has {len(pattern)} characters; {LONGEST_PATTERN} are the most")
        return
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(), options)
    except re2.error as error:
        detail = error.args[0] if error.args else ""
        said = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        found.wrong(
            path, f'"{shown(pattern)}" is refused by RE2: {shown(said)}; write it without look-around and back-references'
        )
    except UnicodeEncodeError:
        found.wrong(path, "is not valid Unicode; write plain text")
    else:
        if pattern and compiled.search(b"") is not None:
            found.wrong(path, f'"{shown(pattern)}" fits the empty text, so it would always hold; ask for something')


def _check_budgets(when: WhenConfig, path: KeyPath, config: Config, found: Findings) -> None:
    budgets: Mapping[str, Any] = getattr(config, "budgets", {})
    for text in when.budget:
        try:
            name, _ = parse_budget(text)
        except ValueError as error:
            found.wrong((*path, "budget"), str(error))
            continue
        if name not in budgets:
            hint = suggest(name, sorted(budgets)) if budgets else "none is configured; remove this condition"
            found.wrong((*path, "budget"), f'"{shown(name)}" is not in [budgets]; {hint}')


def _check_order(config: Config, found: Findings) -> None:
    """A prompt is fitted by `truncate`; where that runs first it can only fit it to the model that the client named."""
    order = config.pipeline.order
    if "truncate" not in order or "router" not in order or order.index("router") < order.index("truncate"):
        return
    for name, policy in config.policies.items():
        for key in ("model", "choose"):
            target = getattr(policy, key)
            if target is not None and any(route.context_tokens for route in flat_routes(config.models, target)):
                sentence = (
                    "leads to routes with a context window, and `truncate` has fitted the prompt to the model asked for by then"
                )
                found.warn(("policies", name, key), f"{sentence}; put `router` before `truncate` in pipeline.order")
                return
