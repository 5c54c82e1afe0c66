"""When a second attempt is worth making beside one that says nothing, and where: what a model's `hedge` comes to.

Rule 1: a hedge goes to another provider, by the order of the plan beneath, as if the attempt under way had given no first token
        in time. So what rests there rests here.
Rule 2: hedges are bought with what requests pay in (`Hedges.pay`), each the share that may be hedged: no slow provider can double
        the load on the others. What can be saved up is bounded, too.
Rule 3: a quantile is learnt from every attempt, a beaten or interrupted one by how long it had said nothing: left out, the slow
        ones would be forgotten and the quantile would sink with each hedge.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

from attrs import define, evolve, field, frozen

from clawproxy.config import Hedge
from clawproxy.context import App, Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.hookspecs import Plan
from clawproxy.messages import Route
from clawproxy_router.learned import Key
from clawproxy_router.plan import ELSEWHERE, Supposed

ENOUGH: Final = 20
"""First tokens seen at a place before a quantile of them is believed."""
KEPT: Final = 200
"""The latest ones."""
MOST_HELD: Final = 10.0
"""Hedges a purse can hold: a burst."""
MOST_PLACES: Final = 4096
SLOW: Final = ClawError("timeout.first_token")
"""What an attempt under way is taken to come to."""


@define(slots=True, eq=False)
class FirstTokens:
    """The latest times to a first token at one place, in seconds."""

    latest: deque[float] = field(factory=deque)
    ordered: list[float] = field(factory=list)

    def tell(self, seconds: float) -> None:
        if len(self.latest) >= KEPT:
            self.ordered.remove(self.latest.popleft())
        self.latest.append(seconds)
        insort(self.ordered, seconds)

    def quantile(self, share: float) -> float | None:
        """None while too little was seen."""
        if len(self.ordered) < ENOUGH:
            return None
        return self.ordered[min(len(self.ordered) - 1, int(len(self.ordered) * share))]


@define(slots=True, eq=False)
class Hedges:
    """One process's: kept in `app.shared`, so that a reload forgets nothing."""

    places: dict[Key, FirstTokens] = field(factory=dict)
    held: float = MOST_HELD
    """Hedges that are paid for."""

    def place(self, key: Key) -> FirstTokens:
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= MOST_PLACES:
                self.places.clear()
            place = self.places[key] = FirstTokens()
        return place

    def pay(self, share: float) -> None:
        """A request that may be hedged came."""
        self.held = min(MOST_HELD, self.held + share)

    @property
    def can_buy(self) -> bool:
        return self.held >= 1.0

    def buy(self) -> bool:
        if not self.can_buy:
            return False
        self.held -= 1.0
        return True

    def learn(self, exchange: Exchange, attempt: Attempt, share: float) -> None:
        """An attempt is over: how long its first token took, or how long none came."""
        if not attempt.sent:
            return
        waited = (exchange.timing if attempt.timing is None else attempt.timing).first_token if attempt.content else None
        if waited is None:  # it said nothing, all the while (beaten, its content may have been on the way)
            waited = max(0.0, (attempt.closed_at or attempt.started) - attempt.started)
        place = self.place(place_of(attempt.route))
        if not attempt.content and attempt.error is not None and attempt.error.slug != SLOW.slug:
            known = place.quantile(share)
            if known is None or waited <= known:  # it was given up before it was slow, so it tells nothing
                return
        place.tell(waited)


@frozen(slots=True)
class Hedging:
    """A plan, and beside its first route a second one where that says nothing."""

    plan: Plan
    hedges: Hedges
    hedge: Hedge
    floor: float
    """Seconds: no earlier, whatever was learnt."""
    count: Callable[..., None]

    @property
    def candidates(self) -> Sequence[Route]:
        return self.plan.candidates

    def next(self, history: Sequence[Attempt]) -> Route | None:
        if not history:
            route = self.plan.next(history)
            after = None if route is None or route.recorded is not None else self._after(route)
            return route if route is None or after is None else evolve(route, hedge_after=after)
        if history[-1].outcome is None:
            return self._beside(history)
        return self.plan.next(raced_last(history))

    def _after(self, route: Route) -> float | None:
        """Seconds; None: not at all."""
        if self.hedge.after is not None:
            return self.hedge.after
        learnt = self.hedges.place(place_of(route)).quantile(self.hedge.quantile or 1.0)
        return None if learnt is None else max(learnt, self.floor)

    def _beside(self, history: Sequence[Attempt]) -> Route | None:
        """Where the hedge of the attempt under way goes; None where nowhere, or where it is not paid for."""
        running = history[-1]
        elsewhere = any(route.provider != running.route.provider for route in self.candidates)
        if not elsewhere or not self.hedges.can_buy:
            # Before the plan is asked: what it gives it takes (a probe, a credential's turn), and nobody would give that back.
            if elsewhere:
                self.count("clawproxy_hedges_total", result="withheld")
            return None
        route = self.plan.next(Supposed([*history[:-1], evolve(running, sent=True, error=SLOW)], history))
        if route is None or route.provider == running.route.provider or route.after or route.recorded is not None:
            return None
        self.hedges.buy()
        self.count("clawproxy_hedges_total", result="begun")
        return evolve(route, reason="hedge", hedge_after=None)


def place_of(route: Route) -> Key:
    return route.provider, route.model


def raced_last(history: Sequence[Attempt]) -> Sequence[Attempt]:
    """The attempts, of those that raced the one last that says what to do next: what another route may not have, or else a fault
    of a provider's, rather than having been beaten or refused."""
    raced = [attempt for attempt in history if attempt.timing is not None]
    if len(raced) < 2:
        return history
    raced.sort(key=_says_more)
    return Supposed([*raced, *(attempt for attempt in history if attempt.timing is None)], history)


def _says_more(attempt: Attempt) -> bool:
    error = attempt.error
    return error is not None and (error.kind.fault == "provider" or error.slug in ELSEWHERE)


def hedges_of(app: App) -> Hedges:
    """The process's, made when it is first asked for."""
    hedges = app.shared.get("router.hedges")
    if hedges is None:
        hedges = app.shared["router.hedges"] = Hedges()
    return cast(Hedges, hedges)
