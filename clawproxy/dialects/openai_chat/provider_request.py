"""A `ChatRequest` as a Chat Completions body for a provider.

Rule 1: always written anew from what was authorised; the route names the model.
Rule 2: `extra`, at every level, is sent only if the request came in this dialect. The vocabulary's fields win over it. What
        another dialect brought along is refused or dropped as `translate` says; its signed reasoning is left out.
Rule 3: a stream asks for usage wherever the host understands that: the meter needs it, and the decoder keeps it from clients
        that did not ask.
Rule 4: `user` and `metadata` name the client's people; they go to a provider only where the client itself wrote them in this
        dialect.
Rule 5: what a host wants otherwise (`profiles`) is nearly all a change of the finished body (`adapt`): others pay nothing.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from clawproxy.dialects.profiles import DEFAULT, DROPPED, REFUSED, Profile
from clawproxy.dialects.translate import dropped_notice, leftovers, refuse
from clawproxy.errors import ClawError
from clawproxy.events import Notice
from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, Route, TextPart, Tool

NAME = "openai_chat"
NO_PLACE = "has no place in the OpenAI chat format"
NO_HOST = "is not supported by this provider"
EFFORTS = ((0, None), (2_048, "low"), (8_192, "medium"))
"""Up to how many tokens of reasoning a budget is which effort; beyond all, `high`. The format has no word for "none at all" that
every model knows, so that is left out."""


def encode_body(request: ChatRequest, route: Route, profile: Profile = DEFAULT) -> tuple[bytes, tuple[Notice, ...]]:
    """The body, and what the client should know. Raises ClawError("unsupported_parameter") where the format, or the host, has no
    way to say it."""
    same = request.dialect == NAME
    body: dict[str, Any] = {}
    stream_options: dict[str, Any] = {}
    beside_format: dict[str, Any] = {}
    notices: tuple[Notice, ...] = ()
    newer = False
    if not same:
        notices = leftovers(request, NAME, NO_PLACE)
    elif request.extra:
        body = dict(request.extra)
        newer = body.pop("max_completion_tokens", body) is not body
        stream_options = body.pop("stream_options", None) or {}
        beside_format = body.pop("response_format", None) or {}
    body["model"] = route.model
    body["messages"] = [_message(message, same, number, profile) for number, message in enumerate(request.messages)]
    if request.max_tokens is not None:
        body[_limit_name(profile, same, newer)] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.top_k is not None:
        if not (same or profile.top_k):
            refuse("top_k", NO_HOST)
        body["top_k"] = request.top_k
    if request.frequency_penalty is not None:
        body["frequency_penalty"] = request.frequency_penalty
    if request.presence_penalty is not None:
        body["presence_penalty"] = request.presence_penalty
    if request.seed is not None:
        body["seed"] = request.seed
    if request.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    elif request.reasoning_budget is not None:
        notices += (_effort(body, request.reasoning_budget),)
    if request.stop:
        body["stop"] = request.stop
    if request.tools:
        body["tools"] = [_tool(tool, same) for tool in request.tools]
    if request.tool_choice is not None:
        choice = request.tool_choice
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}} if choice.mode == "tool" else choice.mode
    if request.response_format is not None:
        mode, schema = request.response_format.mode, request.response_format.schema
        body["response_format"] = {**beside_format, "type": mode}
        if mode == "json_schema":
            body["response_format"]["json_schema"] = schema if same else {"name": "answer", **(schema or {})}
    if same and request.user is not None:
        body["user"] = request.user
    if same and request.metadata:
        body["metadata"] = request.metadata
    if request.stream:
        body["stream"] = True
        if profile.usage:
            body["stream_options"] = {**stream_options, "include_usage": True}
    if profile.picky:
        notices += adapt(body, profile)
    return encode(body), notices


def _limit_name(profile: Profile, same: bool, newer: bool) -> str:
    """The name of `max_tokens`: the client's own word where the host takes it."""
    said = "max_completion_tokens" if newer else "max_tokens" if same else ""
    return said if said in profile.max_tokens else profile.max_tokens[0]


def _effort(body: dict[str, Any], budget: int) -> Notice:
    """Say a budget of reasoning as an effort: the nearest there is."""
    effort = next((effort for most, effort in EFFORTS if budget <= most), "high")
    if effort is None:
        return dropped_notice("reasoning_budget")
    body["reasoning_effort"] = effort
    words = f"`reasoning_budget` became `reasoning_effort: {effort}`: this provider's format counts no tokens for it."
    return Notice("parameter_approximated", words, {"param": "reasoning_budget", "reasoning_effort": effort})


def adapt(body: dict[str, Any], profile: Profile) -> tuple[Notice, ...]:
    """Change a chat's `body`, in place, to what the host takes. Raises ClawError("unsupported_parameter")."""
    dropped = adapt_fields(body, profile)
    if not profile.json_schema and body.get("response_format", {}).get("type") == "json_schema":
        refuse("response_format", NO_HOST)
    if not profile.strict:
        for tool in body.get("tools", ()):
            if tool.get("function", {}).pop("strict", None):
                dropped["tools.function.strict"] = None
    if not profile.developer:
        for message in body["messages"]:
            if message["role"] == "developer":
                message["role"] = "system"
    return tuple([dropped_notice(name) for name in dropped])


def adapt_fields(body: dict[str, Any], profile: Profile) -> dict[str, None]:
    """The same for the fields that any body of this format may have; gives the names of those left out."""
    dropped: dict[str, None] = {}
    for name, fate in profile.fields.items():
        value = body.pop(name, None)
        if value is None:
            continue
        if fate == REFUSED:
            if value:  # `false`, 0 and {} ask for nothing
                refuse(name, NO_HOST)
        elif fate == DROPPED:
            dropped[name] = None
        else:
            body[fate] = value
    return dropped


def encode(body: dict[str, Any]) -> bytes:
    try:
        return _encode(body)
    except (OverflowError, UnicodeEncodeError):  # a plugin's doing: jsonio.decode lets neither in
        raise ClawError("invalid_request", "The request holds a value that JSON can not carry.") from None


def _as_dict(value: Any) -> Any:
    """Mappings that are no dicts (`messages.EMPTY`)."""
    return dict(value)


_encode = msgspec.json.Encoder(enc_hook=_as_dict).encode


def _message(message: Message, same: bool, number: int, profile: Profile) -> dict[str, Any]:
    content = message.content
    if (
        type(content) is str
        and message.name is message.tool_call_id is message.reasoning is None
        and not (message.tool_calls or message.extra)
    ):
        return {"role": message.role, "content": content}  # nearly all are no more than this
    extra = dict(message.extra) if same else {}
    raw_calls = extra.pop("tool_calls", None) if message.role == "assistant" else None
    fields: dict[str, Any] = {"role": message.role}
    if isinstance(content, tuple):
        fields["content"] = [_part(part, same, f"messages[{number}].content[{place}]") for place, part in enumerate(content)]
    else:
        fields["content"] = "" if content is None and not (same or message.tool_calls) else content  # reasoning alone
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if profile is DEFAULT:
        if message.reasoning is not None:
            fields["reasoning" if isinstance(extra.get("reasoning"), str) else "reasoning_content"] = message.reasoning
    elif message.role == "assistant":
        if isinstance(extra.get("reasoning"), str):
            del extra["reasoning"]
        if message.reasoning is not None and profile.reasoning is not None:
            fields[profile.reasoning] = message.reasoning
    if message.reasoning is None:
        extra.pop("reasoning_content", None)
    if message.tool_calls:
        raw = {item["id"]: item for item in raw_calls or ()}
        fields["tool_calls"] = [_call(call.id, call.name, call.arguments, raw.get(call.id, {})) for call in message.tool_calls]
    return {**extra, **fields}


def _call(ident: str, name: str, arguments: str, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw`: the call as the client sent it, for what a ToolCall can not hold (signatures, custom tools)."""
    if raw.get("type") == "custom":
        return {**raw, "id": ident, "custom": {**raw["custom"], "name": name, "input": arguments}}
    inner = {**raw.get("function", {}), "name": name, "arguments": arguments}
    return {**raw, "id": ident, "type": "function", "function": inner}


def _part(part: Part, same: bool, where: str) -> dict[str, Any]:
    extra = dict(part.extra) if same else {}
    inner: dict[str, Any]
    if isinstance(part, TextPart):
        if extra.get("type") == "refusal":
            return {**extra, "refusal": part.text}
        return {**extra, "type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        url = part.url if part.data is None else f"data:{part.media_type or 'image/png'};base64,{part.data}"
        inner = {**extra.pop("image_url", {}), "url": url}
        if part.detail is not None:
            inner["detail"] = part.detail
        return {**extra, "type": "image_url", "image_url": inner}
    if isinstance(part, AudioPart):
        inner = {**extra.pop("input_audio", {}), "data": part.data, "format": part.format}
        return {**extra, "type": "input_audio", "input_audio": inner}
    if isinstance(part, FilePart):
        if part.data is None and part.file_id is None:
            words = f"`{where}`: this format takes files as data or by id, not by URL."
            raise ClawError("unsupported_parameter", words, param=where)
        inner = dict(extra.pop("file", {}))
        if part.data is not None:
            inner["file_data"] = part.data if part.media_type is None else f"data:{part.media_type};base64,{part.data}"
        for name, value in (("file_id", part.file_id), ("filename", part.filename)):
            if value is not None:
                inner[name] = value
        return {**extra, "type": "file", "file": inner}
    assert_never(part)


def _tool(tool: Tool, same: bool) -> dict[str, Any]:
    extra = dict(tool.extra) if same else {}
    kind = "custom" if extra.get("type") == "custom" else "function"
    said = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    inner = {**extra.pop(kind, {}), "name": tool.name} | {name: value for name, value in said.items() if value is not None}
    return {**extra, "type": kind, kind: inner}
