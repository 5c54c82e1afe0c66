"""What a client gets where no route could serve it: an older answer, the operator's own sentence, or the fault as it is.

Rule 1: only for what is no doing of the client's, and only while nothing was released.
Rule 2: status, slug and details stay what they are: a sentence is for people, clients go by the rest.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.messages import Route

DEGRADED: Final = "degraded"
"""The reason of a route that is the last resort."""
OWN: Final = frozenset({"no_route", "timeout.queue"})
"""Faults of the gateway's that count as a route's."""


def no_route_could(error: ClawError) -> bool:
    """Whether it means that no route could serve the request, rather than that the request can not be served."""
    if error.slug == "provider_error.rejected":
        return False
    return error.kind.fault == "provider" or error.slug in OWN


def without_route(exchange: Exchange, last: Attempt | None, error: ClawError, sentence: str | None) -> Route:
    """The last resort, where there is one. Raises ClawError: `error`, in the operator's words where there are some.

    Args:
        last: the last attempt.
        sentence: `unavailable` of the model.
    """
    if (last is not None and last.content) or not no_route_could(error):
        raise error
    resort = exchange.last_resort
    if resort is not None and not (last is not None and last.route.reason == DEGRADED):
        exchange.notice(DEGRADED, "No route could answer; this is an older answer to the same request.", error=error.slug)
        return resort if resort.reason == DEGRADED else evolve(resort, reason=DEGRADED)
    if sentence is not None:
        said = ClawError(error.slug, sentence)
        said.details = error.details
        raise said from error
    raise error
