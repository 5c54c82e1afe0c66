"""The system prompt and the messages of a Messages request, from JSON to the vocabulary.

Rule 1: every text a model would read becomes a text of the vocabulary, or stays in an `extra`: both are what policies see.
Rule 2: a user's turn becomes a message for each tool result and one for the rest; `provider_messages` joins them again.
Rule 3: the vocabulary has thinking first, then parts, then tool calls. Where a message of the client's stands otherwise, or holds
        what there is no word for, `extra` says so, and the very order goes out again to a provider of this dialect:
            `ORDER`       one entry a block: {"thinking": 0}, {"part": 0}, {"call": 0, "extra": {...}} or {"block": "content[3]"}
            `content[3]`  the block itself, as it came: so refusals across dialects name it
Rule 4: thinking without a signature was made by a gateway from another vendor's reasoning: it is `reasoning`, plain text.
Rule 5: URLs are passed on, never fetched; only `http:` and `https:` ones.
"""

from __future__ import annotations

from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.anthropic.words import NAME
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.translate import ORDER
from clawproxy.messages import EMPTY, FilePart, ImagePart, Message, Part, TextPart, Thinking, ToolCall

_TEXT = frozenset({"type", "text"})
_CALL = frozenset({"type", "id", "name", "input"})
_RESULT = frozenset({"type", "tool_use_id", "content", "is_error"})
_THOUGHT = frozenset({"type", "thinking", "signature"})
_REDACTED = frozenset({"type", "data"})
_DOCUMENT = frozenset({"type", "source", "title"})
_MESSAGE = frozenset({"role", "content"})


def system(value: Any) -> tuple[Message, ...]:
    if value is None:
        return ()
    return (Message("system", _texts(value, "system")),)


def messages(value: Any, longest: int, *, documents: bool) -> list[Message]:
    """`documents`: whether an assistant's message may hold one."""
    items = check.array(value, "messages", longest=longest)
    if not items:
        check.refuse("messages", "hold at least one message")
    made: list[Message] = []
    for number, item in enumerate(items):
        _message(item, f"messages[{number}]", documents, made)
    return made


def _message(value: Any, where: str, documents: bool, made: list[Message]) -> None:
    fields = check.mapping(value, where)
    role, content = check.need(fields, "role", where), check.need(fields, "content", where)
    if role not in ("user", "assistant", "system"):
        check.refuse(f"{where}.role", "be user, assistant or system")
    extra = check.beyond(fields, _MESSAGE)
    if role == "system":
        made.append(Message("system", _texts(content, f"{where}.content"), extra=extra or EMPTY))
    elif isinstance(content, str):
        made.append(Message(role, content, extra=extra or EMPTY))
    else:
        reader = _Blocks(role, extra, documents)
        for number, block in enumerate(check.array(content, f"{where}.content")):
            fields = check.mapping(block, f"{where}.content[{number}]")
            if role == "user" and fields.get("type") == "tool_result":
                made += reader.taken()
                made.append(_tool_result(fields, f"{where}.content[{number}]"))
            else:
                reader.add(fields, where, number)
        made += reader.taken()
        if not content:
            if role == "user":
                check.refuse(f"{where}.content", "hold at least one block")
            made.append(Message("assistant", "", extra=extra or EMPTY))


def _texts(value: Any, where: str) -> str | tuple[Part, ...]:
    """A string, or blocks of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        check.refuse(where, "be a string or an array of text blocks")
    parts: list[Part] = []
    for number, block in enumerate(value):
        fields = check.mapping(block, f"{where}[{number}]")
        if check.need(fields, "type", f"{where}[{number}]") != "text":
            check.refuse(f"{where}[{number}].type", "be text")
        parts.append(_text(fields, f"{where}[{number}]"))
    return _simple(parts)


def _simple(parts: list[Part]) -> str | tuple[Part, ...]:
    """One plain text is the same as its string."""
    if len(parts) == 1 and type(parts[0]) is TextPart and not parts[0].extra:
        return parts[0].text
    return tuple(parts)


class _Blocks:
    """Gathers blocks into one message."""

    def __init__(self, role: Any, extra: dict[str, Any], documents: bool) -> None:
        self.role = role
        self.documents = documents or role == "user"
        self.extra = extra
        self._clear()

    def _clear(self) -> None:
        self.parts: list[Part] = []
        self.calls: list[ToolCall] = []
        self.thinking: list[Thinking] = []
        self.reasoning: list[str] = []
        self.order: list[dict[str, Any]] = []
        self.raw: dict[str, Any] = {}
        self.ranks: list[int] = []

    def add(self, fields: dict[str, Any], where: str, number: int) -> None:
        at = f"{where}.content[{number}]"
        kind = check.token(check.need(fields, "type", at), f"{at}.type")
        if kind == "tool_use" and self.role == "assistant":
            self._call(fields, at)
        elif kind in ("thinking", "redacted_thinking") and self.role == "assistant":
            self._thought(fields, kind, at)
        elif (part := _part(fields, kind, at)) is not None:
            if kind == "document" and not self.documents:
                check.refuse(f"{at}.type", "not be document in a message of the assistant")
            self._place(1, {"part": len(self.parts)})
            self.parts.append(part)
        else:
            self.raw[f"content[{number}]"] = fields
            self._place(1, {"block": f"content[{number}]"})

    def _place(self, rank: int, entry: dict[str, Any]) -> None:
        self.ranks.append(rank)
        self.order.append(entry)

    def _call(self, fields: dict[str, Any], at: str) -> None:
        ident = check.token(check.need(fields, "id", at), f"{at}.id", longest=512)
        name = check.token(check.need(fields, "name", at), f"{at}.name", longest=256)
        arguments = jsonio.encode(check.mapping(check.need(fields, "input", at), f"{at}.input")).decode()
        entry: dict[str, Any] = {"call": len(self.calls)}
        if rest := check.beyond(fields, _CALL):
            entry["extra"] = rest
        self._place(2, entry)
        self.calls.append(ToolCall(ident, name, arguments))

    def _thought(self, fields: dict[str, Any], kind: str, at: str) -> None:
        if kind == "redacted_thinking":
            data = check.text(check.need(fields, "data", at), f"{at}.data")
            made = Thinking("", None, data, dialect=NAME, extra=check.beyond(fields, _REDACTED) or EMPTY)
        else:
            text = check.text(check.need(fields, "thinking", at), f"{at}.thinking")
            signature = fields.get("signature")
            if not signature:
                self.reasoning.append(text)
                return
            signature = check.text(signature, f"{at}.signature")
            made = Thinking(text, signature, dialect=NAME, extra=check.beyond(fields, _THOUGHT) or EMPTY)
        self._place(0, {"thinking": len(self.thinking)})
        self.thinking.append(made)

    def taken(self) -> list[Message]:
        """The message, where there is any of it; then the next one begins."""
        if not (self.order or self.reasoning):
            return []
        extra = {**self.extra, **self.raw}
        if self.raw or self.ranks != sorted(self.ranks) or any("extra" in entry for entry in self.order):
            extra[ORDER] = self.order
        content = _simple(self.parts) if self.parts else None
        if content is None and not (self.calls or self.raw):
            content = ""  # only thinking
        message = Message(
            self.role,
            content,
            tuple(self.calls),
            reasoning="\n".join(self.reasoning) if self.reasoning else None,
            extra=extra or EMPTY,
            thinking=tuple(self.thinking),
        )
        self._clear()
        return [message]


def _tool_result(fields: dict[str, Any], at: str) -> Message:
    ident = check.token(check.need(fields, "tool_use_id", at), f"{at}.tool_use_id", longest=512)
    failed = fields.get("is_error")
    said = fields.get("content")
    extra = check.beyond(fields, _RESULT)
    content: str | tuple[Part, ...] | None = ""
    if isinstance(said, str):
        content = said
    elif said is not None:
        reader = _Blocks("user", extra, True)
        for number, block in enumerate(check.array(said, f"{at}.content")):
            reader.add(check.mapping(block, f"{at}.content[{number}]"), at, number)
        for inner in reader.taken():
            content, extra = inner.content, dict(inner.extra)
    return Message(
        "tool",
        "" if content is None else content,
        tool_call_id=ident,
        extra=extra or EMPTY,
        is_error=None if failed is None else check.flag(failed, f"{at}.is_error"),
    )


# --- parts -----------------------------------------------------------------------------------------------------------------


def _text(fields: dict[str, Any], at: str) -> TextPart:
    return TextPart(check.text(check.need(fields, "text", at), f"{at}.text"), check.beyond(fields, _TEXT) or EMPTY)


def _part(fields: dict[str, Any], kind: str, at: str) -> Part | None:
    """None for what the vocabulary has no word for. A source it has no word for stays in `extra`, its text with it."""
    if kind == "text":
        return _text(fields, at)
    if kind not in ("image", "document"):
        return None
    source = check.mapping(check.need(fields, "source", at), f"{at}.source")
    sort = check.need(source, "type", f"{at}.source")
    if kind == "image":
        extra: dict[str, Any] = check.beyond(fields, frozenset({"type", "source"}))
        if sort == "base64":
            data, media_type = _inline(source, at)
            return ImagePart(data=data, media_type=media_type, extra=extra or EMPTY)
        if sort == "url":
            return ImagePart(url=_url(source, at), extra=extra or EMPTY)
        return ImagePart(extra={**extra, "source": source})
    extra = check.beyond(fields, _DOCUMENT)
    title = fields.get("title")
    title = None if title is None else check.text(title, f"{at}.title", longest=4096)
    if sort == "base64":
        data, media_type = _inline(source, at)
        return FilePart(data=data, media_type=media_type, filename=title, extra=extra or EMPTY)
    if sort == "url":
        return FilePart(url=_url(source, at), filename=title, extra=extra or EMPTY)
    if sort == "file":
        file_id = check.token(check.need(source, "file_id", f"{at}.source"), f"{at}.source.file_id", longest=512)
        return FilePart(file_id=file_id, filename=title, extra=extra or EMPTY)
    return FilePart(filename=title, extra={**extra, "source": source})


def _inline(source: dict[str, Any], at: str) -> tuple[str, str]:
    data = check.text(check.need(source, "data", f"{at}.source"), f"{at}.source.data")
    return data, check.token(check.need(source, "media_type", f"{at}.source"), f"{at}.source.media_type")


def _url(source: dict[str, Any], at: str) -> str:
    url = check.text(check.need(source, "url", f"{at}.source"), f"{at}.source.url")
    if not url.lower().startswith(("http://", "https://")):
        check.refuse(f"{at}.source.url", "be an http: or https: URL")
    return url
