"""A streamed answer to a Gemini client: server-sent events (`alt=sse`), or one JSON array of the same documents.

Rule 1: a batch that still has its provider's bytes in this format goes out as those bytes; in an array, without their framing.
Rule 2: the finish reason and the figures come together, in the last document.
Rule 3: there is no terminal marker: the body ends. After `finish` or `fail` nothing more is written.
Rule 4: no comments keep the connection alive: Google sends none, and its SDKs take one for broken JSON. Between the elements of
        an array white space does.
"""

from __future__ import annotations

from typing import assert_never

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.gemini.client_answer import Answer
from clawproxy.dialects.gemini.client_error import error_object
from clawproxy.dialects.gemini.names import NAME
from clawproxy.errors import ClawError
from clawproxy.events import (
    Batch,
    Begin,
    Embedding,
    End,
    Event,
    Failed,
    Finish,
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

BREAK = b"\r\n\r\n"
"""What ends an event, in Google's bytes and in ours: some clients split at the first kind of blank line they see."""


class StreamEncoder:
    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.sse = request.form == "sse"
        self.content_type = "text/event-stream" if self.sse else "application/json; charset=UTF-8"
        self.answer = Answer(exchange, request)
        self.opened = self.finished = self.reported = self.over = False
        self._head = self._tail = b""

    def encode(self, batch: Batch) -> bytes:
        """Raises ClawError("unsupported_parameter") where several candidates were asked for and the batch was changed."""
        if self.over:
            return b""
        if batch.raw is not None and batch.dialect == NAME:
            return self._passed(batch)
        if batch.dialect == NAME:
            self._adopt(batch)
        return b"".join([self._event(event, batch.dialect) for event in batch.events])

    def _passed(self, batch: Batch) -> bytes:
        for event in batch.events:
            kind = type(event)
            if kind is Text:
                continue
            if kind is Finish:
                self.finished = True
            elif kind is UsageReport:
                self.reported = True
        self._adopt(batch)
        raw = batch.raw
        assert raw is not None
        if self.sse or not raw:
            return raw
        documents = raw.removesuffix(BREAK).split(BREAK)
        return b"".join([self._framed(each.removeprefix(b"data: ").replace(b"\r\ndata: ", b"\n")) for each in documents])

    def _adopt(self, batch: Batch) -> None:
        """Take on the provider's id and model: all documents of an answer carry the same, made or passed on."""
        for event in batch.events:
            if type(event) is Begin:
                self.answer.id = event.id or self.answer.id
                self.answer.model = event.model or self.answer.model

    def _event(self, event: Event, dialect: str) -> bytes:
        if isinstance(event, Text | Refused):
            return self._text(event.text)
        if isinstance(event, Reasoning):
            part = self.answer.reasoning(event, dialect)
            return b"" if part is None else self._document([part])
        if isinstance(event, ToolCallDelta):
            self.answer.note_call(event, dialect)
            return b""
        if isinstance(event, Finish):
            self.answer.reason = event
            return b""
        if isinstance(event, UsageReport):
            self.answer.usage = event.usage  # written at the end: the last one counts
            return b""
        if isinstance(event, Begin | End | Failed | KeepAlive | Opaque | Embedding):
            return b""
        assert_never(event)

    def _text(self, text: str) -> bytes:
        """What all documents of a text share is written once: a token is one concatenation."""
        self.answer.refuse_several()
        if not self._head:
            made = jsonio.encode(self.answer.document([{"text": ""}]))
            place = made.index(b'{"text":""}') + len(b'{"text":')
            self._head, self._tail = made[:place], made[place + 2 :]
        return self._framed(self._head + jsonio.encode(text) + self._tail)

    def _document(self, parts: list[dict[str, object]]) -> bytes:
        self.answer.refuse_several()
        return self._framed(jsonio.encode(self.answer.document(parts)))

    def _framed(self, document: bytes) -> bytes:
        if self.sse:
            return b"data: " + document + BREAK
        opened, self.opened = self.opened, True
        return (b",\r\n" if opened else b"[") + document

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """The calls, the finish reason and the figures, as far as passed-through bytes did not hold them."""
        if self.over:
            return b""
        self.over = True
        figures = usage if usage is not None else self.answer.usage
        parts, said = self.answer.ending(outcome.finish)
        last = b""
        if not self.finished or parts:
            last = self._framed(jsonio.encode(self.answer.document(parts, said, None if self.reported else figures)))
        return last + self._closed()

    def fail(self, error: ClawError) -> bytes:
        if self.over:
            return b""
        self.over = True
        return self._framed(jsonio.encode({"error": error_object(error)})) + self._closed()

    def _closed(self) -> bytes:
        if self.sse:
            return b""
        return b"]" if self.opened else b"[]"

    def keepalive(self) -> bytes:
        return b"" if self.sse or self.over else b"\n"
