"""What is read of a Responses stream event, and what a whole output item says.

Rule: every field may be anything; what has not the shape it should have is passed over. Only what is no JSON object is malformed.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define, field
from msgspec import Struct

from clawproxy.dialects.openai_responses.tools import joined
from clawproxy.events import Event, Reasoning, Refused, Text, ToolCallDelta

_TOOLS = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_",
    "shell_call",
    "computer_call",
    "apply_patch_call",
    "tool_search",
    "output_text.annotation",
    "audio",
    "compaction",
)


class StreamEvent(Struct, gc=False):
    type: str | None = None
    delta: Any = None
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None
    item: Any = None
    response: Any = None
    error: Any = None
    text: Any = None
    refusal: Any = None
    arguments: Any = None
    input: Any = None

    def place(self) -> str:
        """Which part of its item a text is."""
        return f"{self.content_index}.{self.summary_index}"


decode_event = msgspec.json.Decoder(StreamEvent).decode
decode_response = msgspec.json.Decoder(dict[str, Any]).decode


@define
class Said:
    """What was heard of one item so far."""

    heard: set[str] = field(factory=set)
    """The parts of which there was any text."""
    named: bool = False
    """Its call's id and name."""
    arguments: int = 0
    """Characters of its arguments."""
    call: int | None = None
    """Which of the answer's calls it is."""


def kind_of_tool(kind: str) -> str | None:
    """The tool that a provider's own tool event is about, None for other events: those say nothing that has to be known."""
    name = kind.removeprefix("response.")
    return next((tool for tool in _TOOLS if name.startswith(tool)), None) if name != kind else None


def item_events(item: dict[str, Any] | Any, number: int, said: Said) -> list[Event]:
    """What a whole item says beyond what was heard of it. `number`: which of the answer's calls it is, if it is one."""
    kind = item.get("type")
    events: list[Event] = []
    if kind == "message":
        if not said.heard:
            _content(item.get("content"), events)
    elif kind == "reasoning":
        if not said.heard:
            _thoughts(item, events)
        data, ident = item.get("encrypted_content"), item.get("id")
        if isinstance(data, str) and data:
            events.append(Reasoning("", None, data, ident if isinstance(ident, str) else None))
    elif kind in ("function_call", "custom_tool_call"):
        _call(item, number, said, events)
    return events


def _call(item: dict[str, Any], number: int, said: Said, events: list[Event]) -> None:
    text = item.get("arguments" if item["type"] == "function_call" else "input")
    left = text[said.arguments :] if isinstance(text, str) else ""
    name, ident, space = (value if isinstance(value, str) else None for value in map(item.get, ("name", "call_id", "namespace")))
    if not said.named:
        name = name and joined(space, name)
        events.append(ToolCallDelta(number, ident, name, left))
    elif left:
        events.append(ToolCallDelta(number, None, None, left))


def _content(parts: Any, events: list[Event]) -> None:
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str) and part["text"]:
            events.append(Text(part["text"]))
        elif isinstance(part.get("refusal"), str) and part["refusal"]:
            events.append(Refused(part["refusal"]))


def _thoughts(item: dict[str, Any], events: list[Event]) -> None:
    texts = [
        part["text"]
        for name in ("summary", "content")
        for part in (item[name] if isinstance(item.get(name), list) else ())
        if isinstance(part, dict) and isinstance(part.get("text"), str) and part["text"]
    ]
    if texts:
        events.append(Reasoning("\n\n".join(texts)))
