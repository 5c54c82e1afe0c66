"""The `rate` clock: whether a provider that does answer answers fast enough.

Rule 1: whole content events count, never bytes: each is one token, or one for every four characters where it holds more. A
        provider that drips a byte a second into an event makes no token until the event is whole.
Rule 2: time counts while the provider has the word. While its client is written to, the window stands still.
Rule 3: windows follow one another; nothing that came in one helps the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from clawproxy.clocks import Rate
from clawproxy.events import CONTENT

CHARACTERS = 4
"""Of a token, about, in every tokeniser's English; elsewhere fewer, which only makes the clock milder."""
_EARLY = 1e-6
"""Seconds: what rounding may do to a moment that was put off."""


def tokens_of(events: Sequence[Any]) -> int:
    """How much content there is in `events`, in tokens, roughly."""
    total = 0
    for event in events:
        if type(event) in CONTENT:
            said = getattr(event, "text", None) or getattr(event, "arguments", None) or ""
            total += max(1, len(said) // CHARACTERS)
    return total


class RateWatch:
    """One attempt's. Made only where the clock is on.

    Attributes:
        due: when the window ends, unless it is put off.
        slow: too little came in a window.
        stall: when the other clock that runs meanwhile is due; kept here because both share one alarm.
    """

    __slots__ = ("_paused", "_tokens", "due", "rate", "slow", "stall")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.due = self.stall = math.inf
        self.slow = False
        self._paused: float | None = None
        self._tokens = 0

    def count(self, events: Sequence[Any], now: float) -> None:
        """Content came; the first of it begins the first window."""
        if self.due == math.inf:
            self.due = now + self.rate
        self._tokens += tokens_of(events)

    def pause(self, now: float) -> None:
        self._paused = now

    def resume(self, now: float, stall: float | None) -> float:
        """When the nearer of the two clocks is due. `stall`: the other one's time, where it begins anew."""
        put_off = 0.0 if self._paused is None else now - self._paused
        self._paused = None
        self.due += put_off
        self.stall = self.stall + put_off if stall is None else stall
        return min(self.due, self.stall)

    def goes_on(self, now: float) -> bool:
        """The alarm rang. Whether it was for a window in which enough came: then the next one has begun."""
        if self.due > now + _EARLY:
            return False
        self.slow = self._tokens < self.rate.tokens * self.rate
        self._tokens = 0
        self.due = now + self.rate
        return not self.slow
