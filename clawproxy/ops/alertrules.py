"""What is watched for alerts: the share of requests that fail, first tokens that are late, keys that use more than is usual.

Rule 1: figures are of a window that moves in ten steps, for the service and for each provider; below `alerts.least` requests in
        it none is told.
Rule 2: a failure is one that a provider or the gateway is at fault for. What clients do wrong is none.
Rule 3: a percentile is that of a histogram whose steps are 9 % apart: told as the upper end of its step.
Rule 4: what is usual for a key is the moving average of the tokens of the hours in which it used any, in the ledger's last week
        and since. Whoever was there for fewer than three such hours has no usual.
Rule 5: synchronous and bounded: a few dict look-ups for each request, and only where a threshold is set.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import define, field

from clawproxy.config import AlertsConfig, parse_soft
from clawproxy.context import App, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.stores.base import UsageRow

STEPS: Final = 10
MOST_KEYS: Final = 10_000
ALPHA: Final = 0.2
"""The weight of the newest hour in what is usual."""
LEAST_HOURS: Final = 3
WEEK: Final = 7 * 86_400.0
FAULTS: Final = frozenset({"provider", "gateway"})
_PER_DOUBLING: Final = 8
EVERYTHING: Final = ""

Tell = Callable[..., None]


@define(slots=True, eq=False)
class Slot:
    """One step of a window, of one provider."""

    ends: float
    requests: int = 0
    failed: int = 0
    late: dict[int, int] = field(factory=dict)
    """First tokens by the step of the histogram."""


@define(slots=True, eq=False)
class Habit:
    """A key's tokens by the hour."""

    hour: int
    tokens: int = 0
    usual: float = 0.0
    hours: int = 0
    """In which it used any, before this one."""

    def add(self, hour: int, tokens: int) -> None:
        if hour > self.hour:
            if self.tokens:
                self.usual = self.tokens if not self.hours else self.usual + ALPHA * (self.tokens - self.usual)
                self.hours += 1
            self.hour, self.tokens = hour, 0
        self.tokens += tokens


class Watch:
    def __init__(self, config: AlertsConfig, tell: Tell) -> None:
        self.config = config
        """Of the current generation; assign to it."""
        self._tell = tell
        self._slots: dict[str, deque[Slot]] = {}
        self._over: set[tuple[str, str]] = set()
        """What was above its threshold when it was last looked at: told when it comes to be, not while it stays."""
        self._habits: dict[str, Habit] = {}
        self._begun = False

    @property
    def step(self) -> float:
        """Seconds."""
        return self.config.window / STEPS

    async def begin(self, app: App) -> None:
        """Learn from the ledger what is usual, once. Without it, it is learnt from now on."""
        if self._begun or self.config.unusual_use is None:
            return
        self._begun = True
        try:
            self.learn(await app.store.usage(["key", "hour"], since=time.time() - WEEK))
        except ClawError:
            self._begun = False

    def learn(self, rows: Iterable[UsageRow]) -> None:
        """Of the ledger, by key and hour, in that order."""
        known: dict[str, Habit] = {}
        for row in rows:
            key, _ = row.groups
            if key is not None and row.first is not None:
                hour = int(row.first // 3600)
                known.setdefault(key, Habit(hour)).add(hour, row.input_tokens + row.output_tokens)
        for key, habit in known.items():
            seen = self._habits.get(key)
            if seen is not None:  # since the start, and perhaps in the ledger, too
                habit.add(seen.hour, 0)
                habit.tokens = max(habit.tokens, seen.tokens)
            self._keep(key, habit)

    # --- what an exchange says -----------------------------------------------------------------------------------------------

    def seen(self, exchange: Exchange, outcome: Outcome, now: float) -> None:
        config, error = self.config, outcome.error
        if config.error_rate is not None or config.latency is not None:
            failed = error is not None and error.fault in FAULTS
            first = exchange.timing.first_token
            route = exchange.route
            for name in (EVERYTHING, route.provider) if route is not None else (EVERYTHING,):
                slot = self._slot(name, now)
                slot.requests += 1
                slot.failed += failed
                if first is not None:
                    place = step_of(first)
                    slot.late[place] = slot.late.get(place, 0) + 1
        usage = exchange.usage
        if config.unusual_use is not None and usage is not None and usage.source != "cache":
            tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
            if tokens > 0:
                self.used(exchange.principal.key, tokens, time.time())

    def _slot(self, name: str, now: float) -> Slot:
        slots = self._slots.get(name)
        if slots is None:
            slots = self._slots[name] = deque()
        if not slots or now >= slots[-1].ends:
            slots.append(Slot(now + self.step))
            self._forget(slots, now)
        return slots[-1]

    def _forget(self, slots: deque[Slot], now: float) -> None:
        while slots and slots[0].ends <= now - self.config.window:
            slots.popleft()

    def used(self, key: str, tokens: int, at: float) -> None:
        hour = int(at // 3600)
        habit = self._habits.get(key)
        if habit is None:
            habit = self._keep(key, Habit(hour))
        habit.add(hour, tokens)
        times, least = self.config.unusual_use, self.config.unusual_least
        if times is None or habit.hours < LEAST_HOURS or habit.tokens <= max(times * habit.usual, least):
            return
        details: dict[str, Any] = {"key": key, "tokens": habit.tokens, "usual": round(habit.usual), "times": times}
        message = f"Key {key} has used {habit.tokens} tokens in this hour; {round(habit.usual)} are usual."
        self._tell("unusual_use", f"{key} {hour}", message, **details)

    def _keep(self, key: str, habit: Habit) -> Habit:
        if len(self._habits) >= MOST_KEYS:
            del self._habits[next(iter(self._habits))]
        self._habits[key] = habit
        return habit

    # --- looking -------------------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        config = self.config
        for name, slots in list(self._slots.items()):
            self._forget(slots, now)
            if not slots:
                del self._slots[name]
                self._over -= {("error_rate", name), ("latency", name)}
                continue
            whom = f"provider {name}" if name else "all requests"
            provider = name or None
            requests, failed = sum(slot.requests for slot in slots), sum(slot.failed for slot in slots)
            share = failed / requests
            limit = None if config.error_rate is None else parse_soft(config.error_rate)
            if self._comes_over("error_rate", name, requests, limit is not None and share > limit):
                message = f"{failed} of {requests} requests failed ({share:.0%}), of {whom}."
                figures = {"requests": requests, "failed": failed, "share": round(share, 4)}
                self._tell("error_rate", name, message, provider=provider, **figures)
            counted, late = percentile(slots, 0.95)
            too_late = config.latency is not None and late is not None and late > config.latency
            if self._comes_over("latency", name, counted, too_late) and late is not None:
                message = f"The 95th percentile of first tokens is {late:.3g} s, of {whom}."
                self._tell("latency", name, message, provider=provider, requests=counted, p95_ms=round(late * 1000))

    def _comes_over(self, what: str, name: str, count: int, over: bool) -> bool:
        was = (what, name) in self._over
        if over and count >= self.config.least:
            self._over.add((what, name))
            return not was
        self._over.discard((what, name))
        return False


def step_of(seconds: float) -> int:
    return math.floor(math.log2(max(seconds, 1e-4)) * _PER_DOUBLING)


def percentile(slots: Iterable[Slot], share: float) -> tuple[int, float | None]:
    """How many were counted, and the seconds that this share of them came within; None where none was."""
    sums: dict[int, int] = {}
    for slot in slots:
        for place, count in slot.late.items():
            sums[place] = sums.get(place, 0) + count
    total = sum(sums.values())
    below = 0
    for place in sorted(sums):
        below += sums[place]
        if below >= share * total:
            return total, float(2.0 ** ((place + 1) / _PER_DOUBLING))
    return total, None
