"""Ollama's answers for a client: one JSON document a line, or one in all.

Rule 1: a batch that still has its provider's bytes in this format goes out as those bytes, to `/api/chat`.
Rule 2: the last line (`"done": true`, with usage and durations) is written once, by `finish`, unless it was passed on.
Rule 3: a tool call goes out whole, since its arguments are an object here: its pieces are kept until something else follows. What
        is no JSON object can not be said, and ends the answer with an error.
Rule 4: durations are the exchange's own, in nanoseconds: loading is the way to the provider, evaluating the prompt its first
        token's time. What is not known is left out.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

import msgspec

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

NAME = "ollama"
FINISH: Mapping[FinishReason, str] = {"length": "length", "budget": "length"}
"""All others are `stop`: this format has no word for a call of tools."""


def one_line(data: bytes) -> bytes:
    """JSON that no reader takes for two lines: httpx, and so the official client, also splits at U+0085, U+2028 and U+2029, as
    `str.splitlines` does. Go escapes the latter two. The bytes can only stand in strings."""
    if b"\xc2\x85" in data:
        data = data.replace(b"\xc2\x85", b"\\u0085")
    if b"\xe2\x80\xa8" in data or b"\xe2\x80\xa9" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def error_line(error: ClawError) -> bytes:
    return one_line(jsonio.encode({"error": error.message}))


class _Encoder:
    """What all answers share. `generate`: the shape of `/api/generate`."""

    content_type = "application/json"

    def __init__(self, exchange: Exchange, request: ChatRequest, *, generate: bool = False) -> None:
        self.exchange = exchange
        self.generate = generate
        self.model = exchange.requested_model or request.model
        self.usage: Usage | None = None
        self.reason: FinishReason | None = None
        self.calls: dict[int, _Call] = {}
        """Those that have not gone out, by the provider's index."""
        self.called = 0

    def head(self) -> dict[str, Any]:
        moment = datetime.fromtimestamp(self.exchange.started_unix, UTC)
        return {"model": self.model, "created_at": moment.isoformat(timespec="microseconds").replace("+00:00", "Z")}

    def said(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The part of a document that holds content."""
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self.generate:
            return {"response": text, **more}
        if calls:
            more["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": text, **more}}

    def call(self, event: ToolCallDelta) -> None:
        known = self.calls.get(event.index)
        if known is None:
            known = self.calls[event.index] = _Call(self.called)
            self.called += 1
        known.add(event)

    def take_calls(self) -> list[dict[str, Any]]:
        """The calls kept so far, as this format has them. Raises ClawError("provider_error.malformed")."""
        made = [call.document() for call in self.calls.values()]
        self.calls.clear()
        return made

    def end(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        figures = usage if usage is not None else self.usage
        timing = self.exchange.timing
        upstream, token = timing.upstream, timing.first_token
        spent: dict[str, float | None] = {
            "total_duration": timing.total,
            "load_duration": timing.connect,
            "prompt_eval_duration": token,
            "eval_duration": None if upstream is None or token is None else max(0.0, upstream - token),
        }
        counts = {} if figures is None else {"prompt_eval_count": figures.input_tokens, "eval_count": figures.output_tokens}
        durations = {name: None if seconds is None else round(seconds * 1e9) for name, seconds in spent.items()}
        known = {name: value for name, value in {**durations, **counts}.items() if value is not None}
        return {"done": True, "done_reason": FINISH.get(outcome.finish or self.reason or "stop", "stop"), **known}


class _Call:
    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"call_{index}"
        self.name = ""
        self.pieces: list[str] = []

    def add(self, event: ToolCallDelta) -> None:
        self.id = event.call_id or self.id
        self.name = event.name or self.name
        self.pieces.append(event.arguments)

    def document(self) -> dict[str, Any]:
        text = "".join(self.pieces).strip()
        try:
            arguments = msgspec.json.decode(text) if text else {}
        except (msgspec.DecodeError, ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            words = "The provider's answer could not be understood: the arguments of a tool call are no JSON object."
            raise ClawError("provider_error.malformed", words)
        return {"id": self.id, "function": {"index": self.index, "name": self.name, "arguments": arguments}}


class StreamEncoder(_Encoder):
    content_type = "application/x-ndjson"

    def __init__(self, exchange: Exchange, request: ChatRequest, *, generate: bool = False) -> None:
        super().__init__(exchange, request, generate=generate)
        self.over = False
        head = one_line(jsonio.encode(self.head()))[:-1]
        self.before = head + (b',"response":' if generate else b',"message":{"role":"assistant","content":')
        self.after = b',"done":false}\n' if generate else b'},"done":false}\n'

    def encode(self, batch: Batch) -> bytes:
        """Raises ClawError("provider_error.malformed"), as Rule 3 says."""
        if self.over:
            return b""
        if batch.raw is not None and batch.dialect == NAME and not self.generate:
            held = self._flush()
            for event in batch.events:
                if isinstance(event, ToolCallDelta):
                    self.called += 1
                elif isinstance(event, End):
                    self.over = True
            return held + batch.raw
        return b"".join([self._event(event) for event in batch.events])

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Text | Refused):
            return self._flush() + b"".join((self.before, one_line(jsonio.encode(event.text)), self.after))
        if isinstance(event, Reasoning):
            if not event.text:
                return b""
            return self._flush() + b"".join((self.before, b'"","thinking":', one_line(jsonio.encode(event.text)), self.after))
        if isinstance(event, ToolCallDelta):
            self.call(event)
            return b""
        if isinstance(event, Finish):
            self.reason = event.reason
            return self._flush()
        if isinstance(event, UsageReport):
            self.usage = event.usage
            return b""
        if isinstance(event, Begin | End | Failed | KeepAlive | Opaque | Embedding):
            return b""
        assert_never(event)

    def _flush(self) -> bytes:
        calls = self.take_calls() if self.calls else []
        if not calls:
            return b""
        return one_line(jsonio.encode({**self.head(), **self.said("", "", calls), "done": False})) + b"\n"

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """The last line, where it has not gone out yet. Raises ClawError("provider_error.malformed"), as Rule 3 says."""
        if self.over:
            return b""
        held = self._flush()
        self.over = True
        return held + one_line(jsonio.encode({**self.head(), **self.said(""), **self.end(outcome, usage)})) + b"\n"

    def fail(self, error: ClawError) -> bytes:
        if self.over:
            return b""
        self.over = True
        return error_line(error) + b"\n"

    def keepalive(self) -> bytes:
        """None: the official client reads every line as a document, an empty one too."""
        return b""


class _Kept(_Encoder):
    """An answer in one document: nothing is written before its end."""

    def __init__(self, exchange: Exchange, request: ChatRequest, *, generate: bool = False) -> None:
        super().__init__(exchange, request, generate=generate)
        self.batches: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""

    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    def untouched(self) -> bytes | None:
        """The provider's own document, where it is one of this format and nobody changed it."""
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        return raws[0] if len(raws) == len(self.batches) == 1 else None


class WholeEncoder(_Kept):
    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Raises ClawError("provider_error.malformed"), as Rule 3 says."""
        raw = None if self.generate else self.untouched()
        if raw is not None:
            return raw
        text: list[str] = []
        thinking: list[str] = []
        for event in self.events():
            if isinstance(event, Text | Refused):
                text.append(event.text)
            elif isinstance(event, Reasoning):
                thinking.append(event.text)
            elif isinstance(event, ToolCallDelta):
                self.call(event)
            elif isinstance(event, Finish):
                self.reason = event.reason
            elif isinstance(event, UsageReport):
                self.usage = event.usage
        said = self.said("".join(text), "".join(thinking), self.take_calls())
        return jsonio.encode({**self.head(), **said, **self.end(outcome, usage)})


class EmbedEncoder(_Kept):
    """`old`: the shape of `/api/embeddings`, one vector."""

    def __init__(self, exchange: Exchange, request: ChatRequest, *, old: bool) -> None:
        super().__init__(exchange, request)
        self.old = old

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        raw = None if self.old else self.untouched()
        if raw is not None:
            return raw
        found = sorted([event for event in self.events() if isinstance(event, Embedding)], key=lambda event: event.index)
        vectors = [numbers(event.values) for event in found]
        if self.old:
            return jsonio.encode({"embedding": vectors[0] if vectors else []})
        for event in self.events():
            if isinstance(event, UsageReport):
                self.usage = event.usage
        end = self.end(outcome, usage)
        figures = {name: end[name] for name in ("total_duration", "load_duration", "prompt_eval_count") if name in end}
        return jsonio.encode({"model": self.model, "embeddings": vectors, **figures})


def numbers(values: tuple[float, ...] | str) -> tuple[float, ...]:
    """A vector as numbers; base64 holds little-endian float32. Raises ClawError("provider_error.malformed")."""
    if not isinstance(values, str):
        return values
    try:
        data = b64decode(values, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (ValueError, struct.error):
        raise ClawError("provider_error.malformed") from None
