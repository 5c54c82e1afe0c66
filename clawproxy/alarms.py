"""Many clocks behind one sleeper: those of connections (`head`, `idle`, `body`) and of exchanges (all the others).

Moving the deadline of an entered scope costs 4 us, and a request moves its clocks a dozen times. Here each is one assignment;
only a clock that would ring before the last one asked for is put in the heap.

Rule: an alarm stands in the heap at `_next`, never later than `due`. When that comes and `due` has moved on, it is put there
      again; so a clock that only moves on costs one entry, however often it does.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio

_FEW = 1000
"""Entries of ended connections that are not worth looking for."""


def _silent() -> None:
    pass


class Alarm:
    """One clock: off, or to ring at `due` (as `trio.current_time`)."""

    __slots__ = ("_alarms", "_next", "_ring", "due")

    def __init__(self, alarms: Alarms, ring: Callable[[], None]) -> None:
        """Args: ring: synchronous, must not raise."""
        self._alarms = alarms
        self._ring = ring
        self._next = math.inf
        self.due = math.inf
        """Read it freely; to put the clock off, or out, assign to it. Bringing it forward is `set`."""

    def set(self, due: float) -> None:
        self.due = due
        if due < self._next:
            self._next = due
            self._alarms.add(due, self)

    def set_in(self, seconds: float) -> None:
        """`set`, from now on."""
        self.set(self._alarms.now() + seconds)

    def end(self) -> None:
        """Never again; the heap may hold this object a while longer, but not its connection."""
        self.due = math.inf
        self._ring = _silent
        if self._next < math.inf:
            self._alarms.ended()

    @property
    def over(self) -> bool:
        return self._ring is _silent

    def reached(self, at: float, now: float) -> None:
        """Its entry for `at` came up."""
        if at != self._next:  # an earlier one was asked for meanwhile, and has been
            return
        self._next = math.inf
        if self.due <= now:
            self.due = math.inf
            self._ring()
        else:
            self.set(self.due)


class Alarms:
    """Start `run` in the service nursery."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = itertools.count()
        self._ended = 0
        self._sleep = trio.CancelScope()
        self.now: Callable[[], float] = trio.lowlevel.current_clock().current_time
        """`trio.current_time`, two calls shorter. The object belongs to one `trio.run`."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at: float, alarm: Alarm) -> None:
        if at < math.inf:
            heapq.heappush(self._heap, (at, next(self._count), alarm))
            if at < self._sleep.deadline:
                self._sleep.deadline = at

    def ended(self) -> None:
        self._ended += 1
        if self._ended > _FEW and self._ended > len(self._heap) // 2:
            self._ended = 0
            self._heap = [entry for entry in self._heap if not entry[2].over]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        while True:
            self._sleep = trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf)
            with self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            # Those that have ended leave with those that are reached: else each exchange woke this task once more.
            while self._heap and (self._heap[0][0] <= now or self._heap[0][2].over):
                at, _, alarm = heapq.heappop(self._heap)
                alarm.reached(at, now)
