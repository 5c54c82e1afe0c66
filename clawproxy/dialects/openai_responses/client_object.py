"""The documents of a Responses answer: the Response itself, its usage, its errors."""

from __future__ import annotations

from typing import Any

from clawproxy.context import Exchange
from clawproxy.dialects.openai_chat.client_answer import error_object
from clawproxy.dialects.openai_responses.tools import NAME, write_choice, write_tools
from clawproxy.errors import ClawError
from clawproxy.events import FinishReason
from clawproxy.messages import ChatRequest, Usage

INCOMPLETE: dict[FinishReason, str] = {
    "length": "max_output_tokens",
    "budget": "max_output_tokens",
    "content_filter": "content_filter",
}
"""The reasons that leave an answer incomplete. A cancelled or unknown end is incomplete without one."""


def response_object(exchange: Exchange, request: ChatRequest, ident: str) -> dict[str, Any]:
    """A Response that has only begun. What the request said is repeated, as the format demands; `store` is false, because the
    gateway keeps nothing."""
    extra = request.extra if request.dialect == NAME else {}
    first = request.messages[0] if request.messages else None
    form: dict[str, Any] = {"type": "text"}
    if request.response_format is not None:
        form = {"type": request.response_format.mode, **(request.response_format.schema or {})}
    text: dict[str, Any] = {"format": form}
    if "text.verbosity" in extra:
        text["verbosity"] = extra["text.verbosity"]
    return {
        "id": ident,
        "object": "response",
        "created_at": int(exchange.started_unix),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": first.text() if first is not None and first.extra.get("instructions") is True else None,
        "max_output_tokens": request.max_tokens,
        "metadata": dict(request.metadata),
        "model": exchange.requested_model or request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": extra.get("previous_response_id"),
        "reasoning": {"effort": request.reasoning_effort, "summary": extra.get("reasoning.summary")},
        "store": False,
        "temperature": request.temperature,
        "text": text,
        "tool_choice": write_choice(request) or "auto",
        "tools": write_tools(request),
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def end_of(reason: FinishReason | None) -> tuple[str, dict[str, str] | None]:
    """`(status, incomplete_details)` of an answer that did not fail."""
    if reason in INCOMPLETE:
        return "incomplete", {"reason": INCOMPLETE[reason]}
    if reason in ("cancelled", "error"):
        return "incomplete", None
    return "completed", None


def usage_object(usage: Usage | None) -> dict[str, Any] | None:
    """`ResponseUsage`; None where no figure is known. Of parts that are not known it demands a number, so they are 0."""
    if usage is None or (total := usage.total_tokens) is None:
        return None
    return {
        "input_tokens": usage.input_tokens or 0,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.output_tokens or 0,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": total,
    }


def response_error(error: ClawError) -> dict[str, str]:
    """`Response.error`: its codes are a closed set, but for the one that clients shorten their prompt at."""
    code = "server_error"
    if error.slug == "context_length_exceeded":
        code = error.slug
    elif error.status == 429 and error.retryable:
        code = "rate_limit_exceeded"
    elif error.status < 500 and not error.retryable:
        code = "invalid_prompt"
    return {"code": code, "message": error.message}


def failed_event(response: dict[str, Any], error: ClawError) -> dict[str, Any]:
    """The last event of an answer that failed on its way. `error` beside the response is not of the format: it is what makes
    the official SDK raise, where it would otherwise end as if all were well."""
    return {
        "type": "response.failed",
        "response": {**response, "status": "failed", "error": response_error(error)},
        "error": error_object(error),
    }
