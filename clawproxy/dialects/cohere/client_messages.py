"""The messages of a Cohere request, from JSON to the vocabulary.

Rule 1: every text a model would read becomes a text of the vocabulary, so that policies see it: documents in a tool's result too.
Rule 2: a plan (`tool_plan`) is the message's reasoning; blocks of thinking are `Thinking`, and go back only to Cohere.
Rule 3: URLs are passed on, never fetched; only `http:`, `https:` and `data:` ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_messages import _split_data_url
from clawproxy.messages import EMPTY, ImagePart, Message, Part, Role, TextPart, Thinking, ToolCall

NAME = "cohere"
ROLES = ("system", "user", "assistant", "tool")
_MESSAGE = frozenset({"role", "content", "tool_calls", "tool_call_id", "tool_plan"})


def messages(value: Any, longest: int) -> tuple[Message, ...]:
    items = check.array(value, "messages", longest=longest)
    if not items:
        check.refuse("messages", "hold at least one message")
    return tuple([_message(item, f"messages[{number}]") for number, item in enumerate(items)])


def _message(value: Any, where: str) -> Message:
    fields = check.mapping(value, where)
    role = check.need(fields, "role", where)
    if role not in ROLES:
        check.refuse(f"{where}.role", f"be one of {', '.join(ROLES)}")
    extra = check.beyond(fields, _MESSAGE)
    calls: tuple[ToolCall, ...] = ()
    reasoning = call_id = None
    if role == "assistant":
        if fields.get("tool_calls") is not None:
            listed = check.array(fields["tool_calls"], f"{where}.tool_calls")
            calls = tuple([_call(item, f"{where}.tool_calls[{number}]") for number, item in enumerate(listed)])
        if fields.get("tool_plan") is not None:
            reasoning = check.text(fields["tool_plan"], f"{where}.tool_plan")
    elif role == "tool":
        call_id = check.token(check.need(fields, "tool_call_id", where), f"{where}.tool_call_id", longest=512)
    content, thinking = _content(fields, where, role, may_lack=bool(calls or reasoning))
    return Message(cast(Role, role), content, calls, call_id, reasoning=reasoning, extra=extra or EMPTY, thinking=thinking)


def _content(
    fields: dict[str, Any], where: str, role: str, *, may_lack: bool
) -> tuple[str | tuple[Part, ...] | None, tuple[Thinking, ...]]:
    content = fields.get("content")
    if isinstance(content, str):
        return content, ()
    if content is None and may_lack:
        return None, ()
    if not isinstance(content, list):
        check.refuse(f"{where}.content", "be a string or an array of blocks")
    parts: list[Part] = []
    thinking: list[Thinking] = []
    for number, item in enumerate(content):
        place = f"{where}.content[{number}]"
        block = check.mapping(item, place)
        kind = check.need(block, "type", place)
        if kind == "thinking" and role == "assistant":
            said = check.text(check.need(block, "thinking", place), f"{place}.thinking")
            thinking.append(Thinking(said, dialect=NAME, extra=check.beyond(block, frozenset({"type", "thinking"})) or EMPTY))
        elif kind == "document" and role == "tool":
            parts.append(_document(block, place))
        else:
            parts.append(part(block, place))
    if not parts and not (thinking or may_lack):
        check.refuse(f"{where}.content", "hold at least one block")
    return tuple(parts) or None, tuple(thinking)


def part(block: dict[str, Any], where: str) -> Part:
    """A block of text or an image."""
    kind = check.need(block, "type", where)
    if kind == "text":
        said = check.text(check.need(block, "text", where), f"{where}.text")
        return TextPart(said, check.beyond(block, frozenset({"type", "text"})) or EMPTY)
    if kind != "image_url":
        check.refuse(f"{where}.type", "be one of text, image_url, thinking (of an assistant), document (of a tool)")
    within = f"{where}.image_url"
    inner = check.mapping(check.need(block, "image_url", where), within)
    detail = None if inner.get("detail") is None else check.token(inner["detail"], f"{within}.detail", longest=32)
    extra = check.beyond(block, frozenset({"type", "image_url"}))
    left = check.beyond(inner, frozenset({"url", "detail"}))
    if left:
        extra["image_url"] = left
    return image(check.need(inner, "url", within), f"{within}.url", detail, extra)


def image(url: Any, where: str, detail: str | None = None, extra: Mapping[str, Any] = EMPTY) -> ImagePart:
    """An image by its URL, which may hold it."""
    media_type, inline = _split_data_url(check.text(url, where))
    if media_type is not None:
        return ImagePart(data=inline, media_type=media_type, detail=detail, extra=extra or EMPTY)
    if not inline.lower().startswith(("http://", "https://", "data:")):
        check.refuse(where, "be an http:, https: or data: URL")
    return ImagePart(url=inline, detail=detail, extra=extra or EMPTY)


def _document(block: dict[str, Any], where: str) -> TextPart:
    inner = check.mapping(check.need(block, "document", where), f"{where}.document")
    return TextPart(document_text(inner), {"document": inner, **check.beyond(block, frozenset({"type", "document"}))})


def document_text(document: Mapping[str, Any]) -> str:
    """What a document says, as one text."""
    data = document.get("data")
    return data if isinstance(data, str) else jsonio.encode({} if data is None else data).decode()


def _call(value: Any, where: str) -> ToolCall:
    fields = check.mapping(value, where)
    ident = check.token(check.need(fields, "id", where), f"{where}.id", longest=512)
    if fields.get("type", "function") != "function":
        check.refuse(f"{where}.type", "be function")
    within = f"{where}.function"
    inner = check.mapping(check.need(fields, "function", where), within)
    name = check.token(check.need(inner, "name", within), f"{within}.name", longest=256)
    return ToolCall(ident, name, check.text(inner.get("arguments") or "", f"{within}.arguments"))
