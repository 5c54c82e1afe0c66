"""What is wrong with places and credentials now, for the whole process: kept over reloads, and empty while nothing is wrong.

Rule: everything is bounded (`MOST`); what is thrown out is learnt again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from attrs import define, field

from clawproxy.context import App
from clawproxy_router.breakers import Breaker
from clawproxy_router.credentials import Resting
from clawproxy_router.retries import Budget

MOST: Final = 4096
"""Places, or credentials, that may be in trouble at once: without [models] clients name models without end."""
STATES: Final[Mapping[str, int]] = {"closed": 0, "half_open": 1, "open": 2}
SHARED: Final = "router.health"
"""Its place in `app.shared`."""

K = TypeVar("K")
V = TypeVar("V")


@define(slots=True, eq=False)
class Health:
    breakers: dict[tuple[str, str], Breaker] = field(factory=dict)
    """By provider and model; only of places that failed of late."""
    credentials: dict[tuple[str, int], Resting] = field(factory=dict)
    """By provider and place in the configuration; only of those that had trouble since their last good answer."""
    turns: dict[str, int] = field(factory=dict)
    """The credential whose turn is next, of providers that have several."""
    budget: Budget = field(factory=Budget)
    marks: int = 0
    """Of routes, the last one given."""
    requests: int = 0
    """First attempts that ended, since the process began."""

    def breaker(self, key: tuple[str, str]) -> Breaker:
        return _found(self.breakers, key, Breaker)

    def credential(self, key: tuple[str, int]) -> Resting:
        return _found(self.credentials, key, Resting)

    def states(self) -> Mapping[tuple[str, str], float]:
        """0 closed, 1 half-open, 2 open: of the places that are not just well."""
        return {key: float(STATES[breaker.state]) for key, breaker in list(self.breakers.items())[:64]}


def _found(records: dict[K, V], key: K, make: type[V]) -> V:
    record = records.get(key)
    if record is None:
        if len(records) >= MOST:
            for old in list(records)[: MOST // 4]:
                del records[old]
        record = records[key] = make()
    return record


def health_of(app: App) -> Health:
    """The process's, made when it is first asked for."""
    found: Any = app.shared.get(SHARED)
    if found is None:
        found = app.shared[SHARED] = Health()
    assert isinstance(found, Health)
    return found
