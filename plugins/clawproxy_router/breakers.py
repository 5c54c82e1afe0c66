"""A circuit breaker: one place's (a model at a provider), as plain values. Nothing here waits or asks the time.

    closed     results are counted; too many failures in the window, or in a row: open
    open       nobody is sent there until a time that grows with each opening; then half-open
    half_open  one request at a time is let through; so many good ones close it, a bad one opens it again

Rule 1: a breaker exists from a place's first failure until its window holds none any more. A place without one is well.
Rule 2: while it is not closed, only the probe's result counts: what was under way when it opened says nothing new.
Rule 3: an active check that finds the provider down holds it open until the next one (`hold`); one that finds it there ends what
        a check began, and no more than that (`found`): a list of models says nothing of answers.
Rule 4: how long it stays open is drawn: of many gateways, not all shall come back in the same moment.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final, Literal

from attrs import define, field, frozen, validators

from clawproxy.config import Duration
from clawproxy.context import Attempt

BUCKETS: Final = 10
"""Pieces of the window: it moves by one of them."""
JITTER: Final = 0.2
"""Of an opening's length, how much chance may take off."""
LOST: Final = 15.0
"""Seconds after which a probe that nobody ever saw begin is given up."""

State = Literal["closed", "open", "half_open"]
_positive = validators.gt(Duration(0.0))


@frozen
class BreakerSettings:
    """`[plugins.router.breaker]`."""

    enabled: bool = True
    consecutive: int = field(default=5, validator=validators.ge(1))
    """Failures in a row that open it."""
    rate: float = field(default=0.5, validator=[validators.gt(0.0), validators.le(1.0)])
    """The share of requests in the window whose failure opens it..."""
    requests: int = field(default=20, validator=validators.ge(1))
    """...where the window holds at least so many."""
    window: Duration = field(default=Duration(10.0), validator=_positive)
    open: Duration = field(default=Duration(2.0), validator=_positive)
    """How long it stays open at first; twice as long each time it opens again..."""
    longest: Duration = field(default=Duration(10.0), validator=_positive)
    """...up to this."""
    probes: int = field(default=1, validator=validators.ge(1))
    """Good probes in a row that close it. There is never more than one under way."""


@define(slots=True, eq=False)
class Window:
    """How many requests there were of late, and how many of them failed."""

    pieces: deque[list[int]] = field(factory=deque)
    """`[number of the piece, requests, failures]`, the oldest first."""

    def add(self, good: bool, now: float, length: float) -> None:
        number = int(now * BUCKETS / length)
        if not self.pieces or self.pieces[-1][0] != number:
            self.pieces.append([number, 0, 0])
        self.pieces[-1][1] += 1
        self.pieces[-1][2] += not good
        self._forget(number)

    def counts(self, now: float, length: float) -> tuple[int, int]:
        """Requests and failures within the last `length` seconds."""
        self._forget(int(now * BUCKETS / length))
        return sum(piece[1] for piece in self.pieces), sum(piece[2] for piece in self.pieces)

    def _forget(self, number: int) -> None:
        while self.pieces and self.pieces[0][0] <= number - BUCKETS:
            self.pieces.popleft()


@define(slots=True, eq=False)
class Probe:
    """A request let through to see. `history`: its attempts, where this one will be found by its route's `mark`."""

    mark: int
    history: Sequence[Attempt]
    began: float

    def attempt(self) -> Attempt | None:
        return next((attempt for attempt in self.history if attempt.route.mark == self.mark), None)


@define(slots=True, eq=False)
class Breaker:
    state: State = "closed"
    until: float = -math.inf
    """While open: when it may be tried."""
    openings: int = 0
    """Since it was last well."""
    in_a_row: int = 0
    good: int = 0
    """Probes, since it is half-open."""
    probe: Probe | None = None
    window: Window = field(factory=Window)
    noted: float = -math.inf
    """When it last failed or changed."""
    ejected: float = -math.inf
    """Until when its siblings are preferred to it."""
    checked: bool = False
    """It is open by a check's word alone: it was well when its provider was found to be down."""

    def tell(self, good: bool, now: float, settings: BreakerSettings, random: Random) -> State | None:
        """A request ended while the breaker was closed. Returns the new state where it changed."""
        if self.state != "closed":
            return None
        self.window.add(good, now, settings.window)
        if good:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.noted = now
        requests, failures = self.window.counts(now, settings.window)
        if settings.enabled and (
            self.in_a_row >= settings.consecutive or (requests >= settings.requests and failures >= settings.rate * requests)
        ):
            return self._open(now, settings, random)
        return None

    def probed(self, good: bool, now: float, settings: BreakerSettings, random: Random) -> State | None:
        """The probe ended. Returns the new state where it changed."""
        self.probe = None
        if self.state != "half_open":
            return None
        if not good:
            return self._open(now, settings, random)
        self.good += 1
        if self.good < settings.probes:
            return None
        self.state, self.noted, self.in_a_row = "closed", now, 0
        self.window = Window()
        return self.state

    def hold(self, now: float, seconds: float) -> State | None:
        """A check found its provider down: nobody is sent there before the next one. Returns the new state where it changed."""
        changed = self.state != "open"
        self.checked = self.checked or self.state == "closed"
        self.state, self.noted, self.in_a_row, self.probe = "open", now, 0, None
        self.until = max(self.until, now + seconds)
        return self.state if changed else None

    def found(self, now: float) -> State | None:
        """A check found its provider there: what a check opened is closed, what requests opened may be tried now. Returns the new
        state where it changed."""
        if self.state != "open":
            return None
        checked, self.checked = self.checked, False
        self.state, self.noted, self.good, self.probe = "closed" if checked else "half_open", now, 0, None
        self.window = Window()
        return self.state

    def look(self, now: float) -> State | None:
        """An opening whose time is over becomes half-open: returned where that is so. A probe that never began is given up."""
        if self.state == "open" and now >= self.until:
            self.state, self.noted, self.good, self.probe, self.checked = "half_open", now, 0, None, False
            return self.state
        probe = self.probe
        if probe is not None and now - probe.began > LOST and probe.attempt() is None:
            self.probe = None
        return None

    def wait(self, now: float) -> float:
        """Seconds until it may be asked again; 0 where it may now. Call `look` before."""
        if self.state == "closed" or (self.state == "half_open" and self.probe is None):
            return 0.0
        return max(1.0, self.until - now) if self.state == "open" else 1.0

    def well(self, now: float, settings: BreakerSettings) -> bool:
        """Nothing is wrong any more: it can be forgotten."""
        return self.state == "closed" and now >= self.ejected and now - self.noted >= settings.window

    def rate(self, now: float, settings: BreakerSettings) -> tuple[float, int]:
        """The share of requests that failed of late, and how many there were."""
        requests, failures = self.window.counts(now, settings.window)
        return (failures / requests if requests else 0.0), requests

    def _open(self, now: float, settings: BreakerSettings, random: Random) -> State:
        longest = min(settings.longest, settings.open * 2.0 ** min(self.openings, 30))
        self.until = now + longest * (1.0 - JITTER * random.random())
        self.openings += 1
        self.state, self.noted, self.in_a_row, self.probe = "open", now, 0, None
        self.window = Window()
        return self.state
