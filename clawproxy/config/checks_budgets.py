"""What must be right about `[budgets]`: words that mean something, names that exist, prices for what is to be paid.

Rule 1: two budgets never count the same thing in the same account: a limit and a softer one beside it are one budget with `soft`.
Rule 2: a dollar budget covers no model without a price: what is not known can not be held to a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from clawproxy.config.budgets import Limit, parse_action, parse_limit, parse_scope, parse_soft
from clawproxy.config.findings import Findings, Names
from clawproxy.config.groups import check_groups, flat_routes
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.schema import BudgetConfig, Config
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown
from clawproxy.rates import prices_of

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_budgets(config: Config, names: Names, found: Findings, *, meter: bool) -> None:
    """`meter`: whether the plugin that keeps budgets is at work."""
    seen: dict[tuple[str, str, str | None, bool], str] = {}
    whole = check_groups(config.models, Findings()) and all(
        route.provider is not None or route.model in config.models for model in config.models.values() for route in model.routes
    )
    """Whether routes lead somewhere; else that is said already, and nobody can tell what they cost."""
    for name, budget in config.budgets.items():
        path: KeyPath = ("budgets", name)
        if not _NAME.fullmatch(name):
            found.wrong(path, "is no name for a budget; use letters, digits, `_`, `.` and `-`, at most 64")
        if not meter:
            found.wrong(path, "is kept by the plugin `meter`, which is not in pipeline.order; add it there")
        scope = _parsed(parse_scope, budget.scope, (*path, "scope"), found)
        limit = _parsed(parse_limit, budget.limit, (*path, "limit"), found)
        action = _parsed(parse_action, budget.action, (*path, "action"), found)
        if budget.soft is not None:
            _parsed(parse_soft, budget.soft, (*path, "soft"), found)
        if scope is not None:
            _check_scope(scope, (*path, "scope"), names, found)
        if limit is not None:
            _check_window(budget, limit, path, found)
        if scope is not None and action is not None and action[0] == "fallback":
            _check_fallback(scope, action[1], (*path, "action"), names, found)
        if scope is None or limit is None:
            continue
        counts = (budget.scope, limit.unit, budget.window, budget.sliding)
        if counts in seen:
            found.wrong(path, f"counts what `{seen[counts]}` counts; make them one, with `soft` for the lower limit")
        seen.setdefault(counts, name)
        if limit.unit == "nano" and whole:
            _check_prices(scope, config, names, (*path, "limit"), found)


def _parsed(parse: Callable[[str], T], text: str, where: KeyPath, found: Findings) -> T | None:
    try:
        return parse(text)
    except ValueError as error:
        found.wrong(where, str(error))
        return None


def _check_scope(scope: tuple[str, str], where: KeyPath, names: Names, found: Findings) -> None:
    kind, name = scope
    known = names.providers if kind == "provider" else names.models if kind == "model" else ()
    if name not in ("", "*") and known and name not in known:
        found.wrong(where, f'"{shown(name)}" is not in [{kind}s]; {suggest(name, sorted(known))}')


def _check_window(budget: BudgetConfig, limit: Limit, path: KeyPath, found: Findings) -> None:
    if limit.unit == "concurrent":
        for key, said in (("window", budget.window is not None), ("sliding", budget.sliding), ("mode", budget.mode != "strict")):
            if said:
                found.wrong((*path, key), "has no meaning for what is counted at once; remove it")
        return
    if budget.window is None:
        found.wrong((*path, "window"), 'is missing; add window = "minute", "hour", "day", "month" or "total"')
    elif budget.window == "total" and budget.sliding:
        found.wrong((*path, "sliding"), "has no meaning for a total, which never begins anew; remove it")
    if limit.unit == "requests" and budget.mode != "strict":
        found.wrong((*path, "mode"), "has no meaning for requests, which are counted exactly; remove it")


def _check_fallback(scope: tuple[str, str], model: str, where: KeyPath, names: Names, found: Findings) -> None:
    if names.models and model not in names.models:
        found.wrong(where, f'"{shown(model)}" is not in [models]; {suggest(model, sorted(names.models))}')
    elif scope == ("model", model):
        found.wrong(where, f'"{shown(model)}" is the model this budget is for; name another one')


def _check_prices(scope: tuple[str, str], config: Config, names: Names, where: KeyPath, found: Findings) -> None:
    """Every model that is covered has a price."""
    if not names.models:
        found.wrong(
            where, "counts dollars, but there are no [models] to say what anything costs; write them, each with its price"
        )
        return
    lacking = sorted(name for name in config.models if _covers(scope, name, config) and not _is_priced(config, name, scope))
    if lacking:
        listed = ", ".join(f"`{shown(name)}`" for name in lacking[:5]) + (" and more" if len(lacking) > 5 else "")
        words = "has no price" if len(lacking) == 1 else "have no price"
        found.wrong(where, f'counts dollars, but {listed} {words}; write price = {{ input = "...", output = "..." }} there')


def _covers(scope: tuple[str, str], model: str, config: Config) -> bool:
    kind, name = scope
    if kind == "model":
        return name in ("*", model)
    if kind == "key" and name in config.keys:
        patterns = config.keys[name].models
        return any(each == model or (each.endswith("*") and model.startswith(each[:-1])) for each in patterns)
    return True


def _is_priced(config: Config, name: str, scope: tuple[str, str]) -> bool:
    """Whether every route a request for the model may take has a price."""
    prices = prices_of(config, name)
    return all(
        price is not None or (scope[0] == "provider" and scope[1] not in ("*", route.provider))
        for price, route in zip(prices, flat_routes(config.models, name), strict=False)
    )
