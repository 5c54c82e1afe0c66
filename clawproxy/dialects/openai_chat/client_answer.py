"""Chat Completions answers for a client: chunks, or one document.

Rule 1: a batch that still has its provider's bytes in this format goes out as those bytes; its events only tell what they held.
Rule 2: what is missing at the end (finish chunk, usage if asked, `[DONE]`) is added once, whatever passed before.
Rule 3: an answer ends once: after `finish` or `fail`, both give b"".
Rule 4: JSON is written on one line, in UTF-8; no text of a model can end a `data` line (I-07: only CR and LF do, and JSON
        escapes both).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
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

NAME = "openai_chat"
DONE = b"data: [DONE]\n\n"

FINISH: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "budget": "length",
    "error": "stop",
    "cancelled": "stop",
    "other": "stop",
}


def error_object(error: ClawError) -> dict[str, Any]:
    """All four keys, as the format's specification requires."""
    kind = error.kind
    return {
        "message": error.message,
        "type": kind.openai_type,
        "param": error.details.param,
        "code": kind.openai_code or kind.slug,
    }


def usage_object(usage: Usage) -> dict[str, Any] | None:
    """`CompletionUsage`; None where no figure is known, since missing is not zero."""
    total = usage.total_tokens
    if total is None:
        return None
    document: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens or 0,
        "completion_tokens": usage.output_tokens or 0,
        "total_tokens": total,
    }
    prompt = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens}
    if prompt := {name: value for name, value in prompt.items() if value is not None}:
        document["prompt_tokens_details"] = prompt
    if usage.reasoning_tokens is not None:
        document["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return document


class _Encoder:
    """What both lives of an answer share: its identity, and refusing what can not be told apart."""

    content_type: str

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.exchange = exchange
        self.id: str | None = None
        """The provider's own, where it goes on in this format."""
        self.model = exchange.requested_model or request.model
        self.n = request.extra.get("n")

    def identity(self, kind: str) -> dict[str, Any]:
        """What every document of this answer begins with."""
        own = self.id or "chatcmpl-" + self.exchange.request_id.replace("-", "")
        return {"id": own, "object": kind, "created": int(self.exchange.started_unix), "model": self.model}

    def refuse_several(self) -> None:
        """Events do not say which of `n` choices they belong to; only a provider's own bytes do."""
        if isinstance(self.n, int) and self.n > 1:
            raise ClawError(
                "unsupported_parameter", "`n` above 1 can not be honoured where a policy changes the answer.", param="n"
            )


class StreamEncoder(_Encoder):
    """Server-sent events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        super().__init__(exchange, request)
        self.include_usage = request.include_usage
        self.begun = self.finished = self.reported = self.over = False
        self.calls = False
        self.usage: Usage | None = None
        self.made = b""
        self.tail = b""

    def encode(self, batch: Batch) -> bytes:
        """Raises ClawError("unsupported_parameter") where `n` > 1 and the batch was changed."""
        if self.over:
            return b""
        if batch.raw is not None and batch.dialect == NAME:
            return self._passed(batch.raw, batch.events)
        if not self.begun and batch.dialect == NAME:
            for event in batch.events:
                if isinstance(event, Begin):
                    self._adopt(event)
        return b"".join([self._event(event) for event in batch.events])

    def _passed(self, raw: bytes, events: Any) -> bytes:
        for event in events:
            kind = type(event)
            if kind is Text:
                continue
            if kind is Begin:
                self._adopt(event)
                self.begun = True
            elif kind is Finish:
                self.finished = True
            elif kind is UsageReport:
                self.usage = event.usage
                self.reported = True
            elif kind is End:
                if not raw.endswith(DONE):
                    continue
                if self.finished and (self.reported or not self.include_usage):
                    self.over = True
                else:
                    raw = raw[: -len(DONE)]  # something must still come before it: `finish` writes it
        return raw

    def _adopt(self, begin: Begin) -> None:
        """Take on the provider's id and model: all chunks of an answer carry the same, made or passed on."""
        self.id = begin.id or self.id
        self.model = begin.model or self.model
        self.made = b""

    def _event(self, event: Event) -> bytes:
        kind = type(event)
        if kind is Text or kind is Reasoning or kind is Refused:
            name = b"content" if kind is Text else b"reasoning_content" if kind is Reasoning else b"refusal"
            return self._delta(b'{"%s":%s}' % (name, jsonio.encode(event.text)))  # type: ignore[union-attr]  # by its kind
        if isinstance(event, ToolCallDelta):
            self.calls = True
            return self._delta(jsonio.encode({"tool_calls": [_call_delta(event)]}))
        if isinstance(event, Finish):
            return self._finish(event.reason)
        if isinstance(event, UsageReport):
            self.usage = event.usage  # written at the end: the last one counts
            return b""
        if isinstance(event, Begin | End | Failed | KeepAlive | Opaque | Embedding):
            return b""  # the first content begins, `finish` ends, `fail` tells of failures
        assert_never(event)  # type: ignore[arg-type]  # the first three by their kind

    def _delta(self, delta: bytes) -> bytes:
        self.refuse_several()
        chunk = self._chunk(delta, b"null")
        return chunk if self.begun else self._begin() + chunk

    def _begin(self) -> bytes:
        self.begun = True
        return self._chunk(b'{"role":"assistant","content":"","refusal":null}', b"null")

    def _chunk(self, delta: bytes, finish: bytes) -> bytes:
        if not self.made:
            head = jsonio.encode(self.identity("chat.completion.chunk"))
            self.made = b"data: " + head[:-1] + b',"choices":[{"index":0,"delta":'
            self.tail = b',"usage":null}\n\n' if self.include_usage else b"}\n\n"
        return b"".join((self.made, delta, b',"logprobs":null,"finish_reason":', finish, b"}]", self.tail))

    def _finish(self, reason: FinishReason) -> bytes:
        if self.finished:
            return b""
        begin = b"" if self.begun else self._begin()
        self.finished = True
        return begin + self._chunk(b"{}", jsonio.encode(FINISH[reason]))

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """The terminal chunks that have not gone out yet."""
        if self.over:
            return b""
        self.over = True
        parts = []
        if not self.finished:
            parts.append(self._finish(outcome.finish or ("tool_calls" if self.calls else "stop")))
        if self.include_usage and not self.reported:
            figures = usage if usage is not None else self.usage
            document = usage_object(figures) if figures is not None else None
            if document is not None:
                chunk = jsonio.encode({**self.identity("chat.completion.chunk"), "choices": [], "usage": document})
                parts.append(b"data: " + chunk + b"\n\n")
        parts.append(DONE)
        return b"".join(parts)

    def fail(self, error: ClawError) -> bytes:
        if self.over:
            return b""
        self.over = True
        return b"data: " + jsonio.encode({"error": error_object(error)}) + b"\n\n"

    def keepalive(self) -> bytes:
        return b"" if self.over else b": keep-alive\n\n"


class WholeEncoder(_Encoder):
    """One `chat.completion` document."""

    content_type = "application/json"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        super().__init__(exchange, request)
        self.batches: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Raises ClawError("unsupported_parameter") where `n` > 1 and the answer was changed."""
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        if len(raws) == len(self.batches) == 1 and raws[0].lstrip()[:1] == b"{":
            return raws[0]  # the provider's own document, untouched
        self.refuse_several()
        return jsonio.encode(self._document(outcome, usage))

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        text: list[str] = []
        reasoning: list[str] = []
        refusal: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        reason, reported = outcome.finish, None
        for event in [event for batch in self.batches for event in batch.events]:
            if isinstance(event, Text):
                text.append(event.text)
            elif isinstance(event, Reasoning):
                reasoning.append(event.text)
            elif isinstance(event, Refused):
                refusal.append(event.text)
            elif isinstance(event, ToolCallDelta):
                _add_call(calls, event)
            elif isinstance(event, Finish):
                reason = reason or event.reason
            elif isinstance(event, UsageReport):
                reported = event.usage
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(text) if text or not (calls or refusal) else None,
            "refusal": "".join(refusal) or None,
        }
        if reasoning:
            message["reasoning_content"] = "".join(reasoning)
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        figures = usage or reported
        finish = FINISH[reason or ("tool_calls" if calls else "stop")]
        return {
            **self.identity("chat.completion"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": usage_object(figures) if figures is not None else None,
        }

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {}
    if event.name is not None:
        function["name"] = event.name
    function["arguments"] = event.arguments
    call: dict[str, Any] = {"index": event.index}
    if event.call_id is not None:
        call |= {"id": event.call_id, "type": "function"}
    return {**call, "function": function}


def _add_call(calls: dict[int, dict[str, Any]], event: ToolCallDelta) -> None:
    call = calls.setdefault(
        event.index, {"id": f"call_{event.index}", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    if event.call_id is not None:
        call["id"] = event.call_id
    if event.name is not None:
        call["function"]["name"] = event.name
    call["function"]["arguments"] += event.arguments
