"""A `ChatRequest` as a Messages body for a provider.

Rule 1: always written anew from what was authorised; the route names the model.
Rule 2: `extra`, at every level, is sent only if the request came in this dialect. The vocabulary's fields win over it.
Rule 3: what the format can not say is refused by name (`seed`, penalties, a temperature above 1, JSON without a schema), or left
        out with a notice where it changes nothing (`translate`).
Rule 4: `max_tokens` must be there. A client that did not say it gets the route's maximum, else `DEFAULT_OUTPUT`; with a budget
        for thinking, that much more. A default takes nothing away, so no notice is given.
Rule 5: how much to think is said by `output_config.effort`, and by `thinking` only where a budget was named: effort holds for
        answers with and without thinking, and thinking in a conversation from elsewhere, without its signatures, is refused.
"""

from __future__ import annotations

from typing import Any

from clawproxy.dialects.anthropic.provider_messages import WORDS, Conversation
from clawproxy.dialects.anthropic.words import NAME, WITHOUT_SAMPLING
from clawproxy.dialects.openai_chat.provider_request import encode
from clawproxy.dialects.translate import leftovers, refuse
from clawproxy.errors import ClawError
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, Route, Tool

DEFAULT_OUTPUT = 8192
MIN_BUDGET = 1024
"""The least thinking the API accepts."""
EFFORT = {"minimal": "low"}
"""Other vendors' words for an effort; all others are the same word here."""


def encode_body(request: ChatRequest, route: Route, version: str, *, unsigned: bool = False) -> tuple[bytes, list[Notice]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    if request.operation == "embeddings":
        raise ClawError("unsupported_parameter", "This provider's format has no embeddings.", param="model")
    same = request.dialect == NAME
    talk = Conversation(request, unsigned=unsigned)
    notices = [*leftovers(request, NAME, WORDS), *talk.notices]
    beside: dict[str, Any] = {}
    body: dict[str, Any] = {}
    if same:
        body = dict(request.extra)
        beside = {name: body.pop(name, None) or {} for name in ("thinking", "output_config", "tool_choice")}
    body["model"] = route.model
    body["messages"] = talk.messages
    prompt = talk.system_field()
    if prompt is not None:
        body["system"] = prompt
    if request.operation == "chat":
        body["max_tokens"] = _max_tokens(request, route)
        _sampling(request, version, body)
        if request.stop:
            body["stop_sequences"] = request.stop
        if same and request.metadata:
            body["metadata"] = request.metadata
        if request.stream:
            body["stream"] = True
    if request.tools:
        body["tools"] = [_tool(tool, same) for tool in request.tools]
    _tool_choice(request, beside.get("tool_choice", {}), same, body)
    _thinking(request, beside.get("thinking", {}), same, body)
    _output_config(request, beside.get("output_config", {}), same, body)
    return encode(body), notices


def _max_tokens(request: ChatRequest, route: Route) -> int:
    if request.max_tokens is not None:
        return request.max_tokens
    return (route.max_output_tokens or DEFAULT_OUTPUT) + (request.reasoning_budget or 0 if route.max_output_tokens is None else 0)


def _sampling(request: ChatRequest, version: str, body: dict[str, Any]) -> None:
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(request, name)
        if value is None:
            continue
        if version >= WITHOUT_SAMPLING:
            refuse(name, f"has no place in version {version} of the Anthropic format")
        body[name] = value
    if request.temperature is not None and request.temperature > 1:
        refuse("temperature", "is at most 1 at this provider")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(request, name):
            refuse(name, WORDS)
    if request.seed is not None:
        refuse("seed", WORDS)


def _tool(tool: Tool, same: bool) -> dict[str, Any]:
    extra = dict(tool.extra) if same else {}
    if extra.get("type") not in (None, "custom"):
        return extra  # one of Anthropic's own, whole
    schema = dict(tool.parameters) if tool.parameters is not None else {"properties": {}}
    document = {**extra, "name": tool.name, "input_schema": schema if same or "type" in schema else {"type": "object", **schema}}
    if tool.description is not None:
        document["description"] = tool.description
    if tool.strict is not None and (same or tool.strict):
        document["strict"] = tool.strict
    return document


def _tool_choice(request: ChatRequest, beside: dict[str, Any], same: bool, body: dict[str, Any]) -> None:
    choice, parallel = request.tool_choice, request.parallel_tool_calls
    if choice is None and (parallel is not False or not request.tools):
        return
    mode = "auto" if choice is None else "any" if choice.mode == "required" else choice.mode
    said: dict[str, Any] = {**beside, "type": mode}
    if choice is not None and choice.name is not None:
        said["name"] = choice.name
    if mode != "none" and (parallel is False or (same and parallel is not None)):
        said["disable_parallel_tool_use"] = not parallel
    body["tool_choice"] = said


def _thinking(request: ChatRequest, beside: dict[str, Any], same: bool, body: dict[str, Any]) -> None:
    budget = request.reasoning_budget
    if budget is None and request.reasoning_effort == "none":
        budget = 0
    if budget is None:
        if beside:
            body["thinking"] = beside
    elif budget == 0:
        body["thinking"] = {**beside, "type": "disabled"}
    else:
        body["thinking"] = {**beside, "type": "enabled", "budget_tokens": budget if same else max(budget, MIN_BUDGET)}


def _output_config(request: ChatRequest, beside: dict[str, Any], same: bool, body: dict[str, Any]) -> None:
    config = dict(beside)
    effort, form = request.reasoning_effort, request.response_format
    if effort is not None and (same or effort != "none"):
        config["effort"] = effort if same else EFFORT.get(effort, effort)
    if form is not None and form.mode == "json_object":
        refuse("response_format", "asks for JSON without a schema, which this provider does not know; give a schema")
    if form is not None and form.mode == "json_schema":
        schema = (form.schema or {}).get("schema")
        if schema is None:
            refuse("response_format.json_schema.schema", "is needed by this provider")
        config["format"] = {**config.get("format", {}), "type": "json_schema", "schema": schema}
    if config:
        body["output_config"] = config
