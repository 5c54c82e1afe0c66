"""What a service knows of its budgets beside what the store counts: who waits, what was told, how much is used.

`app.shared["budgets"]` is the service's `Budgets`: `used(name, exchange)` is for policies and routers.

Rule 1: what was told is told once for each window of an account, to the operator and to one client.
Rule 2: nothing here decides; the store does, and is asked no oftener than needed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from clawproxy.stores.base import Account, Standing
from clawproxy_meter.queues import Lines
from clawproxy_meter.rules import AT_ONCE, Rule, Rules, compiled

if TYPE_CHECKING:
    from clawproxy.config import BudgetConfig
    from clawproxy.context import App, Exchange

log = logging.getLogger("clawproxy.meter")
T = TypeVar("T")

MOST_WATCHED = 16_384
"""Accounts of which it is remembered what was told."""
SECONDS = {"minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400}


class Budgets:
    """One service's, across reloads."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.lines = Lines()
        self._watches: dict[tuple[Rule, str], Watch] = {}
        self._rules = Rules()
        self._made_of: Mapping[str, BudgetConfig] | None = None
        self.watchers: list[Callable[[dict[str, Any]], None]] = []
        """Called with each alert, synchronously."""

    def used(self, name: str, exchange: Exchange) -> float:
        """Which share of the budget `name` is used up, of the account that this exchange comes under: 0.0 where it comes under
        none or where that can not be known at once. What is held by requests under way counts."""
        config = self._app.config.budgets
        if config is not self._made_of:
            self._made_of, self._rules = config, compiled(config)
        applied = self._rules.named_for(name, exchange)
        if applied is None:
            return 0.0
        rule, scope = applied
        standing = self.standing(rule.account(scope), exchange.started_unix)
        return 0.0 if standing is None or not rule.limit else (standing.used + standing.held) / rule.limit

    def standing(self, account: Account, now: float) -> Standing | None:
        """None where the store would have to be waited for."""
        rows = at_once(self._app.store.standing([account], now))
        return rows[0] if rows else None

    def watch(self, rule: Rule, scope: str) -> Watch:
        key = (rule, scope)
        found = self._watches.get(key)
        if found is None:
            if len(self._watches) >= MOST_WATCHED:
                del self._watches[next(iter(self._watches))]
            found = self._watches[key] = Watch(rule, scope)
        return found

    def alert(self, what: str, rule: Rule, scope: str, used: int) -> None:
        """Tell the operator: a log line, a counter, and whoever watches."""
        log.warning("budget %s: %s of %s for %s: used %d of %d", rule.name, what, rule.words, scope, used, rule.limit)
        self._app.count("clawproxy_budget_alerts_total", budget=rule.name, what=what)
        self.tell(what, rule, scope, used)

    def tell(self, what: str, rule: Rule, scope: str, used: int) -> None:
        """Tell whoever watches: `soft`, `hard`, `exhausted` (a request was turned away), `overrun`."""
        for watcher in self.watchers:
            watcher({"budget": rule.name, "what": what, "scope": scope, "unit": rule.unit, "used": used, "limit": rule.limit})


class Watch:
    """One account on its way to what is to be told of it: `soft`, and `hard` where a budget only notifies.

    The store is asked only where enough was held since it was last asked that something may have been passed.
    """

    __slots__ = ("_account", "_ends", "_left", "_told", "rule", "scope")

    def __init__(self, rule: Rule, scope: str) -> None:
        self.rule = rule
        self.scope = scope
        self._account = rule.account(scope)
        self._told: set[str] = set()
        self._left = 0
        """What may be held until it has to be looked at again."""
        self._ends = math.inf
        """When what was told may be told again."""

    def holds(self, amount: int, now: float) -> bool:
        """An attempt holds so much: whether it is to be looked at, now and when the attempt ends."""
        self._left -= amount
        return self._left <= 0 or now >= self._ends

    def look(self, budgets: Budgets, now: float, own: int) -> tuple[str, Standing, int] | None:
        """What is passed (`soft`, `hard`) and how much is used. `own`: what is held already and sure to be used."""
        if now >= self._ends:
            self._told.clear()
        standing = budgets.standing(self._account, now)
        if standing is None:
            return None
        rule = self.rule
        if not self._told:
            self._ends = self._end(standing, now)
        used = standing.used + (standing.held if rule.unit in AT_ONCE else own)
        passed = ""
        for what, most in (("soft", rule.soft), ("hard", rule.limit + 1 if rule.action == "notify" else None)):
            if most is None or (what in self._told and f"{what} notice" in self._told):
                continue
            self._left = most - standing.used - standing.held
            if used < most:
                break
            passed = what
        else:
            self._left = rule.limit if not passed else -1
        return (passed, standing, used) if passed else None

    def _end(self, standing: Standing, now: float) -> float:
        if self.rule.sliding:
            return now + SECONDS.get(self.rule.window, math.inf)
        return math.inf if standing.resets_at is None else standing.resets_at

    def first(self, what: str) -> bool:
        """Whether this is told for the first time in its window."""
        if what in self._told:
            return False
        self._told.add(what)
        return True


def budgets_of(app: App) -> Budgets:
    found: Budgets | None = app.shared.get("budgets")
    if found is None:
        found = app.shared["budgets"] = Budgets(app)
    return found


def at_once(waiting: Awaitable[T]) -> T | None:
    """The answer of something that has no need to wait; None where it has."""
    steps = waiting.__await__()
    try:
        next(steps)
    except StopIteration as done:
        answer: T = done.value
        return answer
    close = getattr(steps, "close", None)
    if close is not None:
        close()
    return None
