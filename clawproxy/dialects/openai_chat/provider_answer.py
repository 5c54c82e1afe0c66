"""A provider's Chat Completions answer, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream is complete at `[DONE]`, or where it ends after a finish reason: some providers send no `[DONE]`. Ending before
        both is `provider_error.cut`.
Rule 3: a batch keeps the bytes of those of its events that the client may see. It may not see comments, error chunks, or the
        usage chunk that the gateway asked for and the client did not.
Rule 4: nothing is indexed blindly: `choices` may be empty (Azure's first chunk), `delta` null, a tool call without index.
Rule 5: a figure that can not be is None, and stays readable in `Usage.raw` (B-09).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from clawproxy.dialects.openai_chat.client_answer import DONE, NAME
from clawproxy.dialects.openai_chat.provider_faults import classify
from clawproxy.dialects.sse import ServerEvent, SSEDecoder, TooLarge
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Failed,
    Finish,
    FinishReason,
    KeepAlive,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Usage

MAX_COUNT = 2**31 - 1
"""More tokens than any answer has."""
MAX_BODY = 64 * 1024 * 1024

FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "error": "error",
    "eos": "stop",
    "end_turn": "stop",
}

# The parts of a chunk that are read. What is wrongly typed here makes the chunk malformed; `Any` is checked where it is used,
# for what providers disagree about.


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Function | None = None


class _Delta(Struct, gc=False):
    content: Any = None
    """Text; a list of parts at Mistral's."""
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    audio: Any = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


class _First(_Chunk, gc=False):
    """The first chunk, and a whole answer: later ones repeat `id` and `model`, which costs time to read."""

    id: Any = None
    model: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_first = msgspec.json.Decoder(_First).decode


class StreamDecoder:
    """Server-sent events. `include_usage`: the client asked for the usage chunk."""

    def __init__(self, request: ChatRequest) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._include_usage = request.include_usage
        self._begun = self._finished = self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        try:
            blocks = self._sse.feed(data)
        except TooLarge:
            return self._batch([self._fail(ProviderFault("provider_error.malformed"))], [])
        if not blocks:
            return None
        events: list[Event] = []
        if len(blocks) == 1:  # the common case: what came is what goes
            block = blocks[0]
            return self._batch(events, [block.wire] if self._block(block, events) else [])
        wires = []
        for block in blocks:
            if self._block(block, events):
                wires.append(block.wire)
            if self._over():
                break
        return self._batch(events, wires)

    def _batch(self, events: list[Event], wires: list[bytes]) -> Batch:
        if self.done:
            wires[-1] = DONE  # whatever its spelling was: encoders look for this one
        return Batch(events, raw=wires[0] if len(wires) == 1 else b"".join(wires), dialect=NAME)

    def _block(self, block: ServerEvent, events: list[Event]) -> bool:
        """Append what one server-sent event says; whether its bytes may go to the client."""
        data, wire, name, _ = block
        if data is None:
            events.append(KeepAlive())
            return False
        if data[:6] == b"[DONE]":
            self.done = True
            events.append(End())
            return True
        try:
            chunk = _decode(data) if self._begun else _decode_first(data)
            if not wire.isascii():
                wire.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return False
        if chunk.error or name == b"error":
            events.append(self._fail(classify(chunk.error or msgspec.json.decode(data))))
            return False
        if not self._begun:
            self._begun = True
            events.append(_begin(chunk))
        if chunk.choices:
            for choice in chunk.choices:
                if choice.delta is not None:
                    _content(choice.delta, events)
                if choice.finish_reason:
                    self._finished = True
                    events.append(_finish(choice.finish_reason))
        if chunk.usage is not None:
            usage = read_usage(chunk.usage)
            if usage is not None:
                events.append(UsageReport(usage))
                return self._include_usage or bool(chunk.choices)
        return chunk.choices is not None  # what is no chunk (a ping of their own) is not for the client

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        if left:  # an event without its blank line: heard if it is whole, for [DONE] and the last chunk often come so
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
            if not self._failed:
                return batch if self.done else self._ended(batch)
            assert batch is not None
            last = batch.events[-1]
            if isinstance(last, Failed) and last.error.slug != "provider_error.malformed":
                return batch
            self._failed = False  # it was not malformed but cut
        return self._ended(Batch([], raw=b"", dialect=NAME))

    def _ended(self, batch: Batch | None) -> Batch:
        """`batch` and, after it, the end that the provider did not mark, or the cut."""
        self.done = self._finished
        last = End() if self.done else self._fail(ProviderFault("provider_error.cut"))
        events = [] if batch is None else list(batch.events)
        return Batch([*events, last], raw=b"" if batch is None else batch.raw, dialect=NAME)


class WholeDecoder:
    """One `chat.completion` document, decoded when all of it is there."""

    def __init__(self, request: ChatRequest, limit: int = MAX_BODY) -> None:
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
            answer = _decode_first(body)
            body.decode()
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return self._fail("provider_error.cut" if str(error) == "Input data was truncated" else "provider_error.malformed")
        if answer.error:
            self._failed = True
            return Batch([Failed(classify(answer.error))], dialect=NAME)
        if not answer.choices:
            return self._fail("provider_error.malformed")
        events: list[Event] = [_begin(answer)]
        for choice in answer.choices:
            if choice.message is not None:
                _content(choice.message, events)
            if choice.finish_reason:
                events.append(_finish(choice.finish_reason))
        usage = read_usage(answer.usage)
        if usage is not None:
            events.append(UsageReport(usage))
        events.append(End())
        self.done = True
        return Batch(events, raw=body, dialect=NAME)

    def _fail(self, slug: str) -> Batch:
        self._failed = True
        return Batch([Failed(ProviderFault(slug))], dialect=NAME)


def _begin(chunk: Any) -> Begin:
    """The id and model, where they are strings that no line can be broken with."""
    values = [
        value if isinstance(value, str) and len(value) <= 256 and value.isprintable() else None
        for value in (chunk.model, chunk.id)
    ]
    return Begin(values[0] or None, values[1] or None)


def _finish(said: str) -> Finish:
    return Finish(FINISH.get(said, "other"), said[:64])


def _content(delta: _Delta, events: list[Event]) -> None:
    content = delta.content
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning and isinstance(reasoning, str):
        events.append(Reasoning(reasoning))
    if content:
        if isinstance(content, str):
            events.append(Text(content))
        elif isinstance(content, list):
            _parts(content, events)
    if delta.refusal:
        events.append(Refused(delta.refusal))
    if delta.tool_calls:
        for place, call in enumerate(delta.tool_calls):
            events.append(_tool_call(call, place))
    if delta.function_call is not None:
        function = delta.function_call
        events.append(ToolCallDelta(0, None, function.name, function.arguments or ""))
    if isinstance(delta.audio, dict) and isinstance(said := delta.audio.get("transcript"), str) and said:
        events.append(Text(said))  # so that policies read what is spoken


def _tool_call(call: _Call, place: int) -> ToolCallDelta:
    index = place if call.index is None else call.index
    function = call.function or call.custom
    if function is None:
        return ToolCallDelta(index, call.id)
    return ToolCallDelta(index, call.id, function.name or None, function.arguments or function.input or "")


def _parts(parts: list[Any], events: list[Event]) -> None:
    """Content in parts: `[{"type": "thinking", "thinking": [...]}, {"type": "text", "text": "..."}]`."""
    for part in parts:
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str) and part["text"]:
            events.append(Text(part["text"]))
        elif isinstance(part.get("thinking"), list):
            thought = "".join(
                item["text"] for item in part["thinking"] if isinstance(item, dict) and isinstance(item.get("text"), str)
            )
            if thought:
                events.append(Reasoning(thought))


# --- usage -----------------------------------------------------------------------------------------------------------------


def read_usage(said: Any) -> Usage | None:
    """The figures of a `usage` object; None where it has none. Parts of a whole are held to the whole."""
    if not isinstance(said, dict) or not said:
        return None
    prompt = _mapping(said.get("prompt_tokens_details"))
    completion = _mapping(said.get("completion_tokens_details"))
    cached = prompt.get("cached_tokens", said.get("prompt_cache_hit_tokens"))  # the latter is DeepSeek's
    total_in, total_out = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    return Usage(
        total_in,
        total_out,
        _part_of(total_in, _count(cached)),
        _part_of(total_in, _count(prompt.get("cache_write_tokens"))),
        _part_of(total_out, _count(completion.get("reasoning_tokens"))),
        raw=_storable(said),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _part_of(whole: int | None, part: int | None) -> int | None:
    return part if part is None or whole is None else min(part, whole)


def _storable(said: dict[str, Any], deep: int = 2) -> dict[str, Any]:
    """What can be written down again: no integer beyond 64 bits, no text without end, nothing nested deeply."""
    kept: dict[str, Any] = {}
    for name, value in list(said.items())[:64]:
        if isinstance(value, dict):
            if deep > 1:
                kept[name] = _storable(value, deep - 1)
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            kept[name] = value
        else:
            kept[name] = "integer beyond 64 bits" if isinstance(value, int) else str(value)[:64]
    return kept
