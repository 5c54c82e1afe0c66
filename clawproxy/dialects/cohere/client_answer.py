"""Cohere's answers for a client: server-sent events, or one document.

Rule 1: a batch that still has its provider's bytes in this format goes out as those bytes. They are looked through for what they
        began and ended, so that an answer may change from passed to made at any batch.
Rule 2: what is missing at the end (the end of a block, `message-end` with its usage) is added once.
Rule 3: an answer ends once: after `finish` or `fail`, both give b"". A failure is a `message-end` that says so, since the format
        has no other event for it.
Rule 4: reasoning is a block of thinking. A plan (`tool_plan`) would need to be known before the call it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec
from msgspec import Struct

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.cohere.client_messages import NAME
from clawproxy.dialects.sse import SSEDecoder, encode_event
from clawproxy.errors import ClawError
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
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Usage

FINISH: Mapping[FinishReason, str] = {"length": "MAX_TOKENS", "budget": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "error": "ERROR"}
"""All others are `COMPLETE`."""


def error_document(error: ClawError, request_id: str) -> bytes:
    return jsonio.encode({"id": request_id, "message": error.message})


def usage_object(usage: Usage) -> dict[str, Any] | None:
    """`Usage`; None where no figure is known, since missing is not zero."""
    said = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    figures = {name: value for name, value in said.items() if value is not None}
    if not figures:
        return None
    document: dict[str, Any] = {"billed_units": figures, "tokens": figures}
    if usage.cached_tokens is not None:
        document["cached_tokens"] = usage.cached_tokens
    return document


class _Step(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    delta: Any = None


_decode_step = msgspec.json.Decoder(_Step).decode


class StreamEncoder:
    content_type = "text/event-stream"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.id = exchange.request_id
        self.begun = self.over = False
        self.blocks = 0
        """Blocks of content begun so far: the next one's index."""
        self.block = ""
        """What is open: `text`, `thinking`, or "" for neither."""
        self.call: int | None = None
        """The call that is open."""
        self.called: set[int] = set()
        self.usage: Usage | None = None
        self.reason: FinishReason | None = None

    def encode(self, batch: Batch) -> bytes:
        if self.over:
            return b""
        if batch.dialect == NAME:
            self.id = next((event.id for event in batch.events if isinstance(event, Begin) and event.id), self.id)
            if batch.raw is not None:
                self._look(batch.raw)
                self.over = any(isinstance(event, End) for event in batch.events)
                return batch.raw
        return b"".join([self._event(event) for event in batch.events])

    def _look(self, raw: bytes) -> None:
        """Follow what passes."""
        for block in SSEDecoder(limit=len(raw) + 1).feed(raw):
            if block.data is None:
                continue
            step = _decode_step(block.data)
            self.begun = True
            if step.type == "content-start":
                self.block = "thinking" if _begins_thinking(step.delta) else "text"
                self.blocks = max(self.blocks, (step.index or 0) + 1)
            elif step.type == "content-end":
                self.block = ""
            elif step.type == "tool-call-start":
                self.call = step.index or 0
                self.called.add(self.call)
            elif step.type == "tool-call-end":
                self.call = None

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Text | Refused):
            return self._said("text", event.text)
        if isinstance(event, Reasoning):
            return self._said("thinking", event.text) if event.text else b""
        if isinstance(event, ToolCallDelta):
            return self._called(event)
        if isinstance(event, Finish):
            self.reason = event.reason
            return b""
        if isinstance(event, UsageReport):
            self.usage = event.usage  # written at the end: the last one counts
            return b""
        if isinstance(event, Begin | End | Failed | KeepAlive | Opaque | Embedding):
            return b""
        assert_never(event)

    def _begin(self) -> bytes:
        if self.begun:
            return b""
        self.begun = True
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        return _write("message-start", {"id": self.id, "delta": {"message": message}})

    def _said(self, kind: str, text: str) -> bytes:
        out = b""
        if self.block != kind:
            out = self._begin() + self._close()
            out += _write("content-start", _content(self.blocks, {"type": kind, kind: ""}))
            self.block = kind
            self.blocks += 1
        return out + _write("content-delta", _content(self.blocks - 1, {kind: text}))

    def _called(self, event: ToolCallDelta) -> bytes:
        out = b""
        if event.index not in self.called:
            out = self._begin() + self._close()
            self.called.add(event.index)
            self.call = event.index
            function = {"name": event.name or "", "arguments": event.arguments}
            call = {"id": event.call_id or f"call_{event.index}", "type": "function", "function": function}
            return out + _write("tool-call-start", {"index": event.index, "delta": {"message": {"tool_calls": call}}})
        if not event.arguments:
            return b""
        delta = {"message": {"tool_calls": {"function": {"arguments": event.arguments}}}}
        return _write("tool-call-delta", {"index": event.index, "delta": delta})

    def _close(self) -> bytes:
        """The end of whatever is open."""
        out = b""
        if self.block:
            self.block = ""
            out = _write("content-end", {"index": self.blocks - 1})
        if self.call is not None:
            out += _write("tool-call-end", {"index": self.call})
            self.call = None
        return out

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """The terminal events that have not gone out yet."""
        if self.over:
            return b""
        out = self._begin() + self._close()
        self.over = True
        reason = outcome.finish or self.reason or ("tool_calls" if self.called else "stop")
        delta: dict[str, Any] = {"finish_reason": FINISH.get(reason, "COMPLETE")}
        figures = usage if usage is not None else self.usage
        document = None if figures is None else usage_object(figures)
        if document is not None:
            delta["usage"] = document
        return out + _write("message-end", {"id": self.id, "delta": delta})

    def fail(self, error: ClawError) -> bytes:
        if self.over:
            return b""
        self.over = True
        reason = "TIMEOUT" if error.slug.startswith("timeout.") else "ERROR"
        return _write("message-end", {"id": self.id, "delta": {"error": error.message, "finish_reason": reason}})

    def keepalive(self) -> bytes:
        return b"" if self.over else b": keep-alive\n\n"


def _begins_thinking(delta: Any) -> bool:
    """Of a `content-start`."""
    message = delta.get("message") if isinstance(delta, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, dict) and content.get("type") == "thinking"


def _write(kind: str, fields: dict[str, Any]) -> bytes:
    return encode_event(jsonio.encode({"type": kind, **fields}), kind.encode())


def _content(index: int, content: dict[str, str]) -> dict[str, Any]:
    return {"index": index, "delta": {"message": {"content": content}}}


class _Kept:
    """An answer in one document: nothing is written before its end."""

    content_type = "application/json"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.request = request
        self.id = exchange.request_id
        self.batches: list[Batch] = []
        self.usage: Usage | None = None

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        if len(raws) == len(self.batches) == 1:
            return raws[0]  # the provider's own document, untouched
        events = [event for batch in self.batches for event in batch.events]
        for batch in self.batches:
            for event in batch.events:
                if isinstance(event, Begin) and batch.dialect == NAME:
                    self.id = event.id or self.id
                elif isinstance(event, UsageReport):
                    self.usage = event.usage
        return jsonio.encode(self.document(events, outcome, usage if usage is not None else self.usage))

    def document(self, events: list[Event], outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        raise NotImplementedError


class WholeEncoder(_Kept):
    def document(self, events: list[Event], outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        content: list[dict[str, str]] = []
        calls: dict[int, dict[str, Any]] = {}
        reason = outcome.finish
        for event in events:
            if isinstance(event, Text | Refused | Reasoning):
                kind = "thinking" if isinstance(event, Reasoning) else "text"
                if not content or content[-1]["type"] != kind:
                    content.append({"type": kind, kind: ""})
                content[-1][kind] += event.text
            elif isinstance(event, ToolCallDelta):
                call = calls.setdefault(event.index, {"id": f"call_{event.index}", "type": "function", "function": {}})
                call["id"] = event.call_id or call["id"]
                function = call["function"]
                function["name"] = event.name or function.get("name", "")
                function["arguments"] = function.get("arguments", "") + event.arguments
            elif isinstance(event, Finish):
                reason = reason or event.reason
        message: dict[str, Any] = {"role": "assistant"}
        if content or not calls:
            message["content"] = content or [{"type": "text", "text": ""}]
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        finish = FINISH.get(reason or ("tool_calls" if calls else "stop"), "COMPLETE")
        document = {"id": self.id, "finish_reason": finish, "message": message}
        figures = None if usage is None else usage_object(usage)
        return document if figures is None else {**document, "usage": figures}


class EmbedEncoder(_Kept):
    def document(self, events: list[Event], outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        found = sorted([event for event in events if isinstance(event, Embedding)], key=lambda event: event.index)
        kind = "base64" if any(isinstance(event.values, str) for event in found) else "float"
        meta: dict[str, Any] = {"api_version": {"version": "2"}}
        if usage is not None and usage.input_tokens is not None:
            meta["billed_units"] = {"input_tokens": usage.input_tokens}
        texts = [message.content for message in self.request.messages if isinstance(message.content, str)]
        return {
            "id": self.id,
            "embeddings": {kind: [event.values for event in found]},
            "texts": texts,
            "response_type": "embeddings_by_type",
            "meta": meta,
        }
