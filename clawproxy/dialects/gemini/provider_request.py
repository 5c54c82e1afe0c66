"""A `ChatRequest` as a request to Gemini.

Rule 1: always written anew from what was authorised; the route names the model, which stands in the path, percent-encoded.
Rule 2: `extra` is sent only if the request came in this dialect. The vocabulary's fields win over it.
Rule 3: schemas go as JSON Schema (`parametersJsonSchema`, `responseJsonSchema`); Google's own kind only where the client wrote it
        and nobody changed it since.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import attrs

from clawproxy.dialects.base import OutboundRequest
from clawproxy.dialects.gemini.names import BUDGETS, EFFORTS, NAME
from clawproxy.dialects.gemini.provider_contents import Writer
from clawproxy.dialects.gemini.schemas import json_schema
from clawproxy.dialects.openai_chat.provider_request import encode
from clawproxy.dialects.translate import dropped_notice, leftovers, refuse
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, ResponseFormat, Route, Tool

WORDS = "has no counterpart in Gemini's format"
_CONFIG, _CALLING = "generationConfig.", "toolConfig.functionCallingConfig."
_TOOL = re.compile(r"tools\[[0-9]{1,4}\]\.(.+)", re.DOTALL)
_BUDGETED = re.compile(r"(?:.*/)?gemini-[12](?![0-9])")
"""Models that know a thinking budget and no level."""
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY", "tool": "ANY"}


def encode_request(request: ChatRequest, route: Route) -> OutboundRequest:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    model = "/models/" + quote(route.model, safe="")
    if request.operation == "embeddings":
        return _embeddings(request, route, model)
    body, notices = _body(request, route)
    if request.operation == "count_tokens":
        if len(body) > 1:
            body = {"generateContentRequest": {"model": f"models/{route.model}", **body}}
        return OutboundRequest(f"{model}:countTokens", encode(body), _WHOLE, notices=notices)
    if request.stream:
        return OutboundRequest(f"{model}:streamGenerateContent?alt=sse", encode(body), _STREAM, "POST", True, notices)
    return OutboundRequest(f"{model}:generateContent", encode(body), _WHOLE, notices=notices)


_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))
_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream"))


def _body(request: ChatRequest, route: Route) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    same = request.dialect == NAME
    notices = leftovers(request, NAME, WORDS)
    body: dict[str, Any] = {}
    if same:
        for name, value in request.extra.items():
            _put(body, name, value)
    elif any(message.name is not None and message.role != "tool" for message in request.messages):
        notices = (*notices, dropped_notice("name"))
    if request.parallel_tool_calls is False and request.tools:
        refuse("parallel_tool_calls", WORDS)
    writer = Writer(request, route.model)
    body["contents"] = writer.contents
    if writer.system:
        body["systemInstruction"] = {"parts": writer.system}
    if request.tools:
        declared = {"functionDeclarations": [_tool(tool, same) for tool in request.tools]}
        body["tools"] = [declared, *body.get("tools", [])]
    if request.tool_choice is not None:
        calling = body.setdefault("toolConfig", {}).setdefault("functionCallingConfig", {})
        calling.setdefault("mode", _MODES[request.tool_choice.mode])
        if request.tool_choice.name is not None:
            calling["allowedFunctionNames"] = [request.tool_choice.name]
    config = body.pop("generationConfig", {})
    _config(config, request, route, same)
    if config:
        body["generationConfig"] = config
    return body, notices


def _put(body: dict[str, Any], name: str, value: Any) -> None:
    """Set what `client_request` keeps under a whole path; at most three deep."""
    tool = _TOOL.fullmatch(name)
    if tool is not None:
        body.setdefault("tools", []).append({tool[1]: value})
        return
    if not name.startswith(("generationConfig.", "toolConfig.")):
        body[name] = value
        return
    inner: dict[str, Any] = body
    while True:
        head, dot, rest = name.partition(".")
        if not dot or head not in ("generationConfig", "toolConfig", "thinkingConfig", "functionCallingConfig"):
            inner[name] = value
            return
        inner, name = inner.setdefault(head, {}), rest


def _tool(tool: Tool, same: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tool.name}
    extra = dict(tool.extra) if same else {}
    own = extra.pop("parameters", None)
    if tool.description is not None:
        made["description"] = tool.description
    if isinstance(own, dict) and json_schema(own) == tool.parameters:
        made["parameters"] = own
    elif tool.parameters is not None:
        made["parametersJsonSchema"] = tool.parameters
    return {**extra, **made}


# --- generationConfig ------------------------------------------------------------------------------------------------------


def _config(config: dict[str, Any], request: ChatRequest, route: Route, same: bool) -> None:
    """What is said of generation, into `config`, which holds what the client said beyond the vocabulary."""
    said = {
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "maxOutputTokens": request.max_tokens,
        "seed": request.seed,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
    }
    config |= {name: value for name, value in said.items() if value is not None}
    if request.stop:
        config["stopSequences"] = list(request.stop)
    own = config.pop("responseSchema", None)
    if request.response_format is not None:
        _response_format(config, request.response_format, own)
    elif own is not None and "responseMimeType" in config:
        config["responseSchema"] = own  # text/x.enum, which the vocabulary has no word for
    _thinking(config, request, route, same)


def _response_format(config: dict[str, Any], said: ResponseFormat, own: Any) -> None:
    if said.mode == "text":
        return
    config["responseMimeType"] = "application/json"
    schema = said.schema.get("schema") if said.schema is not None else None
    if said.mode == "json_schema" and schema is not None:
        if isinstance(own, dict) and json_schema(own) == schema:
            config["responseSchema"] = own
        else:
            config["responseJsonSchema"] = schema


def _thinking(config: dict[str, Any], request: ChatRequest, route: Route, same: bool) -> None:
    effort, budget = request.reasoning_effort, request.reasoning_budget
    if effort is None and budget is None:
        return
    thinking = config.setdefault("thinkingConfig", {})
    thinks = True
    if same:
        if effort is not None:
            thinking["thinkingLevel"] = effort.upper()
        if budget is not None:
            thinking["thinkingBudget"] = budget
        return
    if budget is not None:
        thinking["thinkingBudget"], thinks = budget, budget > 0
    elif effort is None or effort == "none":
        thinking["thinkingBudget"], thinks = 0, False
    elif effort not in EFFORTS:
        refuse("reasoning_effort", "must be one of none, " + ", ".join(EFFORTS) + " for a Gemini provider")
    elif _BUDGETED.match(route.model) is not None:
        thinking["thinkingBudget"] = BUDGETS[effort]
    else:
        thinking["thinkingLevel"] = EFFORTS[effort]
    if thinks:
        thinking["includeThoughts"] = True  # the other formats show what a model thought, where it was asked to


# --- embeddings ------------------------------------------------------------------------------------------------------------


def _embeddings(request: ChatRequest, route: Route, model: str) -> OutboundRequest:
    """Always as a batch: one input is a batch of one."""
    same = request.dialect == NAME
    options: dict[str, Any] = {}
    if not same:
        asked = dict(request.extra)
        asked.pop("encoding_format", None)  # numbers come back; whoever asked for base64 writes it
        if asked.get("dimensions") is not None:
            options["outputDimensionality"] = asked.pop("dimensions")
        request = attrs.evolve(request, extra=asked)
    notices = leftovers(request, NAME, WORDS)
    # Neighbours must not be merged here, so each input is written as a conversation of its own.
    requests: list[Mapping[str, Any]] = []
    for message in request.messages:
        [content] = Writer(attrs.evolve(request, messages=(attrs.evolve(message, extra={}),)), route.model).contents
        beside = message.extra if same else {}
        requests.append({**options, **beside, "model": f"models/{route.model}", "content": {"parts": content["parts"]}})
    body = {**request.extra, "requests": requests} if same else {"requests": requests}
    return OutboundRequest(f"{model}:batchEmbedContents", encode(body), _WHOLE, notices=notices)
