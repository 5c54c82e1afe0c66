"""What Gemini answers, from documents to events.

Rule 1: only these parts of a document are read. What is wrongly typed here makes it malformed.
Rule 2: a call comes whole; its arguments stay the JSON the model wrote. A call without an id gets the gateway's (`names`,
        Rule 2), numbered on from the calls of the request.
Rule 3: a signature on a text is an empty piece of reasoning after it: it belongs to what was said before.
Rule 4: STOP after a call means that the tools are to be called.
Rule 5: thoughts are counted beside the candidates; together they are the output. What tools brought in is input. A figure that
        can not be is None, and stays readable in `Usage.raw`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from clawproxy.dialects.figures import count, part_of, storable, tier_name
from clawproxy.dialects.gemini.names import FINISH, call_id
from clawproxy.events import Begin, Event, Finish, Opaque, Reasoning, Text, ToolCallDelta, UsageReport
from clawproxy.messages import ChatRequest, Usage

MOST_KINDS = 16
"""Modalities of one figure."""


class _Call(Struct, gc=False):
    id: str | None = None
    name: str | None = None
    args: Raw = Raw(b"")


class _Part(Struct, gc=False, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _Call | None = None
    inline_data: Raw = Raw(b"")
    file_data: Raw = Raw(b"")
    executable_code: Raw = Raw(b"")
    code_execution_result: Raw = Raw(b"")
    tool_call: Raw = Raw(b"")
    tool_response: Raw = Raw(b"")
    function_response: Raw = Raw(b"")


_OPAQUE = (
    ("inline_data", "inlineData"),
    ("file_data", "fileData"),
    ("executable_code", "executableCode"),
    ("code_execution_result", "codeExecutionResult"),
    ("tool_call", "toolCall"),
    ("tool_response", "toolResponse"),
    ("function_response", "functionResponse"),
)


class _Content(Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(Struct, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class Document(Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: Any = None
    model_version: Any = None
    response_id: Any = None
    error: Any = None
    total_tokens: Any = None
    cached_content_token_count: Any = None


decode = msgspec.json.Decoder(Document).decode


class Reader:
    """Turns the documents of one answer into events."""

    def __init__(self, request: ChatRequest) -> None:
        self.finished = False
        """A finish reason was seen, or the prompt was refused: what ends now is whole."""
        self._begun = False
        self._calls = 0
        self._before = sum([len(message.tool_calls) for message in request.messages])
        self._usage: Any = None

    def read(self, document: Document, events: list[Event]) -> None:
        """Append what `document` says."""
        if not self._begun:
            self._begun = True
            events.append(Begin(_name(document.model_version), _name(document.response_id)))
        for candidate in document.candidates or ():
            if candidate.content is not None:
                for part in candidate.content.parts or ():
                    self._part(part, events)
            if candidate.finish_reason:
                self._finish(candidate.finish_reason, events)
        blocked = document.prompt_feedback.block_reason if document.prompt_feedback is not None else None
        if blocked and not document.candidates:
            self.finished = True
            events.append(Finish("content_filter", blocked[:64]))
        if document.usage_metadata is not None and document.usage_metadata != self._usage:
            self._usage = document.usage_metadata
            usage = read_usage(self._usage)
            if usage is not None:
                events.append(UsageReport(usage))

    def _part(self, part: _Part, events: list[Event]) -> None:
        signature = part.thought_signature or None
        if part.function_call is not None:
            events.append(self._call(part.function_call, signature))
        elif part.text is not None:
            if part.thought:
                if part.text or signature:
                    events.append(Reasoning(part.text, signature))
                return
            if part.text:
                events.append(Text(part.text))
            if signature:
                events.append(Reasoning("", signature))
        else:
            for field, kind in _OPAQUE:
                if bytes(getattr(part, field)) not in (b"", b"null"):
                    events.append(Opaque(kind))

    def _call(self, call: _Call, signature: str | None) -> ToolCallDelta:
        index = self._calls
        self._calls += 1
        args = bytes(call.args).strip()
        ident = call.id or call_id(self._before + index)
        return ToolCallDelta(index, ident, call.name or "", "{}" if args in (b"", b"null") else args.decode(), signature)

    def _finish(self, said: str, events: list[Event]) -> None:
        self.finished = True
        if said == "FINISH_REASON_UNSPECIFIED":
            events.append(Finish("other", said))
            return
        reason = FINISH.get(said, "other")
        events.append(Finish("tool_calls" if reason == "stop" and self._calls else reason, said[:64]))


def _name(value: Any) -> str | None:
    """An id or a model, where it is a string that no line can be broken with."""
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None


def read_usage(said: Any) -> Usage | None:
    """The figures of a `usageMetadata`; None where it has none. Parts of a whole are held to the whole."""
    if not isinstance(said, dict) or not said:
        return None
    total_in = _sum(said, "promptTokenCount", "toolUsePromptTokenCount")
    total_out = _sum(said, "candidatesTokenCount", "thoughtsTokenCount")
    return Usage(
        total_in,
        total_out,
        part_of(total_in, count(said.get("cachedContentTokenCount"))),
        None,
        part_of(total_out, count(said.get("thoughtsTokenCount"))),
        raw=storable(said),
        cached_audio_tokens=_of_kind(said, ("cacheTokensDetails",), "AUDIO", total_in),
        audio_input_tokens=_of_kind(said, _PROMPT, "AUDIO", total_in),
        audio_output_tokens=_of_kind(said, _ANSWER, "AUDIO", total_out),
        image_input_tokens=_of_kind(said, _PROMPT, "IMAGE", total_in),
        image_output_tokens=_of_kind(said, _ANSWER, "IMAGE", total_out),
        service_tier=_tier(said),
    )


_PROMPT = ("promptTokensDetails", "toolUsePromptTokensDetails")
_ANSWER = ("candidatesTokensDetails",)


def _of_kind(said: dict[str, Any], names: tuple[str, ...], kind: str, whole: int | None) -> int | None:
    """Tokens of a modality; None where it is not said, which for one that is not in a list of them is so, too."""
    total: int | None = None
    for name in names:
        details = said.get(name)
        for each in details[:MOST_KINDS] if isinstance(details, list) else ():
            if isinstance(each, dict) and each.get("modality") == kind and (figure := count(each.get("tokenCount"))) is not None:
                total = figure if total is None else total + figure
    return part_of(whole, count(total))


def _tier(said: dict[str, Any]) -> str | None:
    """`serviceTier` as the Gemini API says it, in small letters; Vertex's `trafficType` says it in words of its own."""
    tier = said.get("serviceTier")
    return tier_name(tier.lower().removeprefix("service_tier_")) if isinstance(tier, str) else None


def _sum(said: dict[str, Any], *names: str) -> int | None:
    """None where no figure is there, or one of those that are can not be."""
    total: int | None = None
    for name in names:
        if name in said:
            figure = count(said[name])
            if figure is None:
                return None
            total = figure if total is None else total + figure
    return count(total)
