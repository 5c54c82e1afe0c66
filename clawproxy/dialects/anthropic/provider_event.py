"""What is read of a Messages event or document, and the events that it says.

Rule 1: only these parts are read. What is wrongly typed here makes the event malformed, unless nobody knows its type: those are
        tolerated, as Anthropic's versioning policy asks of clients.
Rule 2: blocks the vocabulary has no word for (server tools, their results, containers) are `Opaque`, and so are their deltas.
Rule 3: figures come twice: the input's with `message_start`, and all, cumulative, with each `message_delta`, which restates what
        it likes. `Figures` keeps the last word on each.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from clawproxy.dialects.anthropic.words import FINISH, read_usage
from clawproxy.events import Begin, Event, Finish, Opaque, Reasoning, Text, ToolCallDelta, UsageReport

MAX_CALLS = 100_000


class Block(Struct, gc=False):
    """A content block, or a delta of one."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    partial_json: str | None = None


class Stop(Struct, gc=False):
    stop_reason: str | None = None
    stop_sequence: str | None = None


class Head(Struct):
    """A message: of `message_start`, or whole."""

    id: Any = None
    model: Any = None
    content: Any = None
    usage: Any = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    error: Any = None


class Untyped(Struct):
    type: Any = None
    error: Any = None


class BlockStart(Struct, gc=False):
    content_block: Block
    index: int = 0


class BlockDelta(Struct, gc=False):
    delta: Block
    index: int = 0


class BlockStop(Struct, gc=False):
    index: int = 0


class MessageStart(Struct):
    message: Head


class MessageDelta(Struct):
    delta: Stop | None = None
    usage: Any = None


_delta = msgspec.json.Decoder(BlockDelta).decode
_start = msgspec.json.Decoder(BlockStart).decode
_stop = msgspec.json.Decoder(BlockStop).decode
_message_start = msgspec.json.Decoder(MessageStart).decode
_message_delta = msgspec.json.Decoder(MessageDelta).decode
decode_any = msgspec.json.Decoder(Untyped).decode
decode_head = msgspec.json.Decoder(Head).decode
_decode_block = msgspec.convert


class Figures:
    """The figures of one answer, as they come in."""

    def __init__(self) -> None:
        self._said: dict[str, Any] = {}

    def report(self, said: Any, events: list[Event], *, final: bool) -> None:
        if not isinstance(said, dict):
            return
        self._said.update((name, value) for name, value in list(said.items())[:64] if value is not None)
        usage = read_usage(self._said, final=final)
        if usage is not None:
            events.append(UsageReport(usage))


class Reader:
    """The blocks of one answer: which are open, and which tool call each is."""

    def __init__(self) -> None:
        self.figures = Figures()
        self._calls = 0
        self._open: dict[int, int | None] = {}
        """By index of an open block: the tool call it is, or None."""

    def event(self, kind: str, data: bytes, events: list[Event]) -> bool:
        """Append what one event of a stream says; False where nobody knows its type. Raises msgspec.DecodeError."""
        if kind == "content_block_delta":
            part = _delta(data)
            self._piece(part.delta, part.index, data, events)
        elif kind == "content_block_start":
            opened = _start(data)
            self._begin(opened.content_block, opened.index, data, events)
        elif kind == "content_block_stop":
            self._open.pop(_stop(data).index, None)
        elif kind == "message_start":
            head = _message_start(data).message
            events.append(begin(head))
            self.figures.report(head.usage, events, final=False)
        elif kind == "message_delta":
            change = _message_delta(data)
            if change.delta is not None and change.delta.stop_reason is not None:
                events.append(finish(change.delta))
            self.figures.report(change.usage, events, final=True)
        else:
            return False
        return True

    def blocks(self, said: Any, events: list[Event]) -> None:
        """Append what the content of a whole message says. Raises msgspec.DecodeError."""
        for place, block in enumerate(_decode_block(said, list[dict[str, Any]])):
            self._begin(_decode_block(block, Block), place, msgspec.json.encode(block), events)
            self._open.clear()

    def _begin(self, block: Block, index: int, data: bytes, events: list[Event]) -> None:
        call = None
        kind = block.type
        if kind == "tool_use" and self._calls < MAX_CALLS:
            call, self._calls = self._calls, self._calls + 1
            arguments = msgspec.json.encode(block.input).decode() if block.input else ""
            events.append(ToolCallDelta(call, block.id, block.name, arguments))
        elif kind == "text":
            if block.text:
                events.append(Text(block.text))
        elif kind == "thinking":
            if block.thinking or block.signature:
                events.append(Reasoning(block.thinking or "", block.signature or None))
        elif kind == "redacted_thinking":
            events.append(Reasoning("", None, block.data or ""))
        else:
            events.append(Opaque(kind[:64], data))
        self._open[index] = call

    def _piece(self, delta: Block, index: int, data: bytes, events: list[Event]) -> None:
        kind = delta.type
        if kind == "text_delta":
            if delta.text:
                events.append(Text(delta.text))
        elif kind == "thinking_delta":
            if delta.thinking:
                events.append(Reasoning(delta.thinking))
        elif kind == "signature_delta":
            if delta.signature:
                events.append(Reasoning("", delta.signature))
        elif kind == "input_json_delta" and (call := self._open.get(index)) is not None:
            if delta.partial_json:
                events.append(ToolCallDelta(call, arguments=delta.partial_json))
        else:
            events.append(Opaque(kind[:64], data))


def begin(head: Head) -> Begin:
    return Begin(_name(head.model), _name(head.id))


def finish(said: Stop | Head) -> Finish:
    reason = said.stop_reason or ""
    met = said.stop_sequence
    return Finish(FINISH.get(reason, "other"), reason[:64], None if met is None else met[:4096])


def _name(value: Any) -> str | None:
    """An id or a model, where it is a string that no line can be broken with."""
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None
