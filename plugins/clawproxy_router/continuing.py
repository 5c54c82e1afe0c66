"""Where an answer goes on that was cut in the middle.

Rule 1: at another provider where there is one that the plan beneath would fail over to, else where it was: what is asked is a new
        prompt, not the same request again.
Rule 2: at most `MOST` times for one request, and never beyond `max_attempts`.
Rule 3: never to a place that rests, the one that began the answer included.
Rule 4: only after a fault that is the provider's own: what it refused in the middle it would refuse again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from clawproxy.context import Attempt
from clawproxy.errors import ClawError
from clawproxy.hookspecs import Plan
from clawproxy.messages import Route
from clawproxy_router.plan import ELSEWHERE, Supposed

if TYPE_CHECKING:
    from clawproxy_router.resting import Guard

MOST: Final = 2
CUT: Final = ELSEWHERE | {"timeout.stall", "timeout.rate"}
LOST: Final = ClawError("provider_error.cut")


@frozen(slots=True)
class Continuing:
    """A plan that knows a route for the rest of an answer, too."""

    plan: Plan
    max_attempts: int
    guard: Guard | None = None

    @property
    def candidates(self) -> Sequence[Route]:
        return self.plan.candidates

    def next(self, history: Sequence[Attempt]) -> Route | None:
        if not any(attempt.content for attempt in history):
            return self.plan.next(history)
        last = history[-1]
        made = sum(attempt.route.reason == "continue" for attempt in history)
        if last.error is None or last.error.slug not in CUT or made >= MOST or len(history) >= self.max_attempts:
            return None
        # As if each had failed before it said anything: then the plan names another.
        silent = (evolve(attempt, content=False, error=LOST if attempt.content else attempt.error) for attempt in history)
        try:
            route = self.plan.next(Supposed(silent, history))
        except ClawError:  # every one rests
            return None
        if route is None:
            route = last.route if self.guard is None else self.guard.once_more(last.route, history)
        return None if route is None else evolve(route, reason="continue", hedge_after=None)
