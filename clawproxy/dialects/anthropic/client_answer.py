"""Messages answers for a client, as a stream of events.

Rule 1: a batch that still has its provider's bytes in this format goes out as those bytes, until one comes that has none (a
        policy changed it, or the provider speaks another format). From then on everything is written from events: what a policy
        took out may have held the end of one block and the beginning of the next, so later bytes no longer fit.
Rule 2: blocks stand one after another. Text and thinking end where something else begins; a tool call stays open until text or
        thinking begins or the answer ends, since other formats send the pieces of several calls mixed.
Rule 3: `message_delta` and `message_stop` are written at the end, once, whatever passed before; an answer ends once.
Rule 4: thinking of another vendor is a thinking block with an empty signature: SDKs want the field, and clients show the text.
        When it comes back it is known by that, and never reaches Anthropic (`client_blocks`, Rule 4). A signature goes out only
        where Anthropic made it.
Rule 5: `message_start` says the input's tokens where they are known by then, else 0; `message_delta` states all figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.anthropic.words import FINISH, NAME, STOP, error_document, usage_object
from clawproxy.dialects.sse import encode_event
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

PING = encode_event(b'{"type": "ping"}', b"ping")


class Identity:
    """What both lives of an answer share: who it is from, and how it ends."""

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.exchange = exchange
        self.id: str | None = None
        """The provider's own, where it goes on in this format."""
        self.model = exchange.requested_model or request.model
        self.usage: Usage | None = None
        self.finished: Finish | None = None
        self.refused = self.called = False

    def adopt(self, begin: Begin) -> None:
        self.id = begin.id or self.id
        self.model = begin.model or self.model

    def message(self) -> dict[str, Any]:
        own = self.id or "msg_" + self.exchange.request_id.replace("-", "")
        return {"id": own, "type": "message", "role": "assistant", "model": self.model}

    def stop(self, outcome: Outcome) -> dict[str, Any]:
        """`stop_reason` and what belongs to it."""
        said = self.finished
        met = None if said is None else said.stop_sequence
        kind: FinishReason = outcome.finish or ("stop" if said is None else said.reason)
        if said is not None and said.raw is not None and said.raw in FINISH and said.reason == kind:
            reason = said.raw
        elif kind != "stop":
            reason = STOP[kind]
        elif self.called:  # some providers say "stop" after a call
            reason = "tool_use"
        else:
            reason = "refusal" if self.refused else "end_turn" if met is None else "stop_sequence"
        details = {"type": "refusal", "category": None, "explanation": None} if reason == "refusal" else None
        return {"stop_reason": reason, "stop_sequence": met if reason == "stop_sequence" else None, "stop_details": details}


class StreamEncoder(Identity):
    """Server-sent events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        super().__init__(exchange, request)
        self.begun = self.told = self.over = False
        self.made = False
        """Something was written from events: see Rule 1."""
        self.dialect = ""
        self.kind = ""
        """Of the open block that is not a tool call: text, thinking, or none."""
        self.index = -1
        """Of the block begun last."""
        self.calls: dict[int, int] = {}
        """Tool call -> block."""
        self.open: list[int] = []

    def encode(self, batch: Batch) -> bytes:
        if self.over:
            return b""
        self.dialect = batch.dialect or self.dialect
        if batch.raw is not None and batch.dialect == NAME and not self.made:
            return self._passed(batch.raw, batch.events)
        return b"".join([self._event(event) for event in batch.events])

    # --- the provider's bytes ----------------------------------------------------------------------------------------------

    def _passed(self, raw: bytes, events: Sequence[Event]) -> bytes:
        for event in events:
            kind = type(event)
            if kind is Text:
                continue
            if kind is Begin:
                self.adopt(event)  # type: ignore[arg-type]
                self.begun = True
            elif kind is Finish:
                self.finished, self.told = event, True  # type: ignore[assignment]
            elif kind is UsageReport:
                self.usage = event.usage  # type: ignore[union-attr]
            elif kind is End:
                self.over = True
        if b"event: content_block_st" in raw:  # twice a block
            self._follow(raw)
        return raw

    def _follow(self, raw: bytes) -> None:
        """Keep count of the blocks, so that events can take over. These bytes were decoded before (`provider_answer`)."""
        for piece in raw.split(b"\n\n"):
            name, _, data = piece.partition(b"\n")
            if name == b"event: content_block_stop":
                index = msgspec.json.decode(data[6:]).get("index", 0)
                self.open = [each for each in self.open if each != index]
                self.kind = ""
            elif name == b"event: content_block_start":
                start = msgspec.json.decode(data[6:])
                self.index = start.get("index", 0)
                kind = start["content_block"]["type"]
                if kind == "tool_use":
                    self.calls[len(self.calls)] = self.index
                    self.called = True
                self.kind = kind if kind in ("text", "thinking") else ""
                self.open.append(self.index)

    # --- from events -------------------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self._text(event.text)
        if isinstance(event, Refused):
            self.refused = True
            return self._text(event.text)
        if isinstance(event, Reasoning):
            return self._reasoning(event)
        if isinstance(event, ToolCallDelta):
            return self._call(event)
        if isinstance(event, Begin):
            if self.dialect == NAME and not self.begun:
                self.adopt(event)
            return b""
        if isinstance(event, Finish):
            self.finished = event  # written at the end, with the figures
            return b""
        if isinstance(event, UsageReport):
            self.usage = event.usage
            return b""
        if isinstance(event, End | Failed | KeepAlive | Opaque | Embedding):
            return b""
        assert_never(event)

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        start = self._block("text", {"type": "text", "text": ""})
        return start + self._delta(self.index, b'{"type":"text_delta","text":%b}' % jsonio.encode(text))

    def _reasoning(self, event: Reasoning) -> bytes:
        own = self.dialect == NAME
        if event.data is not None:
            if not own:
                return b""
            start = self._block("redacted", {"type": "redacted_thinking", "data": event.data})
            return start + self._close()
        written = b""
        if event.text or (event.signature is not None and own):
            written = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if event.text:
            written += self._delta(self.index, b'{"type":"thinking_delta","thinking":%b}' % jsonio.encode(event.text))
        if event.signature is not None and own:
            delta = b'{"type":"signature_delta","signature":%b}' % jsonio.encode(event.signature)
            written += self._delta(self.index, delta) + self._close()  # it ends its block; another one may follow
        return written

    def _call(self, event: ToolCallDelta) -> bytes:
        written = b""
        block = self.calls.get(event.index)
        if block is None:
            if self.kind:
                written = self._close()
            self.called = True
            ident = event.call_id or f"toolu_{self.exchange.request_id.replace('-', '')}_{event.index}"
            written += self._start({"type": "tool_use", "id": ident, "name": event.name or "", "input": {}})
            block = self.calls[event.index] = self.index
        if event.arguments:
            delta = b'{"type":"input_json_delta","partial_json":%b}' % jsonio.encode(event.arguments)
            written += self._delta(block, delta)
        return written

    def _block(self, kind: str, block: dict[str, Any]) -> bytes:
        """The end of what is open and the beginning of a block, unless one of this kind is open."""
        if self.kind == kind:
            return b""
        return self._close() + self._start(block, kind)

    def _start(self, block: dict[str, Any], kind: str = "") -> bytes:
        written = b"" if self.begun else self._begin()
        self.made = True
        self.index += 1
        self.open.append(self.index)
        self.kind = kind
        event = {"type": "content_block_start", "index": self.index, "content_block": block}
        return written + encode_event(jsonio.encode(event), b"content_block_start")

    def _delta(self, index: int, delta: bytes) -> bytes:
        self.made = True
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (index, delta)

    def _close(self) -> bytes:
        stops = [b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % each for each in self.open]
        self.open.clear()
        self.kind = ""
        return b"".join(stops)

    def _begin(self) -> bytes:
        self.begun = True
        figures = usage_object(self.usage)
        figures["output_tokens"] = 0
        message = {**self.message(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": figures}
        return encode_event(jsonio.encode({"type": "message_start", "message": message}), b"message_start")

    # --- the end -----------------------------------------------------------------------------------------------------------

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """The terminal events that have not gone out yet."""
        if self.over:
            return b""
        self.over = True
        parts = [b"" if self.begun else self._begin(), self._close()]
        if not self.told:
            figures = usage_object(usage if usage is not None else self.usage)
            change = {"type": "message_delta", "delta": self.stop(outcome), "usage": figures}
            parts.append(encode_event(jsonio.encode(change), b"message_delta"))
        parts.append(encode_event(b'{"type":"message_stop"}', b"message_stop"))
        return b"".join(parts)

    def fail(self, error: ClawError) -> bytes:
        if self.over:
            return b""
        self.over = True
        return encode_event(jsonio.encode(error_document(error, self.exchange.request_id)), b"error")

    def keepalive(self) -> bytes:
        return b"" if self.over else PING
