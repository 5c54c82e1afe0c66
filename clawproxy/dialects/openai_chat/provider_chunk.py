"""What is read of a Chat Completions chunk or document, and the events that it says.

Rule 1: only these parts are read. What is wrongly typed here makes the chunk malformed; `Any` is checked where it is used, for
        what providers disagree about.
Rule 2: nothing is indexed blindly: `choices` may be empty (Azure's first chunk), `delta` null, a tool call without index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from clawproxy.events import Begin, Event, Finish, FinishReason, Reasoning, Refused, Text, ToolCallDelta

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


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Function | None = None


class Delta(Struct, gc=False):
    content: Any = None
    """Text; a list of parts at Mistral's."""
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    audio: Any = None


class Choice(Struct, gc=False):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Chunk(Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


class First(Chunk, gc=False):
    """The first chunk, and a whole answer: later ones repeat `id` and `model`, which costs time to read."""

    id: Any = None
    model: Any = None
    service_tier: Any = None


class _Tier(Struct, gc=False):
    service_tier: Any = None


decode = msgspec.json.Decoder(Chunk).decode
decode_first = msgspec.json.Decoder(First).decode
decode_tier = msgspec.json.Decoder(_Tier).decode
"""Read of the chunk with the figures alone, though every chunk has it."""


def begin(chunk: Any) -> Begin:
    return Begin(_name(chunk.model), _name(chunk.id))


def _name(value: Any) -> str | None:
    """An id or a model, where it is a string that no line can be broken with."""
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None


def finish(said: str) -> Finish:
    return Finish(FINISH.get(said, "other"), said[:64])


def content_events(delta: Delta, events: list[Event]) -> None:
    """Append what `delta` says."""
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
