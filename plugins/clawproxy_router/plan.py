"""The order of attempts: first route, then failover, while it can help and harms nobody."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve, field, frozen, validators

from clawproxy.config import Duration
from clawproxy.context import Attempt
from clawproxy.errors import ClawError
from clawproxy.messages import Route

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


@frozen(slots=True)
class PriorityPlan:
    """Each candidate once, in order; then, once in all, one again whose attempt never left the gateway."""

    candidates: Sequence[Route]
    max_attempts: int = 3

    def next(self, history: Sequence[Attempt]) -> Route | None:
        """The route of the next attempt, None where there is none worth making. `history` is every attempt so far."""
        if not history:
            return self.candidates[0] if self.candidates else None
        if len(history) >= self.max_attempts or not may_go_elsewhere(history[-1]):
            return None
        tried = {_place(attempt.route) for attempt in history}
        spent = {attempt.route.provider for attempt in history if attempt.sent and _is_unknown(attempt.error)}
        for route in self.candidates:
            if _place(route) not in tried and route.provider not in spent:
                return evolve(route, reason="failover")
        return self._again(history, spent)

    def _again(self, history: Sequence[Attempt], spent: set[str]) -> Route | None:
        if any(attempt.route.reason == "retry" for attempt in history):
            return None
        for attempt in history:
            waited = attempt.error is not None and attempt.error.slug == "timeout.queue"
            if not attempt.sent and not waited and attempt.route.provider not in spent:
                return evolve(attempt.route, reason="retry")
        return None


def may_go_elsewhere(attempt: Attempt) -> bool:
    """Whether another attempt could help after this one, and would repeat nothing the client has seen."""
    return not attempt.content and attempt.error is not None and attempt.error.slug in ELSEWHERE


def _is_unknown(error: ClawError | None) -> bool:
    return error is not None and error.slug in UNKNOWN


def _place(route: Route) -> tuple[str, str]:
    return route.provider, route.model
