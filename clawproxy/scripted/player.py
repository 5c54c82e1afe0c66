"""Plays one plan on one connection: the response head, framing, time, and the faults that happen to bytes.

Rule 1: the head goes out with the first byte of the body, or where a `head` step stands; so whatever pauses before it, holds it.
Rule 2: every byte passes `_out`, which counts it, cuts at the byte the script names, and segments it.
Rule 3: an answer ends in one of three ways: `play` returns (whole), raises `BrokenOff` (the script cut it), or raises `PeerGone`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus

from clawproxy.scripted import faults as f
from clawproxy.scripted import steps as s
from clawproxy.scripted.checks import Step
from clawproxy.scripted.connection import Connection
from clawproxy.scripted.formats import Format
from clawproxy.scripted.log import Entry
from clawproxy.scripted.walk import Plan

_BURST = 64 * 1024
_BODYLESS = (204, 304)


class BrokenOff(Exception):
    """The script ends the connection here, with a RST or a FIN."""

    def __init__(self, reset: bool) -> None:
        self.reset = reset
        super().__init__()


class Player:
    """One answer. After `play`: `keep_alive`, and `idle` or `at_reuse`, say what becomes of the connection."""

    def __init__(self, connection: Connection, format_: Format, entry: Entry, *, keep_alive: bool = True) -> None:
        self._connection = connection
        self._format = format_
        self._entry = entry
        self._started = connection.sent
        self._extra: list[tuple[str, str]] = []
        self._framing = "length"
        self._status = 200
        self._content_type = ""
        self._length: int | None = None
        self._head_sent = False
        self._held: list[bytes] | None = None
        self._held_size = 0
        self._cut_at: int | None = None
        self._cut_resets = False
        self._split = 0
        self._drip: f.Drip | None = None
        self.keep_alive = keep_alive
        self.idle: float | None = None
        self.at_reuse = False

    async def play(self, plan: Plan) -> None:
        """Raises BrokenOff, PeerGone, Malformed (the peer broke the protocol meanwhile)."""
        self._content_type, self._length = plan.content_type, plan.length
        if plan.length is None:
            self._framing = "chunked"
        else:
            self._held = []  # a whole answer leaves in one write
        for move in plan.moves:
            if type(move) is bytes:
                await self._body(move)
            else:
                assert isinstance(move, Step)
                await self._step(move)
        await self._finish()

    async def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """A plain answer, without a script."""
        self._status, self._content_type, self._length, self._held = status, content_type, len(body), []
        await self._body(body)
        await self._finish()

    # --- steps ---

    async def _step(self, step: Step) -> None:
        if isinstance(step, s.Pause):
            await self._flush()
            await self._connection.wait(step.seconds)
        elif isinstance(step, s.Stall):
            await self._flush()
            await self._connection.hang()
        elif isinstance(step, s.Cut | s.Reset):
            await self._break(step)
        elif isinstance(step, f.Head):
            await self._flush()
            await self._send_head(step.over)
            await self._flush()
        elif isinstance(step, f.RawHead):
            self._head_sent, self._framing, self.keep_alive = True, "raw", False
            await self._out(step.data)
        elif isinstance(step, f.Status):
            await self._answer_status(step)
        elif isinstance(step, f.Redirect):
            self._extra.append(("location", step.url))
            self._status = 307
            self._length = 0
            self._framing = "length"
        else:
            self._set(step)

    def _set(self, step: Step) -> None:
        """Steps that only change what follows."""
        if isinstance(step, s.Burst):
            self._held = self._held or []
        elif isinstance(step, f.Split):
            self._split = step.size
        elif isinstance(step, f.Drip):
            self._drip = step
        elif isinstance(step, f.Header):
            self._extra.append((step.name, step.value))
        elif isinstance(step, f.Framing):
            self._framing = step.kind
            self.keep_alive = self.keep_alive and step.kind != "close"
        elif isinstance(step, f.Close):
            self.keep_alive = False
        elif isinstance(step, f.CloseIdle):
            self.idle = step.seconds
        elif isinstance(step, f.CloseAtReuse):
            self.at_reuse = True
        else:
            raise TypeError(f"nobody plays {type(step).__name__}")

    async def _break(self, step: s.Cut | s.Reset) -> None:
        resets = isinstance(step, s.Reset)
        if step.after is None:
            await self._flush()
            raise BrokenOff(resets)
        self._cut_at, self._cut_resets = self._started + step.after, resets
        if self._connection.sent + self._held_size >= self._cut_at:
            await self._flush()
            raise BrokenOff(resets)

    async def _answer_status(self, step: f.Status) -> None:
        self._status = step.code
        if step.retry_after is not None:
            self._extra.append(("retry-after", step.retry_after))
        self._extra += step.headers
        self._content_type = "application/json"
        if self._framing == "chunked" and self._length is None:
            self._framing = "length"
        self._held = self._held or []
        body: Iterator[bytes]
        if step.size is not None:
            self._length, body = step.size, _filling(step.size)
        else:
            data = self._format.error_body(step.code) if step.body is None else step.body.encode("utf-8", "replace")
            if not data.startswith(b"{"):
                self._content_type = "text/plain; charset=utf-8"
            self._length, body = len(data), iter((data,))
        if step.code in _BODYLESS:
            self._length = None
            return
        for piece in body:
            await self._body(piece)

    # --- bytes ---

    async def _body(self, data: bytes) -> None:
        """One event, or one piece of a whole body."""
        if not self._head_sent:
            await self._send_head()
        if not data:
            return
        if self._framing == "chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._drip is None:
            await self._out(data)
        else:
            await self._dripped(data, self._drip)
        self._entry.events_sent += 1

    async def _finish(self) -> None:
        if not self._head_sent:
            await self._send_head()
        if self._framing == "chunked":
            await self._out(b"0\r\n\r\n")
        await self._flush()

    async def _send_head(self, over: float = 0.0) -> None:
        data = self._head()
        self._head_sent = True
        if not over:
            await self._out(data)
            return
        for at in range(len(data)):
            await self._out(data[at : at + 1])
            await self._flush()
            await self._connection.wait(over / len(data))

    def _head(self) -> bytes:
        try:
            phrase = HTTPStatus(self._status).phrase
        except ValueError:
            phrase = "Scripted"
        own = [("x-request-id", f"req_scripted_{self._entry.serial}")]
        if self._status not in _BODYLESS:
            own.append(("content-type", self._content_type))
            if self._framing == "chunked":
                own.append(("transfer-encoding", "chunked"))
            elif self._framing == "length" and self._length is not None:
                own.append(("content-length", str(self._length)))
        if not self.keep_alive:
            own.append(("connection", "close"))
        replaced = {name.lower() for name, _ in self._extra}
        lines = [f"HTTP/1.1 {self._status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in own if name not in replaced]
        lines += [f"{name}: {value}" for name, value in self._extra]
        self._entry.status = self._status
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _dripped(self, data: bytes, drip: f.Drip) -> None:
        for at in range(0, len(data), drip.size):
            await self._out(data[at : at + drip.size])
            await self._flush()
            await self._connection.wait(drip.every)

    async def _out(self, data: bytes) -> None:
        if self._held is None:
            await self._send(data)
            return
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= _BURST:
            await self._flush()

    async def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            await self._send(data)

    async def _send(self, data: bytes) -> None:
        """To the kernel, cut where the script says so."""
        room = None if self._cut_at is None else self._cut_at - self._connection.sent
        if room is not None and len(data) >= room:
            await self._write(data[:room])
            raise BrokenOff(self._cut_resets)
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        entry, before = self._entry, self._connection.sent
        if entry.first_byte_at is None and data:
            entry.first_byte_at = time.time()
        step = self._split or len(data) or 1
        try:
            for at in range(0, len(data), step):
                await self._connection.send(data[at : at + step] if step < len(data) else data)
        finally:
            entry.bytes_sent += self._connection.sent - before


def _filling(size: int) -> Iterator[bytes]:
    """An error document of exactly `size` bytes, as far as one fits."""
    head, tail = b'{"error":{"message":"', b'"}}'
    if size < len(head) + len(tail):
        yield b"x" * size
        return
    yield head
    left = size - len(head) - len(tail)
    while left > 0:
        yield b"x" * min(left, _BURST)
        left -= _BURST
    yield tail
