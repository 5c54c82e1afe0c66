"""The clocks of one exchange, on one alarm: which one runs, when it is due, what to say when it rings.

Rule 1: at most one clock runs beside `total`. Entering one stops the one before, and accounts for the time it took.
Rule 2: `queue`, `connect`, `first_token` and `stall` of an attempt interrupt the attempt. The admission queue, a hook's time
        budget and `total` end the request.
Rule 3: until content came, an attempt with a fallback behind it may use only its slice of the time left.
"""

from __future__ import annotations

import math

from attrs import evolve

from clawproxy.alarms import Alarm, Alarms
from clawproxy.clocks import Deadlines, expired
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.lifetime import Interruptible

FALLBACK_SHARE = 0.4
"""Of the time left, what is set aside for another route while there is one."""


class ExchangeClock:
    """What an exchange arms, and what `upstream` sees as `Phases`."""

    __slots__ = (
        "_alarm", "_began", "_deadlines", "_entered", "_fault", "_held", "_hook", "_hook_budget", "_hook_watched", "_lifetime",
        "_now", "_provider", "_running", "_slice", "_sliced", "_waiting", "attempt", "beside", "ends", "exchange",
        "timing",
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
        self.ends = exchange.started + exchange.deadlines.total

    def _set(self, due: float) -> None:
        self._alarm.set(due if due < self.ends else self.ends)

    def close(self) -> None:
        """The exchange is over."""
        self._alarm.end()

    # --- going down ------------------------------------------------------------------------------------------------------

    def end_after(self, total: float) -> None:
        """The whole request's limit, once it is known for good."""
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

    def begin(self, attempt: Attempt, deadlines: Deadlines, *, has_fallback: bool) -> None:
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
        self._account(now)
        self._running = clock
        self._entered = now
        due = now + getattr(self._deadlines, clock)
        self._sliced = due > self._slice
        self._set(self._slice if self._sliced else due)

    def content(self) -> None:
        """Content came: from now on `stall` watches the provider."""
        if self._running != "stall":
            now = self._now()
            self._account(now)
            self._running = "stall"
            self._entered = now
            self._slice = math.inf
            self._sliced = False

    def pause(self) -> None:
        """The client has the word; its transport runs the `write` clock."""
        self._held = self._alarm.due - self._now()
        self._alarm.due = self.ends

    def resume(self, *, content: bool) -> None:
        """The provider has the word again: it has all of `stall` after content, else what was left when the clock was paused."""
        if content:
            self._set(self._now() + self._deadlines.stall)
        elif self._held is not None:
            self._set(self._now() + self._held)
        self._held = None

    def stop(self) -> None:
        if self._running:
            self._account(self._now())
            self._running = ""
        self._alarm.due = self.ends

    def _account(self, now: float) -> None:
        timing, spent = self.timing, now - self._entered
        if self._running == "stall":
            timing.upstream = (timing.upstream or 0.0) + spent
        elif self._running == "first_token":
            timing.first_token = spent
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
        elif self._running:
            self._fault = self._ran_out()
            self._set(self.ends)
            self._lifetime.interrupt()
        else:
            self._set(self.ends)

    def _total(self) -> ClawError:
        """Time is up for all of it; the message names who held it last."""
        error = expired("total", self.ends - self._began)
        if self._hook:
            last = f"plugin `{self._hook}`"
        elif self._waiting:
            last = "the queue for a place"
        elif self._held is not None:
            last = "the client, which was slow to read"
        else:
            last = f"provider `{self._provider}`" if self._running else "the gateway"
        error.message += f" Last held by {last}."
        return error

    def _ran_out(self) -> ClawError:
        if not self._sliced:
            retry = {"retry_after_ms": 1000} if self._running == "queue" else {}
            return expired(self._running, getattr(self._deadlines, self._running), provider=self._provider, **retry)
        error = expired(self._running, self._slice - self._entered, provider=self._provider)
        error.message = error.message.replace(
            f"deadlines.{self._running}", "deadlines.total, of which a share is kept for a fallback"
        )
        error.details = evolve(error.details, setting="deadlines.total")
        return error

    def reason(self) -> ClawError:
        """Why the scope was cancelled."""
        return self._lifetime.cause or self._fault or self._lifetime.interruption or ClawError("client_gone")

    @property
    def interrupted(self) -> bool:
        """An attempt's clock ran out, and nothing else ended the request."""
        return self._fault is not None and self._lifetime.cause is None
