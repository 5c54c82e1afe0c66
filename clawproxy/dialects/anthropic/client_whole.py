"""Messages answers for a client, whole: one message, or a count of tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.anthropic.client_answer import Identity
from clawproxy.dialects.anthropic.words import NAME, usage_object
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, Begin, Event, Finish, Opaque, Outcome, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.messages import ChatRequest, Usage


class _Whole:
    """Keeps what came. A document that its provider wrote in this format, and nobody changed, goes out as it is."""

    content_type = "application/json"

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def untouched(self) -> bytes | None:
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        return raws[0] if len(raws) == len(self.batches) == 1 and raws[0].lstrip()[:1] == b"{" else None

    def events(self) -> list[tuple[Event, bool]]:
        """Each event, and whether this format's provider made it. What a transform had held has no dialect: it is the last
        one's."""
        dialect, made = "", []
        for batch in self.batches:
            dialect = batch.dialect or dialect
            made += [(event, dialect == NAME) for event in batch.events]
        return made

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""


class WholeEncoder(_Whole):
    """One message."""

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        super().__init__()
        self.identity = Identity(exchange, request)

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        own = self.untouched()
        return own if own is not None else jsonio.encode(self._document(outcome, usage))

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        identity = self.identity
        content = _Content()
        for event, own in self.events():
            if isinstance(event, Begin):
                if own:
                    identity.adopt(event)
            elif isinstance(event, Finish):
                identity.finished = event
            elif isinstance(event, UsageReport):
                identity.usage = event.usage
            else:
                identity.refused |= isinstance(event, Refused)
                content.add(event, own)
        identity.called = bool(content.calls)
        figures = usage_object(usage if usage is not None else identity.usage)
        return {**identity.message(), "content": content.finished(), **identity.stop(outcome), "usage": figures}


class _Content:
    """Blocks out of events: as in a stream, joined."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self.calls: dict[int, dict[str, Any]] = {}

    def add(self, event: Event, own: bool) -> None:
        if isinstance(event, Text | Refused):
            if event.text:
                self._last("text", {"type": "text", "text": ""})["text"] += event.text
        elif isinstance(event, Reasoning):
            if event.data is not None:
                if own:
                    self.blocks.append({"type": "redacted_thinking", "data": event.data})
            elif event.text or (own and event.signature is not None):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                block = self._last("thinking", empty)
                if block["signature"]:
                    block = empty
                    self.blocks.append(block)
                block["thinking"] += event.text
                if own and event.signature is not None:
                    block["signature"] = event.signature
        elif isinstance(event, ToolCallDelta):
            self._call(event)
        elif isinstance(event, Opaque) and own and event.data is not None:
            self.blocks.append(msgspec.json.decode(event.data))

    def _last(self, kind: str, empty: dict[str, Any]) -> dict[str, Any]:
        """The block that goes on, or a new one."""
        if not self.blocks or self.blocks[-1]["type"] != kind:
            self.blocks.append(empty)
        return self.blocks[-1]

    def _call(self, event: ToolCallDelta) -> None:
        block = self.calls.get(event.index)
        if block is None:
            block = self.calls[event.index] = {"type": "tool_use", "id": f"toolu_{event.index}", "name": "", "input": ""}
            self.blocks.append(block)
        if event.call_id is not None:
            block["id"] = event.call_id
        if event.name is not None:
            block["name"] = event.name
        block["input"] += event.arguments

    def finished(self) -> list[dict[str, Any]]:
        for block in self.calls.values():
            block["input"] = _object(block["input"])
        return self.blocks


def _object(arguments: str) -> Any:
    """What a model wrote as arguments; what is no JSON object (cut off, most often) under the key that Anthropic's
    documentation has for it."""
    if not arguments.strip():
        return {}
    try:
        made = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, ValueError, RecursionError):
        made = None
    return made if isinstance(made, dict) else {"INVALID_JSON": arguments}


class CountEncoder(_Whole):
    """`{"input_tokens": 25}`."""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Raises ProviderFault where the provider counted nothing: an estimate would pass for a count."""
        own = self.untouched()
        if own is not None:
            return own
        reported = [event.usage for event, _ in self.events() if isinstance(event, UsageReport)]
        if not reported or reported[-1].input_tokens is None:
            raise ProviderFault("provider_error.malformed")
        return jsonio.encode({"input_tokens": reported[-1].input_tokens})
