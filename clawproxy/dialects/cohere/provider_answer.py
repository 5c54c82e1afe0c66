"""Cohere's answers, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream is complete at `message-end`. Ending before it is `provider_error.cut`; a `message-end` that says ERROR or
        TIMEOUT is a failure, and its usage counts all the same.
Rule 3: a batch keeps the bytes of its events, of those too that say nothing to other formats (`content-start`, `citation-end`).
Rule 4: usage is what Cohere bills (`billed_units`); the tokens the model saw stand in for what is not there. Cohere's numbers are
        floats by its own models: 5.0 is 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from clawproxy.dialects.cohere.client_messages import NAME
from clawproxy.dialects.cohere.provider_faults import from_end
from clawproxy.dialects.figures import count, part_of, storable
from clawproxy.dialects.sse import ServerEvent, SSEDecoder, TooLarge
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import (
    Batch,
    Begin,
    Embedding,
    End,
    Event,
    Failed,
    Finish,
    FinishReason,
    KeepAlive,
    Opaque,
    Reasoning,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage

FINISH: Mapping[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR": "error",
    "TIMEOUT": "error",
}
_FAILED = ("ERROR", "TIMEOUT")


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _Content(Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    type: str | None = None


class _Message(Struct, gc=False):
    content: _Content | None = None
    tool_plan: str | None = None
    tool_calls: _Call | None = None


class _Delta(Struct, gc=False):
    message: Any = None
    finish_reason: str | None = None
    usage: Any = None
    error: Any = None


class _Event(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    id: Any = None
    delta: _Delta | None = None


_decode = msgspec.json.Decoder(_Event).decode


class StreamDecoder:
    """Server-sent events, each with its `type`."""

    def __init__(self) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        try:
            blocks = self._sse.feed(data)
        except TooLarge:
            return Batch([self._fail(ProviderFault("provider_error.malformed"))], raw=b"", dialect=NAME)
        for block in blocks:
            if self._block(block, events):
                wires.append(block.wire)
            if self._over():
                break
        return Batch(events, raw=b"".join(wires), dialect=NAME) if blocks else None

    def _block(self, block: ServerEvent, events: list[Event]) -> bool:
        """Append what one server-sent event says; whether its bytes may go to the client."""
        data = block.data
        if data is None or data == b"[DONE]":
            events.append(KeepAlive())
            return False
        try:
            event = _decode(data)
            message = None if event.delta is None else _message(event.type, event.delta.message)
            if not block.wire.isascii():
                block.wire.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return False
        kind = event.type
        if kind == "message-start":
            events.append(Begin(None, _name(event.id)))
        elif kind == "citation-start":
            events.append(Opaque("citation"))
        elif kind == "message-end":
            return self._end(event.delta or _Delta(), events)
        elif message is not None:
            _content(message, event.index or 0, events)
        return True

    def _end(self, delta: _Delta, events: list[Event]) -> bool:
        usage = read_usage(delta.usage)
        if usage is not None:
            events.append(UsageReport(usage))
        reason = delta.finish_reason or "COMPLETE"
        if reason in _FAILED or delta.error:
            events.append(self._fail(from_end(reason, delta.error)))
            return False
        events += [Finish(FINISH.get(reason, "other"), reason[:64]), End()]
        self.done = True
        return True

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        """An event without its blank line is heard if it is whole."""
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        batch = None
        if left:
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
        events = [] if batch is None else list(batch.events)
        if events and isinstance(last := events[-1], Failed) and last.error.slug == "provider_error.malformed":
            events.pop()  # it was not malformed but cut
            self._failed = False
        if not self._over():
            events.append(self._fail(ProviderFault("provider_error.cut")))
        return Batch(events, raw=b"" if batch is None else batch.raw, dialect=NAME)


_SAYS = frozenset({"content-start", "content-delta", "tool-plan-delta", "tool-call-start", "tool-call-delta"})


def _message(kind: str | None, said: Any) -> _Message | None:
    """The delta's message, where this kind of event has one that is read. Raises msgspec.ValidationError."""
    return msgspec.convert(said, _Message) if kind in _SAYS and said is not None else None


def _content(message: _Message, index: int, events: list[Event]) -> None:
    content, call = message.content, message.tool_calls
    if content is not None:
        if content.thinking:
            events.append(Reasoning(content.thinking))
        if content.text:
            events.append(Text(content.text))
    if message.tool_plan:
        events.append(Reasoning(message.tool_plan))
    if call is not None:
        function = call.function or _Function()
        events.append(ToolCallDelta(index, _name(call.id), function.name or None, function.arguments or ""))


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 512 and value.isprintable() else None


# --- whole answers ---------------------------------------------------------------------------------------------------------


class _WholeMessage(Struct, gc=False):
    content: list[_Content] | str | None = None
    tool_plan: str | None = None
    tool_calls: list[_Call] | None = None
    citations: list[Any] | None = None


class _Whole(Struct, gc=False):
    id: Any = None
    message: _WholeMessage | str | None = None
    finish_reason: str | None = None
    usage: Any = None


_decode_whole = msgspec.json.Decoder(_Whole).decode


def read_whole(body: bytes) -> list[Event]:
    """For `WholeDecoder`: the document of a chat without streaming."""
    said = _decode_whole(body)
    message, reason = said.message, said.finish_reason or "COMPLETE"
    if isinstance(message, str):  # an error's document
        return [Failed(from_end("ERROR", message))]
    usage = read_usage(said.usage)
    reported = [] if usage is None else [UsageReport(usage)]
    if reason in _FAILED:
        return [*reported, Failed(from_end(reason, None))]
    if message is None:
        raise ValueError("no answer")
    events: list[Event] = [Begin(None, _name(said.id))]
    if message.tool_plan:
        events.append(Reasoning(message.tool_plan))
    content = [_Content(message.content)] if isinstance(message.content, str) else message.content
    for item in content or ():
        _content(_Message(item), 0, events)
    for index, call in enumerate(message.tool_calls or ()):
        _content(_Message(tool_calls=call), index, events)
    events += [Opaque("citation")] * len(message.citations or ())
    return [*events, *reported, Finish(FINISH.get(reason, "other"), reason[:64])]


class _Embeddings(Struct, gc=False):
    embeddings: Any = None
    id: Any = None
    meta: Any = None


_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode


def read_embeddings(body: bytes) -> list[Event]:
    """For `WholeDecoder`: the document of `/embed`. Vectors of other types than `float` and `base64` are `Opaque`."""
    said = _decode_embeddings(body)
    by_type = {"float": said.embeddings} if isinstance(said.embeddings, list) else said.embeddings
    if not isinstance(by_type, dict):
        raise ValueError("no embeddings")
    events: list[Event] = [Begin(None, _name(said.id))]
    kind = next((name for name in ("float", "base64") if by_type.get(name) is not None), None)
    if kind == "float":
        numbers = msgspec.convert(by_type["float"], list[tuple[float, ...]])
        events += [Embedding(index, vector) for index, vector in enumerate(numbers)]
    elif kind == "base64":
        texts = msgspec.convert(by_type["base64"], list[str])
        events += [Embedding(index, text) for index, text in enumerate(texts)]
    events += [Opaque("embedding") for name, each in by_type.items() if name != kind and each is not None]
    usage = read_usage(said.meta)
    if usage is not None:
        events.append(UsageReport(usage))
    return [*events, Finish("stop")]


# --- usage -----------------------------------------------------------------------------------------------------------------


def read_usage(said: Any) -> Usage | None:
    """The figures of a `usage` object, or of an embedding's `meta`; None where it has none."""
    if not isinstance(said, dict):
        return None
    billed, tokens = _mapping(said.get("billed_units")), _mapping(said.get("tokens"))
    if not billed and not tokens and said.get("cached_tokens") is None:
        return None
    spent = [
        count(_whole(billed[name] if billed.get(name) is not None else tokens.get(name)))
        for name in ("input_tokens", "output_tokens")
    ]
    cached = part_of(spent[0], count(_whole(said.get("cached_tokens"))))
    return Usage(spent[0], spent[1], cached, raw=storable(said))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value
