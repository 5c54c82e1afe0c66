"""What a service knows of its budgets beside what the store counts: who waits, what was told, how much is used.

`app.shared["budgets"]` is the service's `Budgets`: `used(name, exchange)` is for policies and routers.

Rule 1: what was told is told once for each window of an account, to the operator and to one client.
Rule 2: nothing here decides; the store does.
"""

from __future__ import annotations

import logging
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

MOST_TOLD = 16_384
"""Windows of accounts that are remembered as told."""


class Budgets:
    """One service's, across reloads."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.lines = Lines()
        self._told: dict[tuple[Account, str, float | None], None] = {}
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

    def crossed(self, rule: Rule, scope: str, now: float, *, own: int = 0) -> tuple[str, int, Standing] | None:
        """What there is to tell of the account (`soft` or, for a budget that only notifies, `hard`), and what is used of it.

        Args:
            own: what the attempt holds itself, where that is sure to be used.
        """
        account = rule.account(scope)
        standing = self.standing(account, now)
        if standing is None:
            return None
        used = standing.used + (standing.held if rule.unit in AT_ONCE else own)
        if rule.action == "notify" and used > rule.limit:
            return "hard", used, standing
        if rule.soft is not None and used >= rule.soft:
            return "soft", used, standing
        return None

    def first(self, what: str, standing: Standing) -> bool:
        """Whether this is told for the first time in its window."""
        key = (standing.account, what, standing.resets_at if not standing.account.sliding else None)
        if key in self._told:
            return False
        if len(self._told) >= MOST_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        return True

    def alert(self, what: str, rule: Rule, scope: str, used: int) -> None:
        """Tell the operator: a log line, a counter, and whoever watches."""
        log.warning("budget %s: %s of %s for %s: used %d of %d", rule.name, what, rule.words, scope, used, rule.limit)
        self._app.count("clawproxy_budget_alerts_total", budget=rule.name, what=what)
        for watcher in self.watchers:
            watcher({"budget": rule.name, "what": what, "scope": scope, "unit": rule.unit, "used": used, "limit": rule.limit})


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
