"""How the configured budgets stand, account by account: for the command line, the admin API, and a key's own page.

Rule: a budget for each (`user:*`) stands once for everybody who was charged in its window; one by name always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import frozen

from clawproxy.config import BudgetConfig, Config, parse_limit, parse_scope
from clawproxy.config.budgets import Limit
from clawproxy.ops.reports import instant, usd
from clawproxy.stores.base import Account, Standing, Store, Window
from clawproxy.stores.windows import oldest, period_of


@frozen
class BudgetStanding:
    name: str
    scope: str
    unit: str
    window: Window
    sliding: bool
    limit: int
    used: int
    held: int | None
    """By requests under way; None where only the gateway itself knows (`concurrent`)."""
    overrun: int
    resets_at: float | None
    """Unix time."""
    words: str
    """`$5.00 a day`."""
    action: str

    @property
    def share(self) -> float | None:
        """Of the limit, what is used or held."""
        return None if not self.limit or self.held is None else (self.used + self.held) / self.limit


def account_of(budget: BudgetConfig, scope: str) -> Account:
    """Of a configuration that was checked."""
    return Account(scope, parse_limit(budget.limit).unit, budget.window or "total", budget.sliding)


async def budget_standings(store: Store, config: Config, now: float, *, inside: bool = False) -> list[BudgetStanding]:
    """Args:
        inside: asked within the gateway, whose store knows what is held at this moment.

    Raises ClawError("store_unavailable").
    """
    wanted: list[tuple[str, BudgetConfig, Account]] = []
    for name, budget in config.budgets.items():
        limit = parse_limit(budget.limit)
        scopes = await _scopes(store, config, budget, limit, now)
        wanted += [(name, budget, account_of(budget, scope)) for scope in scopes]
    standings = await store.standing([account for *_, account in wanted], now) if wanted else []
    return [
        _standing(name, budget, standing, inside=inside) for (name, budget, _), standing in zip(wanted, standings, strict=True)
    ]


def _standing(name: str, budget: BudgetConfig, standing: Standing, *, inside: bool) -> BudgetStanding:
    account = standing.account
    return BudgetStanding(
        name=name,
        scope=account.scope,
        unit=account.unit,
        window=account.window,
        sliding=account.sliding,
        limit=parse_limit(budget.limit).amount,
        used=standing.used,
        held=standing.held if inside or account.unit != "concurrent" else None,
        overrun=standing.overrun,
        resets_at=standing.resets_at,
        words=_words(budget),
        action=budget.action,
    )


async def _scopes(store: Store, config: Config, budget: BudgetConfig, limit: Limit, now: float) -> list[str]:
    kind, who = parse_scope(budget.scope)
    if who != "*":
        return [budget.scope.strip()]
    window: Window = budget.window or "total"
    named = {
        other.scope.strip()
        for other in config.budgets.values()
        if (parse_limit(other.limit).unit, other.window or "total", other.sliding) == (limit.unit, window, budget.sliding)
    }
    found = dict.fromkeys(
        total.account.scope
        for total in await store.totals(oldest(window, budget.sliding, now))
        if total.account[1:] == (limit.unit, window, budget.sliding) and total.account.scope.startswith(f"{kind}:")
    )
    return [scope for scope in found if scope not in named]


def _words(budget: BudgetConfig) -> str:
    limit, window = budget.limit.strip(), budget.window
    if window is None:
        return limit
    if window == "total":
        return f"{limit} in all"
    return f"{limit} in any {window}" if budget.sliding else f"{limit} {'an' if window == 'hour' else 'a'} {window}"


def standings_document(found: Sequence[BudgetStanding], now: float) -> dict[str, Any]:
    return {"at": instant(now), "budgets": [_document(each) for each in found]}


def _document(each: BudgetStanding) -> dict[str, Any]:
    dollars = each.unit == "nano"
    figures: dict[str, int | None] = {"limit": each.limit, "used": each.used, "held": each.held, "overrun": each.overrun}
    if each.held is not None:
        figures["left"] = max(0, each.limit - each.used - each.held)
    said: dict[str, int | msgspec.Raw | None] = {
        name: usd(value) if dollars and value is not None else value for name, value in figures.items()
    }
    return {
        "budget": each.name,
        "scope": each.scope,
        "unit": "usd" if dollars else each.unit,
        "window": each.window,
        "sliding": each.sliding,
        "action": each.action,
        **said,
        "share": None if each.share is None else round(each.share, 6),
        "resets_at": None if each.resets_at is None else instant(each.resets_at),
    }


_OWN_WINDOWS: tuple[Window, ...] = ("month", "day", "total", "hour", "minute")


async def own_budget(store: Store, config: Config, key: str, user: str | None, now: float) -> BudgetStanding | None:
    """The dollar budget that a key comes under as itself or as its user: one by name before one for each, the longer window
    people think in before the shorter. None where there is none. Raises ClawError("store_unavailable")."""
    found: list[tuple[tuple[int, int, int], str, BudgetConfig, str]] = []
    for name, budget in config.budgets.items():
        kind, who = parse_scope(budget.scope)
        own = key if kind == "key" else user if kind == "user" else None
        if own and who in (own, "*") and parse_limit(budget.limit).unit == "nano":
            rank = (("key", "user").index(kind), _OWN_WINDOWS.index(budget.window or "total"), int(who == "*"))
            found.append((rank, name, budget, f"{kind}:{own}"))
    if not found:
        return None
    _, name, budget, scope = min(found)
    [standing] = await store.standing([account_of(budget, scope)], now)
    return _standing(name, budget, standing, inside=True)


def window_key(scope: str, window: Window, now: float) -> str:
    """What names a fixed window of an account to clients: `key:bench/2026-11`."""
    period = instant(period_of(window, False, now))
    return f"{scope}/{'total' if window == 'total' else period[:7] if window == 'month' else period[:16] + 'Z'}"
