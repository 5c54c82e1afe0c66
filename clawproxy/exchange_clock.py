"""The clocks of one exchange, on one alarm: which one runs, when it is due, what to say when it rings.

Rule 1: at most one clock runs beside `total`. Entering one stops the one before, and accounts for the time it took.
Rule 2: `queue`, `connect`, `first_token`, `stall` and `rate` of an attempt interrupt the attempt. The admission queue, a
        hook's time budget and `total` end the request.
        (`rate`, where it is on, shares the alarm with `stall`: the one exception to rule 1.)
Rule 3: until content came, an attempt with a fallback behind it may use only its slice of the time left.
"""

from __future__ import annotations

import math
from typing import Any

from attrs import evolve

from clawproxy.alarms import Alarm, Alarms
from clawproxy.clocks import CLIENTS_OWN, Deadlines, Rate, expired
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError, Fault
from clawproxy.events import Batch, Reasoning
from clawproxy.lifetime import Interruptible
from clawproxy.rate import RateWatch

FALLBACK_SHARE = 0.4
"""Of the time left, what is set aside for another route while there is one."""


class ExchangeClock:
    """What an exchange arms, and what `upstream` sees as `Phases`."""

    __slots__ = (
        "_alarm", "_began", "_deadlines", "_entered", "_fault", "_held", "_hook", "_hook_budget", "_hook_watched", "_lifetime",
        "_now", "_provider", "_rate", "_running", "_slice", "_sliced", "_stall", "_total_limit", "_waiting", "attempt", "beside",
        "ends", "exchange", "step", "timing",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, lifetime: Interruptible, alarms: Alarms, hook_budget: float) -> None:
        self._alarm = Alarm(alarms, self._ring)
        self._now = alarms.now
        self.exchange = exchange
        self.timing = exchange.timing
        """Where phases are noted."""
        self.beside: ExchangeClock | None = None
        """The clock of the attempt that holds the request, where attempts run under clocks of their own (`hedging`)."""
        self.attempt: Attempt | None = None
        self._lifetime = lifetime
        self._hook_budget = hook_budget
        self._hook = self._hook_watched = ""
        self._fault: ClawError | None = None
        self._deadlines = exchange.deadlines
        self._running = ""
        self._waiting = False
        self._provider = ""
        self._began = self._entered = exchange.started
        self._slice = math.inf
        self._sliced = False
        self._held: float | None = None
        """What was left on the running clock when it was paused."""
        self._rate: RateWatch | None = None
        self._stall = "stall"
        """Which of the two runs between contents: `stall` or `stall_reasoning`."""
        self.step = ""
        """How far the connection under way has got: `errors.STEPS`."""
        self._total_limit = exchange.deadlines.total
        self.ends = exchange.started + self._total_limit

    def _set(self, due: float) -> None:
        self._alarm.set(due if due < self.ends else self.ends)

    def close(self) -> None:
        """The exchange is over."""
        self._alarm.end()

    # --- going down ------------------------------------------------------------------------------------------------------

    def end_after(self, total: float) -> None:
        """The whole request's limit, once it is known for good."""
        self._total_limit = total
        self.ends = self._alarm.due = self._began + total

    def hook(self, plugin: str) -> None:
        """A plugin's hook begins. It has its budget, twice that at most: the clock is set for the first hook of a row, and set
        anew for whoever it finds at work."""
        if not self._hook:
            self._hook_watched = plugin
            self._set(self._now() + self._hook_budget)
        self._hook = plugin

    def hooks_done(self) -> None:
        self._hook = ""
        self._alarm.due = self.ends  # `hook` has set it nearer

    def wait_for_place(self, spent: float = 0.0) -> None:
        """The admission queue, or a plugin's. `spent`: what was waited already."""
        self._waiting = True
        self._set(self._now() + self.exchange.deadlines.queue - spent)

    def place_found(self) -> None:
        self._waiting = False
        self._alarm.due = self.ends

    # --- one attempt -----------------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, deadlines: Deadlines, *, has_fallback: bool, reasons: bool = False) -> None:
        """`reasons`: the model was asked to, so that it may be silent for longer (as it may once it began by reasoning)."""
        now = self._now()
        left = self.ends - now
        self.attempt = attempt
        self._deadlines = deadlines
        self._provider = attempt.route.provider
        self._fault = None
        self._slice = now + left * (1 - FALLBACK_SHARE) if has_fallback and left < math.inf else math.inf
        self._running = ""
        self._held = None
        self._entered = now
        self._stall = "stall_reasoning" if reasons else "stall"
        self.step = ""
        rate = deadlines.rate
        self._rate = RateWatch(rate) if rate < math.inf and isinstance(rate, Rate) else None

    @property
    def sent(self) -> bool:
        return self.attempt is not None and self.attempt.sent

    @sent.setter
    def sent(self, value: bool) -> None:
        if self.attempt is not None:
            self.attempt.sent = value

    def enter(self, clock: str) -> None:
        """`queue`, `connect` or `first_token` begins."""
        now = self._now()
        if self._running:
            self._account(now)
        self._running = clock
        self._entered = now
        due = now + getattr(self._deadlines, clock)
        self._sliced = due > self._slice
        self._set(self._slice if self._sliced else due)

    def content(self, batch: Batch) -> None:
        """Content came: from now on `stall` watches the provider."""
        if self._running != "stall":
            now = self._now()
            if self._running == "first_token":  # an attempt that had none does not say how long it takes
                self.timing.first_token = now - self._entered
            self._account(now)
            self._running = "stall"
            self._entered = now
            self._slice = math.inf
            self._sliced = False
            if Reasoning in {*map(type, batch.events)}:
                self._stall = "stall_reasoning"
        if self._rate is not None:
            self._rate.count(batch.events, self._now())

    def pause(self) -> None:
        """The client has the word; its transport runs the `write` clock."""
        now = self._now()
        self._held = self._alarm.due - now
        self._alarm.due = self.ends
        if self._rate is not None:
            self._rate.pause(now)

    def resume(self, *, content: bool) -> None:
        """The provider has the word again: it has all of `stall` after content, else what was left when the clock was paused."""
        if content:
            self.exchange.spoke = now = self._now()
            due = now + getattr(self._deadlines, self._stall)
            self._set(due if self._rate is None else self._rate.resume(now, due))
        elif self._held is not None:
            now = self._now()
            if self._rate is not None:
                self._rate.resume(now, None)
            self._set(now + self._held)
        self._held = None

    def stop(self) -> None:
        if self._running:
            self._account(self._now())
            self._running = ""
        self._alarm.due = self.ends

    def _account(self, now: float) -> None:
        timing, spent = self.timing, now - self._entered
        if self._running == "stall" or self._running == "first_token":
            timing.upstream = (timing.upstream or 0.0) + spent
        elif self._running == "connect":
            timing.connect = (timing.connect or 0.0) + spent
        elif self._running == "queue":
            timing.queue = (timing.queue or 0.0) + spent

    # --- ringing -----------------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        if self._now() >= self.ends:
            self._lifetime.cancel((self.beside or self)._total())
        elif self._hook and (self._hook != self._hook_watched or self.exchange.asking):
            self._hook_watched = self._hook
            self._set(self._now() + self._hook_budget)
        elif self._hook:
            self._lifetime.cancel(ClawError("internal", policy=self._hook))
        elif self._waiting:
            self._lifetime.cancel(expired("queue", self.exchange.deadlines.queue, retry_after_ms=1000))
        elif self._running and self._goes_on():
            return
        elif self._running:
            self._fault = self._ran_out()
            self._set(self.ends)
            self._lifetime.interrupt()
        else:
            self._set(self.ends)

    def _goes_on(self) -> bool:
        """The alarm rang for a window of the `rate` clock in which enough came. Whether there is nothing else."""
        watch = self._rate
        if watch is None or self._running != "stall" or not watch.goes_on(self._now()):
            return False
        self._set(min(watch.due, watch.stall))
        return True

    def _total(self) -> ClawError:
        """Time is up for all of it; the message names who held it last."""
        fault: Fault = "gateway"
        if self._hook:
            last = f"plugin `{self._hook}`"
        elif self._waiting or self._running == "queue":
            last = "the queue for a place"
        elif self._held is not None:
            last, fault = "the client, which was slow to read", "client"
        elif self._running:
            last, fault = f"provider `{self._provider}`", "provider"
        else:
            last = "the gateway"
        if getattr(self._total_limit, "setting", "") == CLIENTS_OWN:
            fault = "client"  # its own limit: nobody else broke one
        error = expired("total", self._total_limit, fault=fault, provider=self._provider or None)
        error.message += f" Last held by {last}."
        return error

    def _ran_out(self) -> ClawError:
        clock = self._running
        about: dict[str, Any] = {"provider": self._provider}
        if clock == "stall":
            clock = "rate" if self._rate is not None and self._rate.slow else self._stall
        elif clock == "connect":
            about["step"] = self.step or None
        elif clock == "queue":
            about["retry_after_ms"] = 1000
        if not self._sliced:
            return expired(clock, getattr(self._deadlines, clock), **about)
        error = expired(clock, self._slice - self._entered, **about)
        total = getattr(self._total_limit, "setting", "deadlines.total")
        error.message = error.message.replace(f"deadlines.{clock}", f"{total}, of which a share is kept for a fallback")
        error.details = evolve(error.details, setting=total)
        return error

    def reason(self) -> ClawError:
        """Why the scope was cancelled."""
        return self._lifetime.cause or self._fault or self._lifetime.interruption or ClawError("client_gone")

    @property
    def interrupted(self) -> bool:
        """An attempt's clock ran out, and nothing else ended the request."""
        return self._fault is not None and self._lifetime.cause is None
