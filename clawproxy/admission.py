"""Who may start now: fair queueing by key, in front of everything that costs.

Rule 1: decisions are synchronous; the only wait is for one's own turn.
Rule 2: a place that is handed to a waiter who was cancelled in the same moment is passed on, never lost.
Rule 3: keys take turns (round-robin), and within a key it is first come, first served.
"""

from __future__ import annotations

import sys
from collections import OrderedDict

import trio

from clawproxy.errors import ClawError


class FairQueue:
    """Places for `limit` holders, waiters served round-robin by key. O(1) for every decision."""

    def __init__(self, limit: int, max_waiting: int = 10_000) -> None:
        self.limit = limit
        self.active = 0
        self.waiting = 0
        self.max_waiting = max_waiting
        self._queues: OrderedDict[str, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()

    def try_enter(self) -> bool:
        if self.active < self.limit and not self.waiting:
            self.active += 1
            return True
        return False

    async def enter(self, key: str) -> None:
        """Wait for a place. Raises ClawError("overloaded") where too many wait already."""
        if self.try_enter():
            return
        if self.waiting >= self.max_waiting:
            raise ClawError("overloaded", retry_after_ms=1000)
        task = trio.lowlevel.current_task()
        self._queues.setdefault(key, OrderedDict())[task] = None
        self.waiting += 1

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            queue = self._queues[key]  # at once: those who gave up must not pile up behind one who stays long
            del queue[task]
            if not queue:
                del self._queues[key]
            self.waiting -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def leave(self) -> None:
        """Give the place back, or to whoever is next."""
        if not self._queues or self.active > self.limit:
            self.active -= 1
            return
        self._hand_on()

    def resize(self, limit: int) -> None:
        """Another limit from now on: waiters that it lets in begin, those at work beyond it finish."""
        self.limit = limit
        while self._queues and self.active < limit:
            self.active += 1
            self._hand_on()

    def _hand_on(self) -> None:
        key, queue = next(iter(self._queues.items()))
        task, _ = queue.popitem(last=False)
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key]
        self.waiting -= 1
        trio.lowlevel.reschedule(task)


class Admission:
    """The limits on requests at work: in all (they queue) and per key (they are refused). 0 is off."""

    def __init__(self, in_flight: int, per_key: int) -> None:
        self.queue: FairQueue | None = None
        self.active = 0
        self._keys: dict[str, int] = {}
        self.configure(in_flight, per_key)

    def configure(self, in_flight: int, per_key: int) -> None:
        """Other limits, after a reload; who is in stays in. What began while the limit per key was off does not count to it."""
        self.per_key = per_key
        if self.queue is not None:
            self.queue.resize(in_flight or sys.maxsize)  # a queue stays: those at work will leave it
        elif in_flight:
            self.queue = FairQueue(in_flight)
            self.queue.active = self.active

    def _count(self, key: str) -> Ticket:
        if self.per_key:
            if self._keys.get(key, 0) >= self.per_key:
                raise ClawError("limit.in_flight", retry_after_ms=1000)
            self._keys[key] = self._keys.get(key, 0) + 1
        self.active += 1
        return CountedTicket(key) if self.per_key else Ticket(key)

    def try_enter(self, key: str) -> Ticket | None:
        """A ticket at once, or None where `enter` would have to wait. Raises ClawError("limit.in_flight")."""
        if self.queue is not None and not self.queue.try_enter():
            return None
        try:
            return self._count(key)
        except ClawError:
            if self.queue is not None:
                self.queue.leave()
            raise

    async def enter(self, key: str) -> Ticket:
        if self.queue is not None:
            await self.queue.enter(key)
        try:
            return self._count(key)
        except ClawError:
            if self.queue is not None:
                self.queue.leave()
            raise

    def release(self, ticket: Ticket) -> None:
        self.active -= 1
        if ticket.counted:
            left = self._keys[ticket] - 1
            if left:
                self._keys[ticket] = left
            else:
                del self._keys[ticket]
        if self.queue is not None:
            self.queue.leave()


class Ticket(str):
    """A place held by a key."""

    __slots__ = ()
    counted = False
    """Whether it counts to the key's own limit."""


class CountedTicket(Ticket):
    __slots__ = ()
    counted = True
