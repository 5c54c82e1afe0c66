"""The order of attempts: first route, then failover, while it can help and harms nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen, validators

from clawproxy.config import Duration
from clawproxy.context import Attempt
from clawproxy.messages import Route
from clawproxy_router.breakers import BreakerSettings
from clawproxy_router.credentials import CredentialSettings
from clawproxy_router.ejection import EjectionSettings
from clawproxy_router.retries import RetrySettings

if TYPE_CHECKING:
    from clawproxy_router.resting import Guard

ELSEWHERE = frozenset(
    {
        "timeout.queue",  # no place in this provider's pool; another's may be empty
        "timeout.connect",
        "timeout.first_token",
        *(
            f"provider_error.{kind}"
            for kind in (
                "unreachable", "cut", "malformed", "redirect", "auth", "quota",
                "rate_limited", "overloaded", "server", "not_found", "breaker_open",
            )
        ),
    }
)  # fmt: skip
"""Faults that another route may not have. `rejected` and a prompt that is too long would be refused there too."""

UNKNOWN = frozenset({"timeout.first_token", "provider_error.cut", "provider_error.malformed", "provider_error.unreachable"})
"""After these nobody knows whether the provider worked on what it was sent; a status from it says that it did not."""


@frozen
class RouterSettings:
    """`[plugins.router]`."""

    max_attempts: int = field(default=3, validator=validators.ge(1))
    """Calls of providers for one request, the first included."""
    explore: float = field(default=0.02, validator=[validators.ge(0.0), validators.le(1.0)])
    """The share of requests that `latency` sends elsewhere than to the fastest route, to learn how fast the others are."""
    memory: Duration = field(default=Duration(30.0), validator=validators.gt(Duration(0.0)))
    """How long what was measured counts: after so many seconds, about a third of it."""
    affinity_ttl: Duration = field(default=Duration(300.0), validator=validators.gt(Duration(0.0)))
    """How long a provider keeps a prompt in its cache, since it was last used."""
    affinity_load: float = field(default=1.25, validator=validators.ge(1.0))
    """What has more than so many times its share of the requests at work draws no more of them by its cache."""
    hedge_share: float = field(default=0.1, validator=[validators.ge(0.0), validators.le(1.0)])
    """Of the requests of models with `hedge`, what share may be hedged in the long run."""
    hedge_floor: Duration = field(default=Duration(0.1), validator=validators.ge(Duration(0.0)))
    """What was learnt hedges no earlier than after so many seconds."""
    breaker: BreakerSettings = field(factory=BreakerSettings)
    credentials: CredentialSettings = field(factory=CredentialSettings)
    retries: RetrySettings = field(factory=RetrySettings)
    ejection: EjectionSettings = field(factory=EjectionSettings)


@frozen(slots=True)
class PriorityPlan:
    """Each candidate once, in order; then again, after a while, what its provider certainly did not work on.

    Without a `guard`: nothing rests, and only an attempt that never left the gateway is made again, once, at once."""

    candidates: Sequence[Route]
    max_attempts: int = 3
    guard: Guard | None = field(default=None, eq=False)
    turns: bool = field(default=False, eq=False)
    """A candidate's provider has several credentials, which take turns."""

    def next(self, history: Sequence[Attempt]) -> Route | None:
        """The route of the next attempt, None where there is none worth making. `history` is every attempt so far."""
        guard = self.guard
        if guard is not None:
            health = guard.known or guard.health
            if history or self.turns or health.breakers or health.credentials:
                return guard.next(self, history)
        if not history:
            return self.candidates[0] if self.candidates else None
        if len(history) >= self.max_attempts or not may_go_elsewhere(history[-1]):
            return None
        tried = {place_of(attempt.route) for attempt in history}
        spent = unknown_to(history)
        for route in self.candidates:
            if place_of(route) not in tried and route.provider not in spent:
                return evolve(route, reason="failover")
        return self._again(history, spent)

    def _again(self, history: Sequence[Attempt], spent: frozenset[str]) -> Route | None:
        if any(attempt.route.reason == "retry" for attempt in history):
            return None
        for attempt in history:
            waited = attempt.error is not None and attempt.error.slug == "timeout.queue"
            if not attempt.sent and not waited and attempt.route.provider not in spent:
                return evolve(attempt.route, reason="retry")
        return None


class Supposed(list[Attempt]):
    """A history as it would be had attempts of it ended otherwise.

    Attributes:
        real: the request's own, to which the next attempt will be added.
    """

    __slots__ = ("real",)

    def __init__(self, attempts: Iterable[Attempt], of: Sequence[Attempt]) -> None:
        super().__init__(attempts)
        self.real: Sequence[Attempt] = of.real if isinstance(of, Supposed) else of


def may_go_elsewhere(attempt: Attempt) -> bool:
    """Whether another attempt could help after this one, and would repeat nothing the client has seen."""
    return not attempt.content and attempt.error is not None and attempt.error.slug in ELSEWHERE


def unknown_to(history: Sequence[Attempt]) -> frozenset[str]:
    """The providers of which nobody knows whether they work on the request."""
    return frozenset([
        attempt.route.provider
        for attempt in history
        if attempt.sent and attempt.error is not None and attempt.error.slug in UNKNOWN
    ])  # fmt: skip


def place_of(route: Route) -> tuple[str, str]:
    return route.provider, route.model
