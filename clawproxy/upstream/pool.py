"""One provider's connections: who may have one, who waits, which are kept.

Rule 1: nothing here awaits but `acquire`, and it only waits to be handed a place. Every decision is synchronous and O(1):
        a counter, the end of a deque, the front of an ordered dict. No decision walks over connections or waiters.
Rule 2: a *place* is the right to have one connection at work. A place is held from `acquire` (or `reserve`) to `release`;
        active + idle <= max, always.
Rule 3: idle connections are taken last in, first out, so that the surplus of a busy hour ages and is closed. One that may not
        be ready yet is put where it is taken last.
Rule 4: waiters are served round-robin over their fair key, first come first served within a key. A waiter that is cancelled
        leaves nothing behind; one that was handed its place in the same tick passes it on.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio
from attrs import astuple, frozen

from clawproxy.config import PoolConfig


class Pooled(Protocol):
    """What the pool needs of a connection. Times are `trio.current_time()`."""

    created: float
    idle_since: float

    def quiet(self) -> bool:
        """Whether it is still open and the peer has said nothing since the last answer. Never blocks."""
        ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Pooled)


@frozen(slots=True)
class PoolStatistics:
    active: int
    idle: int
    waiting: int
    max: int
    opened_total: int
    reused_total: int

    def plus(self, other: PoolStatistics) -> PoolStatistics:
        return PoolStatistics(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class _Waiter:
    __slots__ = ("granted", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.granted = trio.Event()


class Pool(Generic[C]):
    def __init__(self, name: str, settings: PoolConfig) -> None:
        self.name = name
        self.max = settings.max
        self._idle_limit: float = settings.idle
        self._lifetime: float = settings.lifetime
        self._active = 0
        self._idle: deque[C] = deque()
        self._rounds: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()
        self._waiting = 0
        self._closed = False
        self.opened_total = 0
        self.reused_total = 0

    def __repr__(self) -> str:
        return (
            f"<Pool {self.name} [{self._active} active, {len(self._idle)} idle, {self._waiting} waiting | max {self.max}]"
            f"{' closed' if self._closed else ''}>"
        )

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(self._active, len(self._idle), self._waiting, self.max, self.opened_total, self.reused_total)

    async def acquire(self, fair_key: str, on_wait: Callable[[], None]) -> C | None:
        """A place, and an idle connection if there is one; None: open your own. `on_wait` is called before waiting.

        Does not checkpoint where a place is free.
        """
        if self._active < self.max:
            self._active += 1
            return self._take() if self._idle else None
        on_wait()
        waiter = self._join(fair_key)
        try:
            await waiter.granted.wait()
        except BaseException:
            if waiter.granted.is_set():
                self._pass_on()
            else:
                self._leave(waiter)
            raise
        return self._take()

    def reserve(self) -> bool:
        """A place for a connection nobody asked for (`min_idle`), where one is to spare."""
        if self._closed or self._active + len(self._idle) >= self.max:
            return False
        self._active += 1
        return True

    def release(self, connection: C | None = None, last: bool = False) -> None:
        """Give the place back, with the connection where it may serve again. `last`: after all the others."""
        if connection is not None:
            now = trio.current_time()
            if self._closed or now - connection.created >= self._lifetime:
                connection.close()
            else:
                connection.idle_since = now
                if last:
                    self._idle.appendleft(connection)
                else:
                    self._idle.append(connection)
        if self._rounds:
            self._pass_on()
        else:
            self._active -= 1

    def sweep(self) -> None:
        """Close the idle connections that are too old, too long idle, or closed by the peer. Maintenance: walks over all."""
        now = trio.current_time()
        kept: deque[C] = deque()
        for connection in self._idle:
            if self._expired(connection, now) or not connection.quiet():
                connection.close()
            else:
                kept.append(connection)
        self._idle = kept

    def close(self) -> None:
        """Keep nothing from now on. Requests of this generation that are still to come are served, each on its own."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    # --- decisions -------------------------------------------------------------------------------------------------------

    def _take(self) -> C | None:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()
            if not self._expired(connection, now) and connection.quiet():
                self.reused_total += 1
                return connection
            connection.close()
        return None

    def _expired(self, connection: C, now: float) -> bool:
        return now - connection.idle_since >= self._idle_limit or now - connection.created >= self._lifetime

    def _join(self, key: str) -> _Waiter:
        waiter = _Waiter(key)
        self._rounds.setdefault(key, OrderedDict())[waiter] = None
        self._waiting += 1
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        queue = self._rounds[waiter.key]
        del queue[waiter]
        if not queue:
            del self._rounds[waiter.key]
        self._waiting -= 1

    def _pass_on(self) -> None:
        """A place became free: the next waiter gets it, or nobody holds it any more."""
        if not self._rounds:
            self._active -= 1
            return
        key, queue = self._rounds.popitem(last=False)
        waiter, _ = queue.popitem(last=False)
        if queue:
            self._rounds[key] = queue
        self._waiting -= 1
        waiter.granted.set()
