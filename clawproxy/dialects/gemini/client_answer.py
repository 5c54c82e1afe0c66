"""What all answers to a Gemini client are made of: parts, candidates and figures.

Rule 1: a call is one part with all its arguments, so its pieces are kept until the answer ends. One that is not a JSON object is
        left out, and the finish reason says so (MALFORMED_FUNCTION_CALL), as Gemini itself does.
Rule 2: reasoning is shown where the client asked for it (`includeThoughts`). A signature goes only where it came from this
        format; with one, a part may have no text.
Rule 3: an id that the gateway made (`names.call_id`) is not shown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from clawproxy.context import Exchange
from clawproxy.dialects.gemini.names import NAME, SAID, is_made
from clawproxy.errors import ClawError
from clawproxy.events import Finish, FinishReason, Reasoning, ToolCallDelta
from clawproxy.messages import ChatRequest, Usage

_INCLUDE = "generationConfig.thinkingConfig.includeThoughts"
_CANDIDATES = "generationConfig.candidateCount"


def usage_metadata(usage: Usage) -> dict[str, Any] | None:
    """`UsageMetadata`: thoughts are counted beside the candidates. None where no figure is known: missing is not zero."""
    total = usage.total_tokens
    if total is None:
        return None
    made: dict[str, Any] = {}
    if usage.input_tokens is not None:
        made["promptTokenCount"] = usage.input_tokens
    if usage.cached_tokens is not None:
        made["cachedContentTokenCount"] = usage.cached_tokens
    if usage.output_tokens is not None:
        made["candidatesTokenCount"] = max(0, usage.output_tokens - (usage.reasoning_tokens or 0))
    if usage.reasoning_tokens is not None:
        made["thoughtsTokenCount"] = usage.reasoning_tokens
    return {**made, "totalTokenCount": total}


class Answer:
    """What both lives of an answer share: its identity, its calls, its finish."""

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.exchange = exchange
        self.thoughts = request.extra.get(_INCLUDE) is True
        self.several = _CANDIDATES in request.extra
        self.id = exchange.request_id.replace("-", "")
        self.model = exchange.requested_model or request.model
        self.usage: Usage | None = None
        self.reason: Finish | None = None
        self.calls: dict[int, list[ToolCallDelta]] = {}

    def document(self, parts: list[dict[str, Any]], finish: str | None = None, usage: Usage | None = None) -> dict[str, Any]:
        """One GenerateContentResponse."""
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = finish
        made: dict[str, Any] = {"candidates": [candidate]}
        metadata = usage_metadata(usage) if usage is not None else None
        if metadata is not None:
            made["usageMetadata"] = metadata
        return {**made, "modelVersion": self.model, "responseId": self.id}

    def refuse_several(self) -> None:
        """Events do not say which candidate they belong to; only a provider's own bytes do."""
        if self.several:
            words = "`generationConfig.candidateCount` above 1 can not be honoured where a policy changes the answer."
            raise ClawError("unsupported_parameter", words, param=_CANDIDATES)

    def reasoning(self, event: Reasoning, dialect: str) -> dict[str, Any] | None:
        # A transform that held the whole answer back gives it without a dialect: then nobody else's is assumed.
        signature = event.signature if dialect in (NAME, "") else None
        if signature is not None and not event.text:
            return {"text": "", "thoughtSignature": signature}
        if not self.thoughts or not event.text:
            return None
        part: dict[str, Any] = {"text": event.text, "thought": True}
        return part if signature is None else {**part, "thoughtSignature": signature}

    def note_call(self, event: ToolCallDelta, dialect: str) -> None:
        if dialect not in (NAME, "") and event.signature is not None:
            event = ToolCallDelta(event.index, event.call_id, event.name, event.arguments)
        self.calls.setdefault(event.index, []).append(event)

    def ending(self, reason: FinishReason | None) -> tuple[list[dict[str, Any]], str]:
        """The parts of the calls, and the finish reason."""
        finish = reason or (self.reason.reason if self.reason else "stop")
        parts: list[dict[str, Any]] = []
        broken = False
        for _, pieces in sorted(self.calls.items()):
            part = _call_part(pieces)
            if part is None:
                broken = True
            else:
                parts.append(part)
        if broken and finish not in ("length", "budget", "content_filter"):
            return parts, "MALFORMED_FUNCTION_CALL"
        return parts, SAID[finish]


def _call_part(pieces: list[ToolCallDelta]) -> dict[str, Any] | None:
    name = ident = signature = None
    for piece in pieces:
        name, ident = name or piece.name, ident or piece.call_id
        signature = signature or piece.signature
    arguments = "".join([piece.arguments for piece in pieces]).strip() or "{}"
    try:
        args = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if not isinstance(args, dict) or not name:
        return None
    call: dict[str, Any] = {"name": name, "args": args}
    if ident is not None and not is_made(ident):
        call["id"] = ident
    return {"functionCall": call} if signature is None else {"functionCall": call, "thoughtSignature": signature}
