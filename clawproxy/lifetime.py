"""What ends a request early: its cancel scope, the cause, and alarms for its clocks.

Rule 1: a request runs in one cancel scope at a time. The cause is set before the scope is cancelled, and the first cause stays.
        Whoever ends a request early (its client, a clock, the operator) calls `Lifetime.cancel` and nothing else.
Rule 2: an attempt's own clock only interrupts: the scope is cancelled without a cause, and the exchange goes on in a new one.
Rule 3: clocks cost nothing while they do not run out. Setting the deadline of an entered scope takes 4 us and a request moves its
        clocks ten times; an `Alarm`'s `due` is a plain attribute that `Watch` looks at now and then (never too late, see there).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque

import trio

from clawproxy.errors import ClawError


class Lifetime:
    """Made by the transport before the request is handled, so that a client that leaves finds something to cancel."""

    __slots__ = ("cause", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cause: ClawError | None = None

    def cancel(self, cause: ClawError) -> None:
        if self.cause is None:
            self.cause = cause
        self.scope.cancel()

    def hang_up(self) -> None:
        """The client went away."""
        self.cancel(ClawError("client_gone"))

    def interrupt(self) -> None:
        """End what runs now, not the request: its owner goes on in a renewed scope."""
        self.scope.cancel()

    def renew(self) -> trio.CancelScope:
        """A fresh scope after an interruption; already cancelled if the request has a cause to end meanwhile."""
        self.scope = trio.CancelScope()
        if self.cause is not None:
            self.scope.cancel()
        return self.scope


def is_cancellation(error: BaseException) -> bool:
    """Whether it is Cancelled, or a nursery's group of nothing else (nurseries wrap even that)."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


class Alarm:
    """Something with a `due` time (`trio.current_time`), that may be moved at will and at no cost.

    Whoever moves it to less than `Watch.step` from now calls `Watch.hasten`; moving it later needs nothing.
    """

    __slots__ = ("due", "over")

    def __init__(self) -> None:
        self.due = math.inf
        self.over = False
        """Set when nobody waits for it any more."""

    def ring(self, now: float) -> None:
        """It is due. Synchronous; it may set a new `due`, or `over`."""
        raise NotImplementedError


class Watch:
    """All alarms of a process, looked at by one task.

    An alarm that was added is looked at `step` seconds later, and again and again: so it is never looked at later than `step`
    after its `due` was last moved, and `hasten` is only needed for what is due sooner. What is due within `step` is kept in
    order and rung exactly. One append and one pop a request; nothing at all for each move.
    """

    def __init__(self, step: float = 0.5) -> None:
        self.step = step
        self._round: deque[tuple[float, Alarm]] = deque()
        self._soon: list[tuple[float, int, Alarm]] = []
        self._order = itertools.count()
        self._sleep: trio.CancelScope | None = None
        self._until = -math.inf

    def __len__(self) -> int:
        return len(self._round) + len(self._soon)

    def add(self, alarm: Alarm, now: float) -> None:
        self._round.append((now + self.step, alarm))
        if alarm.due - now < self.step:
            self.hasten(alarm)

    def hasten(self, alarm: Alarm) -> None:
        """Look at it when it is due, not only at its next turn."""
        heapq.heappush(self._soon, (alarm.due, next(self._order), alarm))
        if alarm.due < self._until and self._sleep is not None:
            self._sleep.deadline = self._until = alarm.due

    async def run(self) -> None:
        while True:
            now = trio.current_time()
            while self._round and self._round[0][0] <= now:
                _, alarm = self._round.popleft()
                self._look(alarm, now, again=True)
            while self._soon and self._soon[0][0] <= now:
                _, _, alarm = heapq.heappop(self._soon)
                self._look(alarm, now, again=False)
            self._until = min(
                now + self.step, self._round[0][0] if self._round else math.inf, self._soon[0][0] if self._soon else math.inf
            )
            with trio.CancelScope(deadline=self._until) as self._sleep:
                await trio.sleep_forever()

    def _look(self, alarm: Alarm, now: float, *, again: bool) -> None:
        if not alarm.over and alarm.due <= now:
            alarm.ring(now)
        if alarm.over:
            return
        if again:
            self._round.append((now + self.step, alarm))
            if alarm.due - now < self.step:
                heapq.heappush(self._soon, (alarm.due, next(self._order), alarm))
