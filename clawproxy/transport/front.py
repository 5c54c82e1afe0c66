"""What all client connections of one service share: the hang-up monitor, the keep-alive ticker, the sleeper behind their clocks,
and who is connected."""

from __future__ import annotations

from typing import Protocol

import trio

from clawproxy.alarms import Alarms
from clawproxy.http1.engine import EngineFactory, select
from clawproxy.transport.hangup import HangUpMonitor
from clawproxy.transport.pulse import Pulse


class Member(Protocol):
    @property
    def at_work(self) -> bool:
        """Whether a request has begun whose answer is not out yet."""
        ...

    def retire(self) -> None:
        """The service drains: end now if idle, else after the answer under way."""
        ...


class Front:
    """Make one for each process, start `run` in the service nursery, `close` at the very end."""

    def __init__(self, *, engine: str | None = None, epoll: bool | None = None, pulse_step: float = 0.5) -> None:
        """Args: engine: `httptools` or `h11`; None lets the environment choose."""
        self.monitor = HangUpMonitor(epoll=epoll)
        self.pulse = Pulse(pulse_step)
        self.alarms = Alarms()
        self.engine: EngineFactory = select(engine)
        self.draining = False
        self._members: set[Member] = set()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def at_work(self) -> int:
        """How many have a request under way, its body still arriving included. Walks over all."""
        return sum(member.at_work for member in self._members)

    def add(self, member: Member) -> None:
        self._members.add(member)

    def discard(self, member: Member) -> None:
        self._members.discard(member)

    def drain(self) -> None:
        """From now on every answer closes its connection, and idle connections end. Stop accepting first."""
        self.draining = True
        for member in tuple(self._members):
            member.retire()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.monitor.run)
            nursery.start_soon(self.pulse.run)
            nursery.start_soon(self.alarms.run)

    def close(self) -> None:
        self.monitor.close()
