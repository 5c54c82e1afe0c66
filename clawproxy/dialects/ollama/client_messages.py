"""The messages of an Ollama request, from JSON to the vocabulary.

Rule 1: Ollama's tool calls have no ids but in newer releases. Where one is missing it is `call_N`, the Nth call of the
        conversation, so that the same conversation gives the same ids each time it is sent.
Rule 2: a tool's result belongs to the call it names by `tool_call_id`; else to the first unanswered call of its `tool_name`
        in the turn before it; else, without a name, to the first unanswered one.
Rule 3: images are bare base64. Their type is read from their first bytes, since other formats must be told.
"""

from __future__ import annotations

import re
from typing import Any, cast

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.messages import EMPTY, ImagePart, Message, Part, Role, TextPart, ToolCall

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE = frozenset({"role", "content", "images", "tool_calls", "tool_call_id", "tool_name", "thinking"})
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,64}={0,2}\s?")
_MEDIA = (("/9j/", "image/jpeg"), ("iVBOR", "image/png"), ("R0lGOD", "image/gif"), ("UklGR", "image/webp"))


def messages(value: Any, longest: int) -> tuple[Message, ...]:
    items = check.array(value, "messages", longest=longest)
    if not items:
        check.refuse("messages", "hold at least one message")
    reader = _Reader()
    return tuple([reader.message(item, f"messages[{number}]") for number, item in enumerate(items)])


def images(value: Any, where: str) -> tuple[Part, ...]:
    """`images`: a list of base64 texts; none where it is absent."""
    if value is None:
        return ()
    return tuple([_image(item, f"{where}[{number}]") for number, item in enumerate(check.array(value, where, longest=1024))])


def _image(value: Any, where: str) -> ImagePart:
    data = check.text(value, where)
    if _BASE64.match(data[:66]) is None or ":" in data[:66]:
        check.refuse(where, "be an image in base64, without a `data:` prefix")
    return ImagePart(data=data, media_type=next((kind for begins, kind in _MEDIA if data.startswith(begins)), "image/png"))


class _Reader:
    """Goes through a conversation and remembers which calls still wait for their results."""

    def __init__(self) -> None:
        self.calls = 0
        self.waiting: list[ToolCall] = []

    def message(self, value: Any, where: str) -> Message:
        fields = check.mapping(value, where)
        role = check.need(fields, "role", where)
        if role not in ROLES:
            check.refuse(f"{where}.role", f"be one of {', '.join(ROLES)}")
        text = "" if fields.get("content") is None else check.text(fields["content"], f"{where}.content")
        pictures = images(fields.get("images"), f"{where}.images")
        content: str | tuple[Part, ...] | None = text
        if pictures:
            content = (TextPart(text), *pictures) if text else pictures
        extra = check.beyond(fields, _MESSAGE)
        calls: tuple[ToolCall, ...] = ()
        reasoning = call_id = name = None
        if role == "assistant":
            calls = self._calls(fields.get("tool_calls"), f"{where}.tool_calls")
            if calls and not text:
                content = pictures or None
            if fields.get("thinking"):
                reasoning = check.text(fields["thinking"], f"{where}.thinking")
        elif role == "tool":
            call_id, name = self._result(fields, where)
        return Message(cast(Role, role), content, calls, call_id, name, reasoning, extra or EMPTY)

    def _calls(self, value: Any, where: str) -> tuple[ToolCall, ...]:
        if value is None:
            return ()
        made = [self._call(item, f"{where}[{number}]") for number, item in enumerate(check.array(value, where))]
        if made:
            self.waiting = list(made)
        return tuple(made)

    def _call(self, value: Any, where: str) -> ToolCall:
        fields = check.mapping(value, where)
        inner = check.mapping(check.need(fields, "function", where), f"{where}.function")
        name = check.token(check.need(inner, "name", f"{where}.function"), f"{where}.function.name", longest=256)
        arguments = inner.get("arguments")
        said = {} if arguments is None else check.mapping(arguments, f"{where}.function.arguments")
        ident = check.token(fields["id"], f"{where}.id", longest=512) if fields.get("id") else f"call_{self.calls}"
        self.calls += 1
        return ToolCall(ident, name, jsonio.encode(said).decode())

    def _result(self, fields: dict[str, Any], where: str) -> tuple[str, str | None]:
        """The id of the call it answers, and the tool's name."""
        name = check.token(fields["tool_name"], f"{where}.tool_name", longest=256) if fields.get("tool_name") else None
        if fields.get("tool_call_id"):
            ident = check.token(fields["tool_call_id"], f"{where}.tool_call_id", longest=512)
            call = next((call for call in self.waiting if call.id == ident), None)
        else:
            call = next((call for call in self.waiting if name is None or call.name == name), None)
            ident = call.id if call is not None else f"call_{self.calls}"
        if call is not None:
            self.waiting.remove(call)
            name = name or call.name
        else:
            self.calls += 1
        return ident, name
