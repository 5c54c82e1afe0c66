"""A `ChatRequest` as a body for Cohere's `/chat` or `/embed`.

Rule 1: always written anew from what was authorised; the route names the model. `extra` goes out only where the request came in
        this dialect, and the vocabulary's fields win over it.
Rule 2: what this format can not say is refused by name (the choice of one tool among several, negative penalties, sound, files);
        what only fine-tunes is left out or held within Cohere's bounds, with a notice.
Rule 3: `input_type` is required of an embedding and said by Cohere's clients alone; for others it is `search_document`.
"""

from __future__ import annotations

from typing import Any

from clawproxy.dialects.cohere.client_messages import NAME, document_text
from clawproxy.dialects.functions import schema_of, write_tool
from clawproxy.dialects.openai_chat.provider_request import encode
from clawproxy.dialects.translate import dropped_notice, leftovers, refuse
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, ImagePart, Message, Part, Route, TextPart

WORDS = "has no counterpart in Cohere's format"
MAX_STOP = 5
_LEAST_P, _MOST_P = 0.01, 0.99


def encode_chat(request: ChatRequest, route: Route) -> tuple[bytes, list[Notice]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    same = request.dialect == NAME
    notices = list(leftovers(request, NAME, WORDS))
    body: dict[str, Any] = dict(request.extra) if same else {}
    beside_format = body.pop("response_format", None) or {}
    body["model"] = route.model
    body["messages"] = _messages(request, same, notices)
    body["stream"] = request.stream
    said = (
        ("max_tokens", request.max_tokens),
        ("temperature", request.temperature),
        ("p", request.top_p if same else _held_p(request.top_p, notices)),
        ("k", request.top_k),
        ("seed", request.seed),
        ("frequency_penalty", _penalty("frequency_penalty", request.frequency_penalty)),
        ("presence_penalty", _penalty("presence_penalty", request.presence_penalty)),
        ("stop_sequences", request.stop or None),
        ("tool_choice", _tool_choice(request)),
        ("thinking", _thinking(request, same, notices)),
    )
    body |= {name: value for name, value in said if value is not None}
    if len(request.stop) > MAX_STOP:
        refuse("stop", f"may hold at most {MAX_STOP} texts at Cohere")
    if request.parallel_tool_calls is False:
        refuse("parallel_tool_calls", WORDS)
    if request.tools:
        body["tools"] = [write_tool(tool, same) for tool in request.tools]
        if all(tool.strict for tool in request.tools):
            body["strict_tools"] = True  # it is one word for all of them here
        else:
            notices += [dropped_notice(f"tools[{number}].strict") for number, tool in enumerate(request.tools) if tool.strict]
    if request.response_format is not None:
        wanted = request.response_format
        body["response_format"] = {**beside_format, "type": "text" if wanted.mode == "text" else "json_object"}
        if wanted.mode == "json_schema" and (schema := schema_of(wanted)) is not None:
            body["response_format"]["json_schema"] = schema
    return encode(body), notices


def encode_embed(request: ChatRequest, route: Route) -> tuple[bytes, list[Notice]]:
    """Raises ClawError("unsupported_parameter") where the format has no way to say it."""
    same = request.dialect == NAME
    notices = list(leftovers(request, NAME, WORDS))
    body: dict[str, Any] = dict(request.extra) if same else {}
    body["model"] = route.model
    if not same:
        words = "`input_type` was taken to be `search_document`, since Cohere asks for one."
        notices.append(Notice("parameter_assumed", words, {"param": "input_type"}))
        body["input_type"] = "search_document"
    body.setdefault("embedding_types", ["float"])
    if all(isinstance(message.content, str) for message in request.messages):
        body["texts"] = [message.content for message in request.messages]
    elif all(_is_image(message) for message in request.messages):
        blocks = [_blocks(message, f"images[{number}]", same)[0] for number, message in enumerate(request.messages)]
        body["images"] = [block["image_url"]["url"] for block in blocks]  # older models take them only so
    else:
        body["inputs"] = [
            {"content": _blocks(message, f"inputs[{number}]", same)} for number, message in enumerate(request.messages)
        ]
    return encode(body), notices


def _is_image(message: Message) -> bool:
    content = message.content
    return isinstance(content, tuple) and len(content) == 1 and isinstance(content[0], ImagePart) and not content[0].extra


def _held_p(value: float | None, notices: list[Notice]) -> float | None:
    if value is None or _LEAST_P <= value <= _MOST_P:
        return value
    held = min(max(value, _LEAST_P), _MOST_P)
    notices.append(Notice("parameter_clamped", f"`top_p` was sent as {held}, the bound at Cohere.", {"param": "top_p"}))
    return held


def _penalty(name: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        refuse(name, "must be between 0 and 1 at Cohere")
    return value


def _tool_choice(request: ChatRequest) -> str | None:
    choice = request.tool_choice
    if choice is None or choice.mode == "auto":
        return None
    if choice.mode == "tool" and [tool.name for tool in request.tools] != [choice.name]:
        refuse("tool_choice", "can not name one tool of several at Cohere")
    return "NONE" if choice.mode == "none" else "REQUIRED"


def _thinking(request: ChatRequest, same: bool, notices: list[Notice]) -> dict[str, Any] | None:
    effort, budget = request.reasoning_effort, request.reasoning_budget
    if effort is None and budget is None:
        return None
    if budget == 0 or effort == "none":
        return {"type": "disabled"}
    if budget is not None:
        return {"type": "enabled", "token_budget": budget}
    if not same:
        notices.append(dropped_notice("reasoning_effort"))
    return {"type": "enabled"}


# --- messages --------------------------------------------------------------------------------------------------------------


def _messages(request: ChatRequest, same: bool, notices: list[Notice]) -> list[dict[str, Any]]:
    made = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        if message.name is not None and message.role != "tool":
            notices.append(dropped_notice(f"{where}.name"))
        made.append(_message(message, where, same))
    return made


def _message(message: Message, where: str, same: bool) -> dict[str, Any]:
    fields: dict[str, Any] = dict(message.extra) if same else {}
    fields["role"] = "system" if message.role == "developer" else message.role
    thinking = [
        {**thought.extra, "type": "thinking", "thinking": thought.text}
        for thought in message.thinking
        if thought.dialect == NAME and thought.text
    ]
    if message.reasoning:
        if same or message.tool_calls:
            fields["tool_plan"] = message.reasoning
        else:
            thinking.append({"type": "thinking", "thinking": message.reasoning})
    if isinstance(message.content, str) and not thinking:
        fields["content"] = message.content
    elif message.content or thinking:
        text = [{"type": "text", "text": message.content}] if isinstance(message.content, str) and message.content else []
        blocks = text if isinstance(message.content, str) else _blocks(message, where, same)
        fields["content"] = [*thinking, *blocks]
    elif not message.tool_calls and "tool_plan" not in fields:
        fields["content"] = ""
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _blocks(message: Message, where: str, same: bool) -> list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_block(part, f"{where}.content[{place}]", same) for place, part in enumerate(content or ())]


def _block(part: Part, where: str, same: bool) -> dict[str, Any]:
    extra = dict(part.extra) if same else {}
    if isinstance(part, TextPart):
        document = extra.pop("document", None)
        if not isinstance(document, dict):
            return {**extra, "type": "text", "text": part.text}
        if document_text(document) != part.text:  # a policy changed what was said
            document = {**document, "data": {"text": part.text}}
        return {**extra, "type": "document", "document": document}
    if not isinstance(part, ImagePart):
        refuse(where, "can not be sent: Cohere takes text and images only")
    url = part.url if part.data is None else f"data:{part.media_type or 'image/png'};base64,{part.data}"
    inner = {**extra.pop("image_url", {}), "url": url}
    if part.detail is not None:
        inner["detail"] = part.detail
    return {**extra, "type": "image_url", "image_url": inner}
