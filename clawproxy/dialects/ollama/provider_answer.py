"""Ollama's answers, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream is complete at the line with `"done": true`. Ending before it is `provider_error.cut`. A line with `error` is a
        failure, whatever the status was.
Rule 3: a batch keeps the lines of its events, but for those that tell of an error.
Rule 4: a tool call without an id is `call_N`, counted on from the calls of the conversation: the same as `client_messages`
        will call it when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from clawproxy.dialects.figures import count, storable
from clawproxy.dialects.ndjson import NDJSONDecoder, TooLarge
from clawproxy.dialects.ollama.provider_request import NAME
from clawproxy.dialects.openai_chat.provider_faults import classify
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
    Reasoning,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Usage

FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
"""`load` and `unload` are answers to an empty prompt: `other`."""
_FIGURES = (
    "prompt_eval_count",
    "eval_count",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
)


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()


class _Call(Struct, gc=False):
    function: _Function | None = None
    id: str | None = None


class _Message(Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Line(Struct, gc=False):
    model: Any = None
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    total_duration: Any = None
    load_duration: Any = None
    prompt_eval_duration: Any = None
    eval_duration: Any = None


_decode = msgspec.json.Decoder(_Line).decode
_decode_text = msgspec.json.Decoder(str).decode


class _Reader:
    """The lines of one answer; a whole answer is one line."""

    def __init__(self, request: ChatRequest) -> None:
        self.begun = False
        self.before = sum([len(message.tool_calls) for message in request.messages])
        self.called = 0

    def read(self, data: bytes) -> list[Event]:
        """What one document says; with `done`, `Finish` is its last event. Raises what msgspec raises, and ValueError."""
        line = _decode(data)
        if not data.isascii():
            data.decode()  # msgspec does not look into fields it skips; a client would
        if line.error:
            return [Failed(classify(line.error))]
        events: list[Event] = []
        if not self.begun:
            self.begun = True
            events.append(Begin(_name(line.model)))
        message = line.message
        if message is not None:
            if message.thinking:
                events.append(Reasoning(message.thinking))
            if message.content:
                events.append(Text(message.content))
            for call in message.tool_calls or ():
                self._call(call, events)
        if line.done:
            self._finish(line, events)
        return events

    def _call(self, call: _Call, events: list[Event]) -> None:
        function = call.function or _Function()
        ident = _name(call.id) or f"call_{self.before + self.called}"
        events.append(ToolCallDelta(self.called, ident, function.name or "", _arguments(bytes(function.arguments))))
        self.called += 1

    def _finish(self, line: _Line, events: list[Event]) -> None:
        raw = {name: value for name in _FIGURES if (value := getattr(line, name)) is not None}
        if raw:
            events.append(UsageReport(_usage(raw)))
        said = line.done_reason or "stop"
        reason = FINISH.get(said, "other")
        events.append(Finish("tool_calls" if self.called and reason == "stop" else reason, said[:64]))


def _usage(raw: dict[str, Any]) -> Usage:
    """A prompt that was evaluated before may be reported without a count; that is not zero."""
    return Usage(count(raw.get("prompt_eval_count")), count(raw.get("eval_count")), raw=storable(raw))


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None


def _arguments(raw: bytes) -> str:
    """JSON text as the model wrote it. Some that speak like Ollama wrap it in a string."""
    if raw[:1] == b'"':
        return _decode_text(raw)
    return "" if raw == b"null" else raw.decode()


class StreamDecoder:
    """A line for each piece of the answer."""

    def __init__(self, request: ChatRequest) -> None:
        self.done = False
        self._lines = NDJSONDecoder()
        self._reader = _Reader(request)
        self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        large = False
        try:
            lines = self._lines.feed(data)
        except TooLarge as error:
            lines, large = error.lines, True
        events: list[Event] = []
        wires: list[bytes] = []
        for line in lines:
            self._line(line, events, wires)
            if self._over():
                break
        if large and not self._over():
            events.append(self._fail(ProviderFault("provider_error.malformed")))
        return Batch(events, raw=b"".join(wires), dialect=NAME) if events or wires else None

    def _line(self, line: bytes, events: list[Event], wires: list[bytes]) -> None:
        try:
            said = self._reader.read(line)
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return
        events += said
        last = said[-1] if said else None
        if isinstance(last, Failed):
            self._failed = True
            return
        if isinstance(last, Finish):
            events.append(End())
            self.done = True
        wires.append(line + b"\n")

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        """The last line often comes without its end: it is heard if it is whole."""
        if self._over():
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        left = self._lines.close()
        if left:
            self._line(left, events, wires)
            last = events[-1] if events else None
            if isinstance(last, Failed) and last.error.slug == "provider_error.malformed":
                events.pop()  # it was not malformed but cut
                self._failed = False
        if not self._over():
            events.append(self._fail(ProviderFault("provider_error.cut")))
        return Batch(events, raw=b"".join(wires), dialect=NAME)


def read_whole(request: ChatRequest) -> Callable[[bytes], list[Event]]:
    """For `WholeDecoder`: the document of a chat without streaming."""

    def read(body: bytes) -> list[Event]:
        events = _Reader(request).read(body)
        if not isinstance(events[-1], Failed | Finish):
            raise ValueError("no answer")
        return events

    return read


class _Embeddings(Struct, gc=False):
    embeddings: list[tuple[float, ...]] | None = None
    model: Any = None
    error: Any = None
    prompt_eval_count: Any = None
    total_duration: Any = None
    load_duration: Any = None


_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode


def read_embeddings(body: bytes) -> list[Event]:
    """For `WholeDecoder`: the document of `/api/embed`."""
    said = _decode_embeddings(body)
    if said.error:
        return [Failed(classify(said.error))]
    if said.embeddings is None:
        raise ValueError("no embeddings")
    events: list[Event] = [Begin(_name(said.model))]
    events += [Embedding(index, vector) for index, vector in enumerate(said.embeddings)]
    names = ("prompt_eval_count", "total_duration", "load_duration")
    raw = {name: value for name in names if (value := getattr(said, name)) is not None}
    if raw:
        events.append(UsageReport(_usage(raw)))
    return [*events, Finish("stop")]
