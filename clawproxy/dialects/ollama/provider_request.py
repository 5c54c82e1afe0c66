"""A `ChatRequest` as a body for `/api/chat` or `/api/embed`.

Rule 1: always written anew from what was authorised; the route names the model. `extra` goes out only where the request came in
        this dialect, its `options.NAME` back among the options. The vocabulary's fields win over it.
Rule 2: `stream` is always said, since Ollama streams where it is not.
Rule 3: what this format can not say is refused by name (a choice among tools, images by URL, sound, files); what only fine-tunes
        is left out with a notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from clawproxy.dialects.functions import schema_of, write_tool
from clawproxy.dialects.openai_chat.provider_request import encode
from clawproxy.dialects.translate import dropped_notice, leftovers, refuse
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, ImagePart, Message, ResponseFormat, Route, TextPart

NAME = "ollama"
WORDS = "has no counterpart in Ollama's format"
_OPTION = "options."
_EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": True,  # the same to models with levels, and the only word for the others
    "high": "high",
    "xhigh": "high",
    "max": "high",
}


def encode_chat(request: ChatRequest, route: Route) -> tuple[bytes, list[Notice]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    same = request.dialect == NAME
    notices = list(leftovers(request, NAME, WORDS))
    body, options = _beyond(request, same)
    for name, value in (
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("top_k", request.top_k),
        ("seed", request.seed),
        ("num_predict", request.max_tokens),
        ("frequency_penalty", request.frequency_penalty),
        ("presence_penalty", request.presence_penalty),
        ("stop", request.stop or None),
    ):
        if value is not None:
            options[name] = value
    body["model"] = route.model
    body["messages"] = _messages(request, same, notices)
    body["stream"] = request.stream
    if options:
        body["options"] = options
    if request.tools and _may_call(request):
        body["tools"] = [write_tool(tool, same) for tool in request.tools]
        notices += [dropped_notice(f"tools[{number}].strict") for number, tool in enumerate(request.tools) if tool.strict]
    if request.response_format is not None and (wanted := _format(request.response_format)) is not None:
        body["format"] = wanted
    think = _think(request, same, notices)
    if think is not None:
        body["think"] = think
    return encode(body), notices


def encode_embed(request: ChatRequest, route: Route) -> tuple[bytes, list[Notice]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    notices = list(leftovers(request, NAME, WORDS))
    body, options = _beyond(request, request.dialect == NAME)
    for number, message in enumerate(request.messages):
        if isinstance(message.content, tuple) and any(not isinstance(part, TextPart) for part in message.content):
            refuse(f"input[{number}]", "can not be sent: Ollama makes vectors of texts only")
    body["model"] = route.model
    body["input"] = [message.text() for message in request.messages]
    if options:
        body["options"] = options
    return encode(body), notices


def _beyond(request: ChatRequest, same: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in `extra`: the fields of the body, and its options."""
    if not same:
        return {}, {}
    body = {name: value for name, value in request.extra.items() if not name.startswith(_OPTION)}
    body.pop("options", None)
    options = {name[len(_OPTION) :]: value for name, value in request.extra.items() if name.startswith(_OPTION)}
    return body, options


def _may_call(request: ChatRequest) -> bool:
    """Whether the tools are to be told: to a model that may use none, none are."""
    if request.parallel_tool_calls is False:
        refuse("parallel_tool_calls", WORDS)
    choice = request.tool_choice
    if choice is None or choice.mode == "auto":
        return True
    if choice.mode != "none":
        refuse("tool_choice", "can not be honoured: Ollama leaves it to the model whether it calls a tool, and which")
    return False


def _format(wanted: ResponseFormat) -> Any:
    if wanted.mode == "text":
        return None
    schema = schema_of(wanted) if wanted.mode == "json_schema" else None
    return "json" if schema is None else schema


def _think(request: ChatRequest, same: bool, notices: list[Notice]) -> bool | str | None:
    effort, budget = request.reasoning_effort, request.reasoning_budget
    if budget == 0:
        return False
    if budget is not None:
        notices.append(dropped_notice("reasoning_budget"))
    if effort is None:
        return None if budget is None else True
    known = _EFFORTS.get(effort)
    if same and effort not in ("none", "medium"):
        return effort  # its own word for it, whatever the model knows
    if known is None:
        refuse("reasoning_effort", "is none of the levels that Ollama knows")
    if effort in ("minimal", "xhigh", "max"):
        notices.append(Notice("parameter_clamped", f"`reasoning_effort` was sent as `{known}`.", {"param": "reasoning_effort"}))
    return known


# --- messages --------------------------------------------------------------------------------------------------------------


def _messages(request: ChatRequest, same: bool, notices: list[Notice]) -> list[dict[str, Any]]:
    tools: dict[str, str] = {}
    """Names by the ids of calls: a result must say the first."""
    made = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        for call in message.tool_calls:
            tools[call.id] = call.name
        if message.name is not None and message.role != "tool":
            notices.append(dropped_notice(f"{where}.name"))
        made.append(_message(message, where, same, tools))
    return made


def _message(message: Message, where: str, same: bool, tools: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(message.extra) if same else {}
    fields["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, tuple):
        texts, images = _parts(message, where)
        fields["content"] = "\n".join(texts)
        if images:
            fields["images"] = images
    else:
        fields["content"] = message.content or ""
    if message.reasoning:
        fields["thinking"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call.arguments, f"{where}.tool_calls[{place}]")},
            }
            for place, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        if message.tool_call_id is not None:
            fields["tool_call_id"] = message.tool_call_id
        name = message.name or tools.get(message.tool_call_id or "")
        if name:
            fields["tool_name"] = name
    return fields


def _parts(message: Message, where: str) -> tuple[list[str], list[str]]:
    """The texts, and the images as base64."""
    texts: list[str] = []
    images: list[str] = []
    for place, part in enumerate(message.content or ()):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, ImagePart) and part.data is not None:
            images.append(part.data)
        elif isinstance(part, ImagePart):
            refuse(f"{where}.content[{place}].image_url", "can not be sent: Ollama takes images as data, not by URL")
        else:
            refuse(f"{where}.content[{place}]", "can not be sent: Ollama takes text and images only")
    return texts, images


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        refuse(f"{where}.function.arguments", "must be a JSON object to be sent to Ollama")
    return arguments
