"""Input items of a Responses request, from JSON to messages.

Rule 1: what one turn of a model said (reasoning, a message, calls, in this order) is one message of the vocabulary, as other
        formats have it. An item that would come before one that is there already begins the next message, so that nothing
        changes its place.
Rule 2: every text a model would read becomes a text of the vocabulary, so that policies see it: also those inside items that
        the vocabulary has no word for (`opaque`). Those mean something to Responses providers alone.
Rule 3: what an item holds beyond the vocabulary goes to `extra` and comes out again in the same format only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from attrs import define, field

from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_responses.tools import NAME, joined, wrapped
from clawproxy.messages import EMPTY, AudioPart, FilePart, ImagePart, Message, Part, Role, TextPart, Thinking, ToolCall

OWN_REASONING = "rs_claw"
"""How the ids of reasoning items begin that the gateway made: no provider knows them."""
ROLES = ("system", "developer", "user", "assistant")

_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_MESSAGE = frozenset({"type", "role", "content"})
_CALL = frozenset({"type", "call_id", "name", "arguments"})
_OUTPUT = frozenset({"type", "call_id", "output"})
_REASONING = frozenset({"type", "id", "encrypted_content"})
_NO_TEXT = frozenset(
    {"type", "id", "call_id", "role", "status", "encrypted_content", "image_url", "file_id", "file_data", "result"}
)
"""Fields whose strings are no text for a model."""


@define
class _Turn:
    """What a model said in one go, as far as it is read."""

    thinking: list[Thinking] = field(factory=list)
    content: str | tuple[Part, ...] | None = None
    extra: dict[str, Any] = field(factory=dict)
    calls: list[ToolCall] = field(factory=list)
    raw: list[dict[str, Any]] = field(factory=list)
    """The calls as they came, for what a ToolCall can not hold."""
    said: bool = False

    def message(self) -> Message:
        if any(not item.keys() <= _CALL or item["type"] != "function_call" for item in self.raw):
            self.extra["tool_calls"] = self.raw
        plain = [thought.text for thought in self.thinking if thought.data is None and thought.text]
        return Message(
            "assistant",
            self.content,
            tuple(self.calls),
            reasoning="\n\n".join(plain) or None,
            extra=self.extra or EMPTY,
            thinking=tuple(self.thinking),
        )


def messages(value: Any, longest: int) -> list[Message]:
    """`value`: `input`, a string or an array of items."""
    if isinstance(value, str):
        return [Message("user", value)]
    read: list[Message] = []
    turn: _Turn | None = None
    for number, item in enumerate(check.array(value, "input", longest=longest)):
        where = f"input[{number}]"
        fields = check.mapping(item, where)
        kind = fields.get("type")
        if kind is None:
            kind = "message" if "role" in fields else "item_reference"
        kind = check.token(kind, f"{where}.type")
        role = fields.get("role")
        if kind not in ("reasoning", "function_call", "custom_tool_call") and not (kind == "message" and role == "assistant"):
            if turn is not None:
                read.append(turn.message())
                turn = None
            read.append(_other(kind, fields, where))
            continue
        if turn is not None and (turn.said or turn.calls) and kind in ("reasoning", "message"):
            read.append(turn.message())
            turn = None
        turn = turn or _Turn()
        if kind == "reasoning":
            turn.thinking.append(_thinking(fields, where))
        elif kind == "message":
            turn.said = True
            turn.content = _content(check.need(fields, "content", where), f"{where}.content")
            turn.extra.update(check.beyond(fields, _MESSAGE))
        else:
            turn.calls.append(_call(fields, where))
            turn.raw.append(fields)
    if turn is not None:
        read.append(turn.message())
    return read


def _other(kind: str, fields: dict[str, Any], where: str) -> Message:
    if kind == "message":
        role = check.need(fields, "role", where)
        if role not in ROLES:
            check.refuse(f"{where}.role", f"be one of {', '.join(ROLES)}")
        content = _content(check.need(fields, "content", where), f"{where}.content")
        return Message(cast(Role, role), content, extra=check.beyond(fields, _MESSAGE) or EMPTY)
    if kind in ("function_call_output", "custom_tool_call_output"):
        extra = check.beyond(fields, _OUTPUT)
        if kind != "function_call_output":
            extra["type"] = kind
        call_id = check.token(check.need(fields, "call_id", where), f"{where}.call_id", longest=512)
        content = _content(check.need(fields, "output", where), f"{where}.output")
        return Message("tool", content, tool_call_id=call_id, extra=extra or EMPTY)
    return _opaque(kind, fields)


def _thinking(fields: dict[str, Any], where: str) -> Thinking:
    ident, data = fields.get("id"), fields.get("encrypted_content")
    texts = []
    for name in ("summary", "content"):
        for place, part in enumerate(check.array(fields.get(name) or [], f"{where}.{name}")):
            inside = f"{where}.{name}[{place}]"
            texts.append(check.text(check.need(check.mapping(part, inside), "text", inside), f"{inside}.text"))
    return Thinking(
        "\n\n".join(texts),
        data=None if data is None else check.text(data, f"{where}.encrypted_content"),
        id=None if ident is None else check.token(ident, f"{where}.id", longest=512),
        dialect=NAME,
        extra=check.beyond(fields, _REASONING) or EMPTY,
    )


def _call(fields: dict[str, Any], where: str) -> ToolCall:
    ident = check.token(check.need(fields, "call_id", where), f"{where}.call_id", longest=512)
    name = check.token(check.need(fields, "name", where), f"{where}.name", longest=256)
    space = fields.get("namespace")
    if space is not None:
        name = joined(check.token(space, f"{where}.namespace", longest=256), name)
    if fields["type"] == "custom_tool_call":
        return ToolCall(ident, name, wrapped(check.text(check.need(fields, "input", where), f"{where}.input")))
    return ToolCall(ident, name, check.text(check.need(fields, "arguments", where), f"{where}.arguments"))


# --- content ---------------------------------------------------------------------------------------------------------------


def _content(value: Any, where: str) -> str | tuple[Part, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        check.refuse(where, "be a string or an array of parts")
    return tuple([_part(item, f"{where}[{place}]") for place, item in enumerate(value)])


def _part(value: Any, where: str) -> Part:
    fields = check.mapping(value, where)
    kind = check.need(fields, "type", where)
    if kind in ("input_text", "output_text", "text"):
        return TextPart(check.text(check.need(fields, "text", where), f"{where}.text"), _left(fields, "text"))
    if kind == "refusal":
        said = check.text(check.need(fields, "refusal", where), f"{where}.refusal")
        return TextPart(said, {"type": "refusal", **_left(fields, "refusal")})
    if kind == "input_image":
        return _image(fields, where)
    if kind == "input_file":
        return _file(fields, where)
    if kind == "input_audio":
        within = f"{where}.input_audio"
        inner = check.mapping(check.need(fields, "input_audio", where), within)
        sound = check.text(check.need(inner, "data", within), f"{within}.data")
        sort = check.token(check.need(inner, "format", within), f"{within}.format", longest=32)
        return AudioPart(sound, sort, _left(fields, "input_audio"))
    check.refuse(f"{where}.type", "be one of input_text, output_text, refusal, input_image, input_file, input_audio")


def _left(fields: dict[str, Any], *known: str) -> Mapping[str, Any]:
    return check.beyond(fields, frozenset({"type", *known})) or EMPTY


def _image(fields: dict[str, Any], where: str) -> ImagePart:
    detail = None if fields.get("detail") is None else check.token(fields["detail"], f"{where}.detail", longest=32)
    extra = _left(fields, "image_url", "detail")  # keeps `file_id`, which the vocabulary has no field for
    if fields.get("image_url") is None:
        check.token(check.need(fields, "file_id", where), f"{where}.file_id", longest=512)
        return ImagePart(detail=detail, extra=extra)
    url = check.text(fields["image_url"], f"{where}.image_url")
    match = _DATA_URL.match(url)
    if match:
        return ImagePart(data=url[match.end() :], media_type=match[1], detail=detail, extra=extra)
    _web(url, f"{where}.image_url")
    return ImagePart(url=url, detail=detail, extra=extra)


def _web(url: str, where: str) -> str:
    if not url.lower().startswith(("http://", "https://", "data:")):
        check.refuse(where, "be an http:, https: or data: URL")
    return url


def _file(fields: dict[str, Any], where: str) -> FilePart:
    media_type = data = None
    if fields.get("file_data") is not None:
        data = check.text(fields["file_data"], f"{where}.file_data")
        match = _DATA_URL.match(data)
        if match:
            media_type, data = match[1], data[match.end() :]
    ident, url, filename = (fields.get(name) for name in ("file_id", "file_url", "filename"))
    if data is None and ident is None and url is None:
        check.refuse(where, "hold file_data, file_id or file_url")
    return FilePart(
        data,
        None if ident is None else check.token(ident, f"{where}.file_id", longest=512),
        None if url is None else _web(check.text(url, f"{where}.file_url"), f"{where}.file_url"),
        None if filename is None else check.token(filename, f"{where}.filename", longest=512),
        media_type,
        _left(fields, "file_data", "file_id", "file_url", "filename"),
    )


# --- items without a word --------------------------------------------------------------------------------------------------


def _opaque(kind: str, fields: dict[str, Any]) -> Message:
    texts = tuple([TextPart(text) for text in _texts(fields)])
    role: Role = "user" if kind.endswith("_output") else "assistant"
    return Message(role, texts or None, extra={kind: fields})


def opaque(message: Message) -> dict[str, Any] | None:
    """The item that `message` stands for, with the texts it has now; None where it is an ordinary message."""
    if len(message.extra) != 1:
        return None
    [(kind, fields)] = message.extra.items()
    if not isinstance(fields, dict) or fields.get("type", "item_reference") != kind:
        return None
    parts = message.content if isinstance(message.content, tuple) else ()
    now = [part.text for part in parts if isinstance(part, TextPart)]
    if now == list(_texts(fields)):
        return fields
    return cast(dict[str, Any], _replaced(fields, iter(now)))


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if name not in _NO_TEXT:
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, name)


def _replaced(value: Any, texts: Iterator[str], name: str = "") -> Any:
    """`value` with its texts replaced in their order; those that a policy took away are empty."""
    if isinstance(value, str):
        return value if name in _NO_TEXT else next(texts, "")
    if isinstance(value, dict):
        return {key: _replaced(item, texts, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts, name) for item in value]
    return value
