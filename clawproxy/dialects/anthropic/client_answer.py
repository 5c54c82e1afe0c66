"""Messages answers for a client, as a stream of events.

Rule 1: a provider's own bytes in this format go out as they are. Where a policy changed a batch it is written from its events,
        and the bytes after it go on where they fit: `_follow` keeps to the blocks the client was told of, and renumbers.
Rule 2: blocks stand one after another. Text and thinking end where something else begins; a tool call stays open until text or
        thinking begins or the answer ends, since other formats send the pieces of several calls mixed.
Rule 3: the end of a block that came last in a batch waits for the next one: a policy may still hold some of its text.
Rule 4: `message_delta` and `message_stop` are written once, whatever passed before; an answer ends once.
Rule 5: thinking of another vendor is a thinking block with an empty signature: SDKs want the field, and clients show the text.
        When it comes back it is known by that, and never reaches Anthropic (`client_blocks`, Rule 4). A signature goes out only
        where Anthropic made it.
Rule 6: `message_start` says the input's tokens where they are known by then, else 0; `message_delta` states all figures.
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

_OF_BLOCKS = frozenset({b"content_block_start", b"content_block_delta", b"content_block_stop"})
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
        """A batch was written from its events."""
        self.dialect = ""
        self.index = -1
        """Of the block begun last."""
        self.kind = ""
        """Of that block, while it is open."""
        self.open: list[int] = []
        self.ended: int | None = None
        """The open block whose end waits (Rule 3), `end` the event."""
        self.end = b""
        self.theirs: dict[int, int] = {}
        """The provider's index of a block -> the client's."""
        self.calls: dict[int, int] = {}
        """Tool call -> block."""

    def encode(self, batch: Batch) -> bytes:
        if self.over:
            return b""
        self.dialect = batch.dialect or self.dialect
        if batch.raw is not None and batch.dialect == NAME:
            return self._passed(batch.raw, batch.events)
        self.made = True  # even where it says nothing: its bytes may have begun a block
        return b"".join([self._event(event) for event in batch.events])

    # --- the provider's bytes ----------------------------------------------------------------------------------------------

    def _passed(self, raw: bytes, events: Sequence[Event]) -> bytes:
        for event in events:
            kind = type(event)
            if kind is Text:
                continue
            if kind is Begin and not self.begun:
                self.adopt(event)  # type: ignore[arg-type]  # by its kind
            elif kind is Finish:
                self.finished = event  # type: ignore[assignment]  # by its kind
            elif kind is UsageReport:
                self.usage = event.usage  # type: ignore[union-attr]  # by its kind
        plain = self.begun and not self.made and self.ended is None
        if plain and b"event: content_block_st" not in raw and b"event: message_" not in raw:
            return raw  # nearly all
        return b"".join([self._follow(piece) for piece in raw.split(b"\n\n") if piece])

    def _follow(self, piece: bytes) -> bytes:
        """One event of the provider's: as it is, or renumbered. `provider_answer` wrote it: `event: NAME`, `data: JSON`."""
        whole = piece + b"\n\n"
        name = piece[7 : piece.index(b"\n")]
        if not self.begun and name != b"message_start" and name.startswith((b"content_", b"message_")):
            return self._begin() + self._follow(piece)
        if name not in _OF_BLOCKS:
            if name == b"message_start":
                whole, self.begun = b"" if self.begun else whole, True
            elif name == b"message_delta":
                self.told = True
                whole = self._close() + whole
            elif name == b"message_stop":
                if not self.told:
                    return b""  # its message_delta was taken by a policy: `finish` writes both
                self.over = True
            return self._end() + whole
        fields = msgspec.json.decode(piece[len(name) + 14 :])
        theirs = fields.get("index", 0)
        if name == b"content_block_stop":
            ours = self.theirs.pop(theirs, None if theirs in self.theirs or not self.open else self.open[-1])
            before = self._end()
            if ours is not None and ours in self.open:
                self.ended, self.end = ours, whole if ours == theirs else _stop(ours)
            return before
        if name == b"content_block_start":
            before = self._close()
            ours = self.theirs[theirs] = self._opened(fields["content_block"]["type"])
            if self.kind == "tool_use":
                self.called = True
                self.calls[len(self.calls)] = ours
        else:
            before = self._end()
            known, started = self._meant(theirs, fields["delta"]["type"])
            if known is None:
                return before
            before, ours = before + started, known
        if ours == theirs:
            return before + whole
        return before + encode_event(jsonio.encode({**fields, "index": ours}), name)

    def _meant(self, theirs: int, kind: str) -> tuple[int | None, bytes]:
        """`(the block, what begins it)` that a delta of theirs belongs to, where a policy may have taken in its beginning."""
        ours = self.theirs.get(theirs)
        if ours is not None and ours in self.open:
            return ours, b""
        needs = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "thinking"}.get(kind)
        started = b""
        if needs is not None:
            started = self._block(needs)
        elif not self.open or self.kind == "thinking":
            return None, b""
        self.theirs[theirs] = self.open[-1]
        return self.open[-1], started

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
        if isinstance(event, Opaque):
            return self._opaque(event)
        if isinstance(event, Begin):
            if self.dialect == NAME and not self.begun:
                self.adopt(event)
        elif isinstance(event, Finish):
            self.finished = event  # written at the end, with the figures
        elif isinstance(event, UsageReport):
            self.usage = event.usage
        elif isinstance(event, End | Failed | KeepAlive | Embedding):
            pass
        else:
            assert_never(event)
        return b""

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        return self._block("text") + self._delta(self.index, b'{"type":"text_delta","text":%b}' % jsonio.encode(text))

    def _reasoning(self, event: Reasoning) -> bytes:
        own = self.dialect == NAME
        if event.data is not None:
            block = {"type": "redacted_thinking", "data": event.data}
            return self._close() + self._start(block) + self._close() if own else b""
        signature = event.signature if own else None
        if not event.text and signature is None:
            return b""
        written = self._block("thinking")
        if event.text:
            written += self._delta(self.index, b'{"type":"thinking_delta","thinking":%b}' % jsonio.encode(event.text))
        if signature is not None:
            delta = b'{"type":"signature_delta","signature":%b}' % jsonio.encode(signature)
            written += self._delta(self.index, delta) + self._close()  # it ends its block; another one may follow
        return written

    def _call(self, event: ToolCallDelta) -> bytes:
        written = b""
        block = self.calls.get(event.index)
        if block is None:
            if self.kind != "tool_use":
                written = self._close()
            self.called = True
            ident = event.call_id or f"toolu_{self.exchange.request_id.replace('-', '')}_{event.index}"
            written += self._start({"type": "tool_use", "id": ident, "name": event.name or "", "input": {}})
            block = self.calls[event.index] = self.index
        if event.arguments:
            delta = b'{"type":"input_json_delta","partial_json":%b}' % jsonio.encode(event.arguments)
            written += self._delta(block, delta)
        return written

    def _opaque(self, event: Opaque) -> bytes:
        """What only this format knows, in a batch whose bytes can not be used."""
        if event.data is None or self.dialect != NAME:
            return b""
        fields = msgspec.json.decode(event.data)
        begun = b"" if self.begun else self._begin()
        name = str(fields.get("type", "")).encode()
        return begun + self._follow(b"event: %b\ndata: %b" % (name, event.data))

    # --- blocks ------------------------------------------------------------------------------------------------------------

    def _block(self, kind: str) -> bytes:
        """The end of what is open and the beginning of a block, unless one of this kind is open."""
        if self.kind == kind:
            return b""
        empty = {"type": "text", "text": ""} if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        return self._close() + self._start(empty)

    def _start(self, block: dict[str, Any]) -> bytes:
        written = b"" if self.begun else self._begin()
        event = {"type": "content_block_start", "index": self._opened(block["type"]), "content_block": block}
        return written + encode_event(jsonio.encode(event), b"content_block_start")

    def _opened(self, kind: str) -> int:
        self.index += 1
        self.open.append(self.index)
        self.kind = kind
        return self.index

    def _delta(self, index: int, delta: bytes) -> bytes:
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (index, delta)

    def _end(self) -> bytes:
        """The end that waited."""
        ended, self.ended = self.ended, None
        if ended is None or ended not in self.open:
            return b""
        self.open.remove(ended)
        if ended == self.index:
            self.kind = ""
        return self.end

    def _close(self) -> bytes:
        """The end of all that is open."""
        stops = [self.end if each == self.ended else _stop(each) for each in self.open]
        self.open.clear()
        self.kind, self.ended = "", None
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


def _stop(index: int) -> bytes:
    return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index
