"""Who waits for room in a budget: round-robin by key, first come first served within a key.

Rule 1: decisions are synchronous; the only wait is for one's own turn.
Rule 2: at most one of a line tries at a time. It has the turn until it gets its room, or leaves; then the next one has it. So
        nobody overtakes, and a place that frees wakes one, not all.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import trio

from clawproxy.stores.base import Account

if TYPE_CHECKING:
    from clawproxy.context import Exchange

SOON = 0.01
"""Seconds between two tries at least."""
TICKET = "budgets.ticket"
"""Where in `exchange.state` its ticket is."""


class Line:
    """The waiters of one account."""

    __slots__ = ("_account", "_lines", "_queues", "turn")

    def __init__(self, account: Account, lines: Lines) -> None:
        self._account = account
        self._lines = lines
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self.turn: Ticket | None = None

    def join(self, ticket: Ticket) -> None:
        if self.turn is None:
            self.turn = ticket
        else:
            self._queues.setdefault(ticket.key, deque()).append(ticket)

    def drop(self, ticket: Ticket) -> None:
        """It got its room, or gave up."""
        if self.turn is ticket:
            self._next()
        elif (queue := self._queues.get(ticket.key)) is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.key]

    def wake(self) -> None:
        if self.turn is not None:
            self.turn.event.set()

    def _next(self) -> None:
        if not self._queues:
            self.turn = None
            self._lines.waiting.pop(self._account, None)
            return
        key, queue = next(iter(self._queues.items()))
        self.turn = queue.popleft()
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key]
        self.turn.event.set()


class Ticket:
    """A place in a line (`hookspecs.Turn`). Made when an attempt found no room; kept until it did."""

    __slots__ = ("event", "frees_at", "has_left", "key", "line")

    def __init__(self, line: Line, key: str, frees_at: float | None) -> None:
        self.line = line
        self.key = key
        self.frees_at = frees_at
        self.event = trio.Event()
        self.has_left = False
        line.join(self)

    def again(self, frees_at: float | None) -> None:
        """It tried and found no room."""
        self.frees_at = frees_at
        self.event = trio.Event()

    async def wait(self) -> None:
        while not self.event.is_set():
            if self.line.turn is not self or self.frees_at is None:
                await self.event.wait()
                return
            with trio.move_on_after(max(SOON, self.frees_at - time.time())):
                await self.event.wait()
            self.event.set()

    def leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self.event.set()  # whoever waits by it tries anew
            self.line.drop(self)


def leave_line(exchange: Exchange) -> None:
    """Of the one it may be in."""
    ticket: Ticket | None = exchange.state.pop(TICKET, None)
    if ticket is not None:
        ticket.leave()


class Lines:
    """All lines of one service."""

    def __init__(self) -> None:
        self.waiting: dict[Account, Line] = {}

    def line(self, account: Account) -> Line:
        line = self.waiting.get(account)
        if line is None:
            line = self.waiting[account] = Line(account, self)
        return line

    def wake(self, account: Account) -> None:
        """Something of this account was given back."""
        line = self.waiting.get(account)
        if line is not None:
            line.wake()
