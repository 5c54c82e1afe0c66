"""Responses answers for a client: a stream of events, or one document.

Rule 1: while nobody changes anything, a provider's own bytes in this format go out as they are; `Items` follows what they say.
Rule 2: once a batch comes without its bytes, everything is written here until the end: the events that close an item repeat
        its whole text, and a provider's own would repeat what a policy has taken out. The same from the first repetition on that
        says more than what passed (`client_agree`).
Rule 3: an answer ends once, with `response.completed`, `.incomplete` or `.failed`; after it, everything gives nothing.
Rule 4: JSON is written on one line; it holds neither CR nor LF.
"""

from __future__ import annotations

import re
from typing import Any, assert_never

import msgspec

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_responses.client_agree import agrees
from clawproxy.dialects.openai_responses.client_items import Items, Told
from clawproxy.dialects.openai_responses.client_object import end_of, failed_event, response_object, usage_object
from clawproxy.dialects.openai_responses.tools import NAME, Names
from clawproxy.dialects.sse import SSEDecoder
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

_STRUCTURE = re.compile(rb"response\.(?:created|in_progress|queued|completed|incomplete|output_item|\w+_part\.|\w+\.done)")
"""What bytes hold that do more than add to a text."""
_NUMBER = re.compile(rb'"sequence_number": ?([0-9]{1,15})')
Written = list[tuple[str, bytes]]
"""Events as `(type, JSON)`."""


def blocks(raw: bytes) -> list[bytes]:
    """The JSON of the events in a provider's bytes (LF form, whole events, as `Batch.raw` holds them)."""
    return [event.data for event in SSEDecoder(len(raw) + 1).feed(raw) if event.data is not None]


def _decoded(raw: bytes) -> list[dict[str, Any]] | None:
    """The events in a provider's bytes; None where one is none."""
    try:
        events = [msgspec.json.decode(data) for data in blocks(raw)]
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return events if all(isinstance(event, dict) for event in events) else None


class AnswerEvents:
    """One answer as events, whatever carries them: SSE, or the messages of a WebSocket."""

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        suffix = exchange.request_id.replace("-", "")
        self.items = Items(Names(request.tools), suffix)
        self.response = response_object(exchange, request, f"resp_{suffix}")
        self.over = False
        self._own = False
        """Rule 2: nothing passes any more."""
        self._begun = False
        self._number = 0
        self._last = b""
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None

    # --- what passes -------------------------------------------------------------------------------------------------------

    def passes(self, batch: Batch) -> bool:
        """Whether a batch goes out as its bytes; if so, what they say is taken in."""
        raw = batch.raw
        if raw is None or batch.dialect != NAME or self._own:
            return False
        if _STRUCTURE.search(raw) is not None:
            events = _decoded(raw)
            said = {event.text for event in batch.events if isinstance(event, Text | Refused | Reasoning)}
            said |= {event.arguments for event in batch.events if isinstance(event, ToolCallDelta)}
            if events is None or not agrees(self.items, events, said):
                return False
            for event in events:
                self._follow(event)
        else:
            for said_now in batch.events:
                if isinstance(said_now, Text | Refused | Reasoning):
                    self.items.heard(said_now.text)
                elif isinstance(said_now, ToolCallDelta):
                    for event in _decoded(raw) or ():
                        self._follow(event)
                    break
        if raw:
            self._last = raw
        if any(isinstance(event, End) for event in batch.events):
            self.over = True
        return True

    def _follow(self, event: dict[str, Any]) -> None:
        said = event.get("response")
        if isinstance(said, dict) and isinstance(said.get("id"), str):
            self._begun = True
            self.response = {**self.response, **said}
        else:
            self.items.follow(event)

    # --- what is made ------------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Written:
        if self.over:
            return []
        if not self._own:
            self._own = True
            numbers = _NUMBER.findall(self._last)
            self._number = int(numbers[-1]) + 1 if numbers else 0
            self._last = b""
        own = batch.dialect == NAME
        told: Told = []
        for event in batch.events:
            self._event(event, own, told)
        return self._numbered(told)

    def _event(self, event: Event, own: bool, told: Told) -> None:
        if isinstance(event, Text | Refused | Reasoning | ToolCallDelta):
            self._begin(told)
        if isinstance(event, Text):
            told += self.items.text(event.text)
        elif isinstance(event, Refused):
            told += self.items.text(event.text, refusal=True)
        elif isinstance(event, Reasoning):
            told += self.items.reasoning(event, own)
        elif isinstance(event, ToolCallDelta):
            told += self.items.call(event, own)
        elif isinstance(event, Begin):
            if own and event.id is not None and not self._begun:
                self.response["id"] = event.id  # so that it means something to the provider as `previous_response_id`
        elif isinstance(event, Finish):
            self._reason = event.reason
        elif isinstance(event, UsageReport):
            self._usage = event.usage
        elif isinstance(event, End | Failed | KeepAlive | Opaque | Embedding):
            pass  # `finish` ends, `fail` tells of failures
        else:
            assert_never(event)

    def _begin(self, told: Told) -> None:
        if not self._begun:
            self._begun = True
            for kind in ("response.created", "response.in_progress"):
                told.append({"type": kind, "response": dict(self.response)})

    def _numbered(self, told: Told) -> Written:
        written = []
        for event in told:
            event["sequence_number"] = self._number
            self._number += 1
            written.append((event["type"], jsonio.encode(event)))
        return written

    # --- the end -----------------------------------------------------------------------------------------------------------

    def finish(self, outcome: Outcome, usage: Usage | None) -> Written:
        if self.over:
            return []
        written = self.write(Batch([]))
        self.over = True
        told: Told = []
        self._begin(told)
        status, why = end_of(outcome.finish or self._reason)
        told += self.items.close(status)
        self.end_with(status, why, usage if usage is not None else self._usage)
        told.append({"type": f"response.{status}", "response": self.response})
        return written + self._numbered(told)

    def end_with(self, status: str, why: dict[str, str] | None, usage: Usage | None) -> None:
        self.response |= {
            "status": status,
            "incomplete_details": why,
            "output": self.items.output(status),
            "usage": usage_object(usage),
        }

    def fail(self, error: ClawError) -> Written:
        if self.over:
            return []
        written = self.write(Batch([]))
        self.over = True
        told: Told = []
        self._begin(told)
        told.append(failed_event(self.response, error))
        return written + self._numbered(told)


class StreamEncoder:
    """Server-sent events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self._answer = AnswerEvents(exchange, request)

    def encode(self, batch: Batch) -> bytes:
        if self._answer.over:
            return b""
        if self._answer.passes(batch):
            return batch.raw or b""
        return _sse(self._answer.write(batch))

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        return _sse(self._answer.finish(outcome, usage))

    def fail(self, error: ClawError) -> bytes:
        return _sse(self._answer.fail(error))

    def keepalive(self) -> bytes:
        return b"" if self._answer.over else b": keep-alive\n\n"


def _sse(written: Written) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (kind.encode(), data) for kind, data in written])


class WholeEncoder:
    """One `response` document."""

    content_type = "application/json"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self._answer = AnswerEvents(exchange, request)
        self._batches: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self._batches.append(batch)
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        raws = [batch.raw for batch in self._batches if batch.dialect == NAME and batch.raw]
        if len(raws) == len(self._batches) == 1 and raws[0].lstrip()[:1] == b"{":
            return raws[0]  # the provider's own document, untouched
        for batch in self._batches:
            self._answer.write(batch)
        self._answer.finish(outcome, usage)
        return jsonio.encode(self._answer.response)

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""


def document(written: Any) -> dict[str, Any]:
    """The Response inside a terminal event's JSON; {} where there is none."""
    try:
        event = msgspec.json.decode(written)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}
    said = event.get("response") if isinstance(event, dict) else None
    return said if isinstance(said, dict) else {}
