"""The messages of a Chat Completions request, from JSON to the vocabulary.

Rule 1: every text a model would read becomes a text of the vocabulary, so that policies see it.
Rule 2: what the vocabulary has no field for goes to the nearest `extra`, and `provider_request` puts it back.
Rule 3: URLs are passed on, never fetched; only `http:`, `https:` and `data:` ones, since some providers would open others.
"""

from __future__ import annotations

import re
from typing import Any, cast

from clawproxy.dialects.openai_chat import check
from clawproxy.messages import EMPTY, AudioPart, FilePart, ImagePart, Message, Part, Role, TextPart, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")

_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_MESSAGE = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})
_CALL = frozenset({"id", "type", "function"})
_FUNCTION = frozenset({"name", "arguments"})


def messages(value: Any, longest: int) -> tuple[Message, ...]:
    items = check.array(value, "messages", longest=longest)
    if not items:
        check.refuse("messages", "hold at least one message")
    return tuple([message(item, f"messages[{number}]") for number, item in enumerate(items)])


def message(value: Any, where: str) -> Message:
    fields = check.mapping(value, where)
    role = check.need(fields, "role", where)
    if role not in ROLES:
        check.refuse(f"{where}.role", f"be one of {', '.join(ROLES)}")
    extra = check.beyond(fields, _MESSAGE)
    calls: tuple[ToolCall, ...] = ()
    reasoning = None
    if role == "assistant":
        if fields.get("tool_calls") is not None:
            listed = check.array(fields["tool_calls"], f"{where}.tool_calls")
            calls = tuple([_call(item, f"{where}.tool_calls[{number}]") for number, item in enumerate(listed)])
            if any(not _plain(item) for item in listed):
                extra["tool_calls"] = listed  # provider_request takes from it what a ToolCall can not hold
        if fields.get("reasoning_content") is not None:
            reasoning = check.text(fields["reasoning_content"], f"{where}.reasoning_content")
        elif isinstance(fields.get("reasoning"), str):
            reasoning = fields["reasoning"]  # stays in `extra` too: the name this client uses for it
    else:
        for odd in ("tool_calls", "reasoning_content"):
            if fields.get(odd) is not None:
                extra[odd] = fields[odd]
    call_id = None
    if role == "tool":
        call_id = check.token(check.need(fields, "tool_call_id", where), f"{where}.tool_call_id", longest=512)
    elif fields.get("tool_call_id") is not None:
        extra["tool_call_id"] = fields["tool_call_id"]
    name = fields.get("name")
    return Message(
        role=cast(Role, role),
        content=_content(fields, where, bool(calls or extra or reasoning)),
        tool_calls=calls,
        tool_call_id=call_id,
        name=None if name is None else check.token(name, f"{where}.name", longest=256),
        reasoning=reasoning,
        extra=extra or EMPTY,
    )


def _content(fields: dict[str, Any], where: str, may_lack: bool) -> str | tuple[Part, ...] | None:
    content = fields.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        if not content:
            check.refuse(f"{where}.content", "hold at least one part")
        return tuple([_part(item, f"{where}.content[{number}]") for number, item in enumerate(content)])
    # An assistant message may be only tool calls, a refusal, audio or a function call.
    if content is None and fields["role"] == "assistant" and may_lack:
        return None
    check.refuse(f"{where}.content", "be a string or an array of parts")


def _part(value: Any, where: str) -> Part:
    fields = check.mapping(value, where)
    kind = check.need(fields, "type", where)
    if kind == "text":
        return TextPart(check.text(check.need(fields, "text", where), f"{where}.text"), _left(fields, "text"))
    if kind == "refusal":
        said = check.text(check.need(fields, "refusal", where), f"{where}.refusal")
        return TextPart(said, {"type": "refusal", **check.beyond(fields, frozenset({"type", "refusal"}))})
    if kind not in ("image_url", "input_audio", "file"):
        check.refuse(f"{where}.type", "be one of text, image_url, input_audio, file")
    inner = check.mapping(check.need(fields, kind, where), f"{where}.{kind}")
    within = f"{where}.{kind}"
    if kind == "image_url":
        url = check.text(check.need(inner, "url", within), f"{within}.url")
        detail = None if inner.get("detail") is None else check.token(inner["detail"], f"{within}.detail", longest=32)
        extra = _left(fields, kind, check.beyond(inner, frozenset({"url", "detail"})))
        media_type, inline = _split_data_url(url)
        if media_type is not None:
            return ImagePart(data=inline, media_type=media_type, detail=detail, extra=extra)
        if not url.lower().startswith(("http://", "https://", "data:")):
            check.refuse(f"{within}.url", "be an http:, https: or data: URL")
        return ImagePart(url=url, detail=detail, extra=extra)
    if kind == "input_audio":
        sound = check.text(check.need(inner, "data", within), f"{within}.data")
        sort = check.token(check.need(inner, "format", within), f"{within}.format", longest=32)
        return AudioPart(sound, sort, _left(fields, kind, check.beyond(inner, frozenset({"data", "format"}))))
    return _file(fields, inner, within)


def _file(fields: dict[str, Any], inner: dict[str, Any], within: str) -> FilePart:
    media_type: str | None = None
    data: str | None = None
    if inner.get("file_data") is not None:
        media_type, data = _split_data_url(check.text(inner["file_data"], f"{within}.file_data"))
    file_id = inner.get("file_id")
    if data is None and file_id is None:
        check.refuse(within, "hold file_data or file_id")
    filename = inner.get("filename")
    return FilePart(
        data=data,
        file_id=None if file_id is None else check.token(file_id, f"{within}.file_id", longest=512),
        filename=None if filename is None else check.token(filename, f"{within}.filename", longest=512),
        media_type=media_type,
        extra=_left(fields, "file", check.beyond(inner, frozenset({"file_data", "file_id", "filename"}))),
    )


def _left(fields: dict[str, Any], kind: str, inner: dict[str, Any] | None = None) -> Any:
    """What a part holds beyond its type and content; what its inner object does stands under `kind`."""
    extra = check.beyond(fields, frozenset({"type", kind}))
    if inner:
        extra[kind] = inner
    return extra or EMPTY


def _split_data_url(url: str) -> tuple[str | None, str]:
    """`(media type, base64)` of a data URL; `(None, url)` where it is none, or not in base64."""
    match = _DATA_URL.match(url)
    return (match[1], url[match.end() :]) if match else (None, url)


def _call(value: Any, where: str) -> ToolCall:
    fields = check.mapping(value, where)
    ident = check.token(check.need(fields, "id", where), f"{where}.id", longest=512)
    kind, words = ("custom", "input") if fields.get("type") == "custom" else ("function", "arguments")
    if fields.get("type", "function") not in ("function", "custom"):
        check.refuse(f"{where}.type", "be function or custom")
    within = f"{where}.{kind}"
    inner = check.mapping(check.need(fields, kind, where), within)
    name = check.token(check.need(inner, "name", within), f"{within}.name", longest=256)
    return ToolCall(ident, name, check.text(check.need(inner, words, within), f"{within}.{words}"))


def _plain(call: dict[str, Any]) -> bool:
    """Whether a ToolCall holds all of it."""
    return call.get("type", "function") == "function" and call.keys() <= _CALL and call["function"].keys() <= _FUNCTION
