"""An answer to a Gemini client in one document: what was generated, counted or embedded."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from typing import Any

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.gemini.client_answer import Answer, usage_metadata
from clawproxy.dialects.gemini.names import NAME
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Begin, Embedding, Finish, Outcome, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.messages import ChatRequest, Usage


class _Whole:
    content_type = "application/json; charset=UTF-8"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.answer = Answer(exchange, request)
        self.batches: list[Batch] = []
        self.passes = request.form != "embedContent"
        """Whether a provider's document can be this client's: several vectors were asked for where one is wanted."""

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Raises ClawError: `unsupported_parameter` where several candidates were asked for and the answer was changed;
        `provider_error.malformed` where it lacks what was asked for."""
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        if self.passes and len(raws) == len(self.batches) == 1 and raws[0].lstrip()[:1] == b"{":
            return raws[0]  # the provider's own document, untouched
        return jsonio.encode(self._document(outcome, usage))

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        raise NotImplementedError

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""


class WholeEncoder(_Whole):
    """One GenerateContentResponse."""

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        answer = self.answer
        answer.refuse_several()
        parts: list[dict[str, Any]] = []
        for batch in self.batches:
            for event in batch.events:
                if isinstance(event, Text | Refused):
                    _join(parts, {"text": event.text})
                elif isinstance(event, Reasoning):
                    part = answer.reasoning(event, batch.dialect)
                    if part is not None:
                        _join(parts, part)
                elif isinstance(event, ToolCallDelta):
                    answer.note_call(event, batch.dialect)
                elif isinstance(event, Finish):
                    answer.reason = answer.reason or event
                elif isinstance(event, UsageReport):
                    answer.usage = event.usage
                elif isinstance(event, Begin) and batch.dialect == NAME:
                    answer.id, answer.model = event.id or answer.id, event.model or answer.model
        calls, said = answer.ending(outcome.finish)
        return answer.document([*parts, *calls], said, usage or answer.usage)


def _join(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Pieces of one text are one part; a signature ends it."""
    last = parts[-1] if parts else {}
    if "thoughtSignature" not in last and "text" in last and last.get("thought") == part.get("thought"):
        parts[-1] = {**part, "text": last["text"] + part["text"]}
    else:
        parts.append(part)


class CountEncoder(_Whole):
    """One CountTokensResponse."""

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        for batch in self.batches:
            for event in batch.events:
                if isinstance(event, UsageReport):
                    usage = usage or event.usage
        if usage is None or usage.input_tokens is None:
            raise ClawError("provider_error.malformed")
        cached = {} if usage.cached_tokens is None else {"cachedContentTokenCount": usage.cached_tokens}
        return {"totalTokens": usage.input_tokens, **cached}


class EmbeddingEncoder(_Whole):
    """One BatchEmbedContentsResponse, or an EmbedContentResponse where a single content was asked for."""

    def _document(self, outcome: Outcome, usage: Usage | None) -> dict[str, Any]:
        vectors: dict[int, dict[str, Any]] = {}
        said: Usage | None = None
        for batch in self.batches:
            for event in batch.events:
                if isinstance(event, Embedding):
                    vectors[event.index] = {"values": _numbers(event.values)}
                elif isinstance(event, UsageReport):
                    said = event.usage
        if not vectors:
            raise ClawError("provider_error.malformed")
        made: dict[str, Any] = (
            {"embeddings": [vectors[index] for index in sorted(vectors)]} if self.passes else {"embedding": vectors[min(vectors)]}
        )
        metadata = usage_metadata(said) if said is not None else None
        return made if metadata is None else {**made, "usageMetadata": metadata}


def _numbers(values: Sequence[float] | str) -> Sequence[float]:
    if not isinstance(values, str):
        return values
    try:
        data = base64.b64decode(values, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (binascii.Error, ValueError, struct.error):
        raise ClawError("provider_error.malformed") from None
