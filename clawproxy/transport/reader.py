"""What comes in on one connection: heads, then their bodies, under the clocks `head`, `idle` and `body`.

Rule 1: nothing is read ahead: what came behind a request (64 KiB at most) waits in `leftover` until it is answered.
Rule 2: the clock is off as soon as a head is whole, and on again while bytes of a body are missing.
Rule 3: a request whose head is known (`http1.known`) and whose body came with it is taken in one step; every other way to send
        the same bytes takes the full one, and ends in the same `Head` and the same body.
"""

from __future__ import annotations

import math

import trio

from clawproxy.alarms import Alarm
from clawproxy.clocks import Deadlines
from clawproxy.config import LimitsConfig
from clawproxy.errors import ClawError
from clawproxy.http1 import response
from clawproxy.http1.body import BodyReader
from clawproxy.http1.engine import Engine, EngineFactory
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import HeadCollector, parse_head
from clawproxy.http1.known import KnownHead
from clawproxy.transport.wire import READ, Wire

RATE = 1024
"""The least bytes a second of a body, once `RATE_AFTER` seconds have passed."""
RATE_AFTER = 5.0


class RequestReader:
    __slots__ = (
        "_alarm",
        "_clock",
        "_content",
        "_engine",
        "_make_engine",
        "_raw",
        "_wire",
        "known",
        "leftover",
        "phase",
        "taken",
    )

    def __init__(self, wire: Wire, alarm: Alarm, clock: trio.CancelScope, make_engine: EngineFactory, phase: str) -> None:
        """Args: clock: what `alarm` cancels. phase: `tls` where there is a handshake to come, else `new`."""
        self._wire = wire
        self._alarm = alarm
        self._clock = clock
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._raw = b""
        self._content: bytes | None = None
        self.phase = phase
        """What the connection waits for: tls, new (its first byte), idle, head, body; or `request`: at work."""
        self.leftover = b""
        self.known: KnownHead | None = None
        """A head that is recognised at once when it comes again: see `remember`."""
        self.taken = False
        """The body of the current request was read, or is being read."""

    @property
    def recognised(self) -> bool:
        """Whether the current request's head is the known one, and its whole body here."""
        return self._content is not None

    @property
    def varied(self) -> bool:
        """Whether it then brought ids of its own."""
        return self.known is not None and self.known.varied

    # --- heads -------------------------------------------------------------------------------------------------------------

    async def head(self, limits: LimitsConfig, deadlines: Deadlines, *, first: bool, draining: bool) -> Head | None:
        """The next head. None where the client ended between requests, or in the middle of a head.

        Args:
            first: the connection's first one, whose clock runs already.
            draining: only what has already begun to arrive is read.

        Raises:
            ClawError: as `HeadCollector.feed` and `parse_head`.
        """
        self._content = None
        self.taken = False
        data, self.leftover = self.leftover, b""
        collector: HeadCollector | None = None
        raw: bytes | None = None
        if data:
            if self.known is not None and self._recognise(data, limits.head):
                return self.known.head
            collector = HeadCollector(limits.head)
            raw = collector.feed(data)
        if raw is None and not first:
            if draining:
                return None
            self.phase = "head" if data else "idle"
            self._alarm.set_in(deadlines.head if data else deadlines.idle)
        while raw is None or collector is None:
            idle = self.phase == "idle"
            more = await self._wire.receive(wait_first=idle)
            if not more:
                return None
            if self._clock.cancel_called:
                await trio.lowlevel.checkpoint()  # ended in the very moment it came: nothing of it was begun
            if idle and self.known is not None and self._recognise(more, limits.head):
                return self.known.head
            collector = collector or HeadCollector(limits.head)
            raw = collector.feed(more)
            if raw is None and self.phase != "head":
                if idle:
                    self._alarm.set_in(deadlines.head)
                self.phase = "head"
        self.leftover = collector.rest
        self._raw = raw
        self._engine = self._make_engine()
        return parse_head(raw, self._engine, collector.match)

    def at_work(self) -> None:
        """A request has begun."""
        self.phase = "request"
        self._alarm.due = math.inf

    def _recognise(self, data: bytes, limit: int) -> bool:
        known = self.known
        assert known is not None
        begin = known.recognise(data)
        if not begin or begin > limit:
            return False
        end = begin + (known.head.content_length or 0)
        if end > len(data):
            return False
        self._content = data[begin:end]
        self.leftover = data[end:]
        self.taken = True
        return True

    def remember(self, head: Head) -> bool:
        """Recognise the current request's head when it comes again. Whether it can be."""
        if self._content is None:
            self.known = KnownHead.of(self._raw, head)
        return self.known is not None

    # --- bodies ------------------------------------------------------------------------------------------------------------

    async def body(self, head: Head, limit: int, deadlines: Deadlines) -> bytes:
        """The whole content. Raises ClawError: bad_body, body_too_large, client_gone."""
        if self._content is not None:
            if len(self._content) > limit:
                raise ClawError("body_too_large")
            return self._content
        assert self._engine is not None
        reader = BodyReader(head, self._engine, limit)
        self.taken = True
        if not reader.done:
            data, self.leftover = self.leftover, b""
            if not data or not reader.feed(data):
                await self._rest(head, reader, deadlines)
            self.leftover = reader.rest
        return reader.content()

    async def _rest(self, head: Head, reader: BodyReader, deadlines: Deadlines) -> None:
        begun = trio.current_time()
        last = begun + deadlines.body
        self.phase = "body"
        self._alarm.set(min(last, begun + RATE_AFTER + reader.received / RATE))
        if head.version == "1.1" and head.get("expect") is not None:
            await self._wire.write(response.CONTINUE, deadlines.write)
        whole = False
        while not whole:
            data = await self._wire.receive()
            if not data:
                raise ClawError("client_gone")
            whole = reader.feed(data)
            self._alarm.set(min(last, begun + RATE_AFTER + reader.received / RATE))
        if self._clock.cancel_called:
            await trio.lowlevel.checkpoint()  # out of time as the last byte came: say so, and begin nothing
        self.at_work()

    def drop(self, head: Head) -> bool:
        """Take an unwanted body out of what is already here. False where it is not all here."""
        self.taken = True
        if not head.content_length and not head.chunked:
            return True
        if self.phase == "request" and self._engine is not None:
            try:
                if head.chunked or len(self.leftover) < (head.content_length or 0) <= READ:
                    self.leftover += self._wire.receive_now()  # often in a segment of its own, just behind the head
                reader = BodyReader(head, self._engine, len(self.leftover))
                if reader.feed(self.leftover):
                    self.leftover = reader.rest
                    return True
            except ClawError:
                pass
        return False
