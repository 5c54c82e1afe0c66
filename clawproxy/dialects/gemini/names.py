"""Words both sides of the format share. Source: Google's `google.ai.generativelanguage` API and the google-genai SDK.

Rule 1: JSON of a protobuf message may spell a field `functionCall` or `function_call`. Names are made camelCase level by level,
        where a message of the API stands: never inside a client's own values (a call's `args`, a JSON Schema, `labels`).
Rule 2: calls have ids here, since the vocabulary needs them; Gemini's need not. One without an id is the n-th call of its
        conversation, and is named so (`gemini-call-3`) on both sides, so that its answer finds it. Such an id is never sent
        to Gemini, nor shown to a client of this format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clawproxy.events import FinishReason

NAME = "gemini"

FINISH: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "ESCALATION": "content_filter",
    "MALFORMED_FUNCTION_CALL": "error",
    "MALFORMED_RESPONSE": "error",
    "MISSING_THOUGHT_SIGNATURE": "error",
    "UNEXPECTED_TOOL_CALL": "error",
    "TOO_MANY_TOOL_CALLS": "error",
}
"""The finish reasons that have a word of the vocabulary; the others (LANGUAGE, OTHER, NO_IMAGE...) are `other`."""
SAID: Mapping[FinishReason, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
    "error": "OTHER",
    "budget": "MAX_TOKENS",
    "cancelled": "OTHER",
    "other": "OTHER",
}
"""What a client is told where the provider's own word is of another format."""

EFFORTS: Mapping[str, str] = {
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "XHIGH",
    "max": "XHIGH",
}
"""`reasoning_effort` -> `thinkingLevel`, whose highest is XHIGH."""
BUDGETS: Mapping[str, int] = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
"""The same in tokens, for models older than `thinkingLevel`; the figures of Google's own OpenAI-compatible endpoint."""

_SNAKE = re.compile(r"_([a-z0-9])")
_OWN_ID = re.compile(r"gemini-call-[0-9]{1,9}")


def camel(fields: Mapping[str, Any]) -> dict[str, Any]:
    """One level of a message with its names in camelCase."""
    return {name if "_" not in name else _camel(name): value for name, value in fields.items()}


def _camel(name: str) -> str:
    return _SNAKE.sub(lambda match: match[1].upper(), name)


def call_id(number: int) -> str:
    """The id of the call that is number `number` (from 0) of its conversation and has none of its own."""
    return f"gemini-call-{number}"


def is_made(ident: str) -> bool:
    """Whether this id is `call_id`'s."""
    return _OWN_ID.fullmatch(ident) is not None
