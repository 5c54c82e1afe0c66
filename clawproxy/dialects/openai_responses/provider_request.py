"""A `ChatRequest` as a Responses body for a provider.

Rule 1: always written anew from what was authorised; the route names the model.
Rule 2: `extra`, at every level, is sent only if the request came in this dialect. The vocabulary's fields win over it.
Rule 3: what came in another dialect is not stored by the provider: nobody asked for that.
Rule 4: `user` and `metadata` name the client's people; they go to a provider only where the client itself wrote them in this
        dialect.
"""

from __future__ import annotations

import re
from typing import Any

import attrs

from clawproxy.dialects.openai_chat.provider_request import encode
from clawproxy.dialects.openai_responses.provider_items import write_input
from clawproxy.dialects.openai_responses.tools import NAME, without_tools, write_choice, write_tools
from clawproxy.dialects.translate import dropped_notice, leftovers, refuse
from clawproxy.errors import ClawError
from clawproxy.events import Notice
from clawproxy.messages import EMPTY, ChatRequest, Route

WORDS = "has no counterpart in the Responses format"
_APART = re.compile(r"(reasoning|text)\.(.+)", re.DOTALL)
_INCLUDED = re.compile(r"include\[[0-9]+\]")
_COMMON = ("service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier")
"""What Chat Completions and Responses call by the same name."""


def encode_body(request: ChatRequest, route: Route) -> tuple[bytes, tuple[Notice, ...]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    body: dict[str, Any] = {}
    reasoning: dict[str, Any] = {}
    text: dict[str, Any] = {}
    notices: tuple[Notice, ...] = ()
    if request.operation != "chat":
        raise ClawError("unsupported_parameter", f"A Responses provider offers no {request.operation}.", param="model")
    if request.dialect == NAME:
        body, reasoning, text = _said(request)
    else:
        notices = _other(request, body, text)
    instructions, items = write_input(request)
    body |= {"model": route.model, "input": items}
    if instructions is not None:
        body["instructions"] = instructions
    for name, value in (
        ("max_output_tokens", request.max_tokens),
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("parallel_tool_calls", request.parallel_tool_calls),
        ("tool_choice", write_choice(request)),
        ("tools", write_tools(request) or None),
    ):
        if value is not None:
            body[name] = value
    if request.reasoning_effort is not None:
        reasoning["effort"] = request.reasoning_effort
    if request.response_format is not None:
        text["format"] = {"type": request.response_format.mode, **(request.response_format.schema or {})}
    if reasoning:
        body["reasoning"] = reasoning
    if text:
        body["text"] = text
    if request.stream:
        body["stream"] = True
    return encode(body), notices


def _said(request: ChatRequest) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What came in this dialect: the body, its `reasoning` and its `text`, each put together again."""
    body: dict[str, Any] = {}
    apart: dict[str, dict[str, Any]] = {"reasoning": {}, "text": {}}
    include: list[Any] = list(request.extra.get("include", ()))
    for name, value in without_tools(request.extra).items():
        if (found := _APART.fullmatch(name)) is not None:
            apart[found[1]][found[2]] = value
        elif _INCLUDED.fullmatch(name):
            include.append(value)
        elif name not in ("include", "tool_choice"):
            body[name] = value
    if include:
        body["include"] = include
    if request.user is not None:
        body["user"] = request.user
    if request.metadata:
        body["metadata"] = request.metadata
    return body, apart["reasoning"], apart["text"]


def _other(request: ChatRequest, body: dict[str, Any], text: dict[str, Any]) -> tuple[Notice, ...]:
    """What came in another dialect: as far as it can be said, and what is left out."""
    extra = dict(request.extra)
    if request.dialect == "openai_chat":
        for name in _COMMON:
            if extra.get(name) is not None:
                body[name] = extra.pop(name)
        if extra.get("verbosity") is not None:
            text["verbosity"] = extra.pop("verbosity")
    body["store"] = False
    for name in ("stop", "top_k"):
        if getattr(request, name) not in (None, ()):
            refuse(name, WORDS)
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(request, name):
            refuse(name, WORDS)
        extra.pop(name, None)
    notices = list(leftovers(attrs.evolve(request, extra=extra or EMPTY), NAME, WORDS))
    if request.seed is not None:
        notices.append(dropped_notice("seed"))  # no provider promises more than its best with it
    if request.reasoning_budget is not None:
        if request.reasoning_effort is None and request.reasoning_budget == 0:
            body["reasoning"] = {"effort": "none"}
        else:
            notices.append(dropped_notice("reasoning_budget"))
    if any(message.name is not None for message in request.messages):
        notices.append(dropped_notice("name"))
    return tuple(notices)
