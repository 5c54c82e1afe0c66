"""A provider's Messages answer, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream is complete at `message_stop` and nowhere else; ending before it is `provider_error.cut`.
Rule 3: a batch keeps the bytes of its events, pings and unknown events with them: they are this format's own. Comments and errors
        stay behind. Every event goes on under its name, since SDKs drop what has none.
"""

from __future__ import annotations

from typing import Any

import msgspec

from clawproxy.dialects.anthropic.provider_event import Reader, begin, decode_any, decode_head, finish
from clawproxy.dialects.anthropic.words import NAME, read_usage
from clawproxy.dialects.openai_chat.provider_answer import MAX_BODY
from clawproxy.dialects.openai_chat.provider_faults import classify
from clawproxy.dialects.sse import ServerEvent, SSEDecoder, TooLarge, encode_event
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, End, Event, Failed, KeepAlive, UsageReport

_BROKEN = (msgspec.DecodeError, ValueError, RecursionError)


class StreamDecoder:
    """Server-sent events."""

    def __init__(self) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._reader = Reader()
        self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        try:
            blocks = self._sse.feed(data)
        except TooLarge:
            return Batch([self._fail(ProviderFault("provider_error.malformed"))], raw=b"", dialect=NAME)
        if not blocks:
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        for block in blocks:
            wire = self._block(block, events)
            if wire:
                wires.append(wire)
            if self._over():
                break
        return Batch(events, raw=b"".join(wires), dialect=NAME)

    def _block(self, block: ServerEvent, events: list[Event]) -> bytes:
        """Append what one server-sent event says; the bytes of it that may go to the client."""
        data, wire, name, _ = block
        if data is None:
            events.append(KeepAlive())
            return b""
        if data[:6] == b"[DONE]":  # a habit of compatible hosts: it says nothing here
            return b""
        kind = ""
        lines = b"\n" in data
        if lines:
            data = data.replace(b"\n", b" ")  # a line end stands between JSON's tokens only
        try:
            if not wire.isascii():
                wire.decode()  # msgspec does not look into fields it skips; a client would
            kind = name.decode()
            if not kind or kind == "error":
                said = decode_any(data)
                kind = said.type if isinstance(said.type, str) else kind
                if said.error or name == b"error":
                    events.append(self._fail(classify(said.error)))
                    return b""
            if kind == "ping":
                msgspec.json.decode(data)
                events.append(KeepAlive())
            elif kind == "message_stop":
                msgspec.json.decode(data)
                self.done = True
                events.append(End())
            elif not self._reader.event(kind, data, events):
                msgspec.json.decode(data)
        except _BROKEN:
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return b""
        if name and not lines and wire.startswith(b"event: %b\ndata: " % name):
            return wire
        shown = name or (kind.encode() if kind.isprintable() else b"")
        return encode_event(data, shown) if shown else b""

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        batch = None
        if left:  # an event without its blank line: heard if it is whole, for the last one sometimes comes so
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
            if batch is not None and self._over():
                last = batch.events[-1]
                if not isinstance(last, Failed) or last.error.slug != "provider_error.malformed":
                    return batch
                batch = None  # it was not malformed but cut
        cut = self._fail(ProviderFault("provider_error.cut"))
        if batch is None:
            return Batch([cut], raw=b"", dialect=NAME)
        return Batch([*batch.events, cut], raw=batch.raw, dialect=NAME)


class _Document:
    """A body that is decoded when all of it is there."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        self.done = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = limit
        self._failed = False

    def feed(self, data: bytes) -> Batch | None:
        if self.done or self._failed:
            return None
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
            return self._fail("provider_error.too_large")
        return None

    def close(self) -> Batch | None:
        if self.done or self._failed:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            body.decode()
            events = self._events(body)
        except _BROKEN as error:
            return self._fail("provider_error.cut" if str(error) == "Input data was truncated" else "provider_error.malformed")
        if events and isinstance(events[-1], Failed):
            self._failed = True
            return Batch(events, dialect=NAME)
        self.done = True
        return Batch([*events, End()], raw=body, dialect=NAME)

    def _events(self, body: bytes) -> list[Event]:
        """Raises msgspec.DecodeError or ValueError where this is not what was asked for."""
        raise NotImplementedError

    def _fail(self, slug: str) -> Batch:
        self._failed = True
        return Batch([Failed(ProviderFault(slug))], dialect=NAME)


class WholeDecoder(_Document):
    """One message."""

    def _events(self, body: bytes) -> list[Event]:
        message = decode_head(body)
        if message.error:
            return [Failed(classify(message.error))]
        events: list[Event] = [begin(message)]
        reader = Reader()
        reader.blocks(message.content, events)
        if message.stop_reason is not None:
            events.append(finish(message))
        reader.figures.report(message.usage, events, final=True)
        return events


class CountDecoder(_Document):
    """`{"input_tokens": 25}`."""

    def _events(self, body: bytes) -> list[Event]:
        said: Any = msgspec.json.decode(body)
        if isinstance(said, dict) and said.get("error"):
            return [Failed(classify(said["error"]))]
        usage = read_usage({**said, "output_tokens": 0}) if isinstance(said, dict) else None
        if usage is None or usage.input_tokens is None:
            raise ValueError("this counts no tokens")
        return [UsageReport(usage)]
