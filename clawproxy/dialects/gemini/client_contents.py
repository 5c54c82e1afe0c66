"""The `contents` of a request, from JSON to messages.

Rule 1: every text a model would read becomes a text of the vocabulary, so that policies see it.
Rule 2: what the vocabulary has no word for (`executableCode`, `toolResponse`, a text's `thoughtSignature`) stays in the `extra`
        of a part in its place, and `provider_contents` puts it back.
Rule 3: a message holds its reasoning, then its content, then its calls. Where a client's parts stand in another order, it is
        kept in `extra["partsOrder"]`: a model that signed its thoughts wants them back as it said them.
Rule 4: an answer finds its call by id; without one, the oldest unanswered call of that name has it (see `names`, Rule 2).
Rule 5: URIs are passed on, never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.gemini.names import NAME, call_id, camel
from clawproxy.dialects.openai_chat import check
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, AudioPart, FilePart, ImagePart, Message, Part, TextPart, Thinking, ToolCall

_PART = frozenset({"text", "thought", "thoughtSignature", "functionCall", "functionResponse", "inlineData", "fileData"})
_CONTENT = frozenset({"role", "parts"})
_URI = re.compile(r"(?:https?|gs)://[\x21-\x7e]{1,8192}", re.IGNORECASE)
_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[\x20-\x7e]{1,127}")
_STANDARD = str.maketrans("-_", "+/")
_AUDIO = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}
"""Other names of the formats that the vocabulary knows."""


class Contents:
    """Reads one conversation. `messages` grows; calls are numbered through it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._calls = 0
        self._open: list[ToolCall] = []
        """Calls without an answer yet, oldest first."""

    def read(self, value: Any, longest: int) -> tuple[Message, ...]:
        items = check.array([value] if isinstance(value, dict) else value, "contents", longest=longest)
        if not items:
            check.refuse("contents", "hold at least one content")
        for number, item in enumerate(items):
            self._content(item, f"contents[{number}]")
        return tuple(self.messages)

    def _content(self, value: Any, where: str) -> None:
        fields = camel(check.mapping(value, where))
        role = fields.get("role") or "user"
        if role not in ("user", "model", "function"):
            check.refuse(f"{where}.role", "be user or model")
        listed = parts_of(fields, where)
        extra = check.beyond(fields, _CONTENT)
        if role == "model":
            self.messages.append(self._model(listed, where, extra))
            return
        said: list[Part] = []
        for number, item in enumerate(listed):
            within = f"{where}.parts[{number}]"
            part = camel(check.mapping(item, within))
            if part.get("functionResponse") is None:
                said.append(read_part(part, within))
                continue
            self._flush(said, EMPTY)
            self.messages.append(self._answer(part, within))
        if said or extra or not listed:
            self._flush(said, extra, even_empty=True)

    def _flush(self, said: list[Part], extra: Mapping[str, Any], *, even_empty: bool = False) -> None:
        if said or even_empty:
            self.messages.append(Message("user", simple(said) if said else (), extra=extra or EMPTY))
            said.clear()

    # --- the model's turns -----------------------------------------------------------------------------------------------

    def _model(self, listed: list[Any], where: str, extra: dict[str, Any]) -> Message:
        thinking: list[Thinking] = []
        said: list[Part] = []
        calls: list[ToolCall] = []
        odd: dict[str, Any] = {}
        order = ""
        for number, item in enumerate(listed):
            within = f"{where}.parts[{number}]"
            part = camel(check.mapping(item, within))
            if part.get("functionCall") is not None:
                calls.append(self._call(part, within, odd))
                order += "c"
            elif part.get("thought") is True and isinstance(part.get("text"), str):
                left = check.beyond(part, _PART)
                thinking.append(Thinking(part["text"], signature(part, within), dialect=NAME, extra=left or EMPTY))
                order += "t"
            else:
                said.append(read_part(part, within))
                order += "p"
        if odd:
            extra["functionCalls"] = odd
        if "".join(sorted(order, key="tpc".index)) != order:
            extra["partsOrder"] = order
        self._open += calls
        content = simple(said) if said else None
        return Message("assistant", content, tuple(calls), extra=extra or EMPTY, thinking=tuple(thinking))

    def _call(self, part: dict[str, Any], where: str, odd: dict[str, Any]) -> ToolCall:
        within = f"{where}.functionCall"
        fields = camel(check.mapping(part["functionCall"], within))
        name = check.token(check.need(fields, "name", within), f"{within}.name", longest=256)
        ident = fields.get("id")
        ident = check.token(ident, f"{within}.id", longest=512) if ident else call_id(self._calls)
        self._calls += 1
        args = check.mapping(fields.get("args") or {}, f"{within}.args")
        left = check.beyond(fields, frozenset({"id", "name", "args"}))
        beside = check.beyond(part, _PART)
        if left or beside:
            odd[ident] = {**beside, "functionCall": left}
        return ToolCall(ident, name, jsonio.encode(args).decode(), signature(part, where))

    # --- answers of functions --------------------------------------------------------------------------------------------

    def _answer(self, part: dict[str, Any], where: str) -> Message:
        within = f"{where}.functionResponse"
        fields = camel(check.mapping(part["functionResponse"], within))
        name = check.token(check.need(fields, "name", within), f"{within}.name", longest=256)
        ident = fields.get("id")
        ident = check.token(ident, f"{within}.id", longest=512) if ident else None
        response = check.mapping(fields.get("response") or {}, f"{within}.response")
        extra = check.beyond(part, _PART)
        if left := check.beyond(fields, frozenset({"id", "name", "response"})):
            extra["functionResponse"] = left
        return Message(
            "tool",
            jsonio.encode(response).decode(),
            tool_call_id=self._answered(ident, name),
            name=name,
            extra=extra or EMPTY,
            is_error=True if response.keys() == {"error"} else None,
        )

    def _answered(self, ident: str | None, name: str) -> str:
        for place, call in enumerate(self._open):
            if call.id == ident if ident is not None else call.name == name:
                del self._open[place]
                return call.id
        if ident is None:  # an answer to no call: the provider's to judge
            ident = call_id(self._calls)
            self._calls += 1
        return ident


# --- parts -----------------------------------------------------------------------------------------------------------------


def parts_of(fields: dict[str, Any], where: str) -> list[Any]:
    """`parts`, of which Google's own examples write a single one without its array."""
    parts = fields.get("parts")
    return check.array([] if parts is None else [parts] if isinstance(parts, dict) else parts, f"{where}.parts")


def simple(parts: list[Part]) -> str | tuple[Part, ...]:
    """One plain text is a string, as the other formats write it."""
    if len(parts) == 1 and isinstance(parts[0], TextPart) and not parts[0].extra:
        return parts[0].text
    return tuple(parts)


def read_part(part: dict[str, Any], where: str) -> Part:
    """A part that is no call, no answer and no thought. `part` has camelCase names."""
    extra = check.beyond(part, _PART)
    for name in ("thought", "thoughtSignature"):
        if part.get(name):
            extra[name] = part[name]
    text = part.get("text")
    if text is not None:
        return TextPart(check.text(text, f"{where}.text"), extra or EMPTY)
    if part.get("inlineData") is not None:
        return _inline(part["inlineData"], f"{where}.inlineData", extra)
    if part.get("fileData") is not None:
        return _file(part["fileData"], f"{where}.fileData", extra)
    if not extra or part.get("functionCall") is not None or part.get("functionResponse") is not None:
        check.refuse(where, "hold text, inlineData, fileData or, in its place, functionCall or functionResponse")
    return TextPart("", {**extra, "text": None})  # something of Gemini's own: its text is absent, not empty


def signature(part: dict[str, Any], where: str) -> str | None:
    said = part.get("thoughtSignature")
    return None if said is None else check.token(said, f"{where}.thoughtSignature", longest=1_000_000)


def _inline(value: Any, where: str, extra: dict[str, Any]) -> Part:
    fields = camel(check.mapping(value, where))
    media_type = _media_type(check.need(fields, "mimeType", where), where)
    # Protobuf's JSON takes both alphabets of base64, and google-genai writes the one for URLs; the other formats know one.
    data = check.text(check.need(fields, "data", where), f"{where}.data").translate(_STANDARD)
    data += "=" * (-len(data) % 4)
    name = fields.get("displayName")
    if left := check.beyond(fields, frozenset({"mimeType", "data", "displayName"})):
        extra["inlineData"] = left
    kind, _, sort = media_type.partition("/")
    if kind == "image" and name is None:
        return ImagePart(data=data, media_type=media_type, extra=extra or EMPTY)
    if kind == "audio" and name is None:
        return AudioPart(data, _AUDIO.get(sort, sort), extra or EMPTY)
    name = None if name is None else check.token(name, f"{where}.displayName", longest=512)
    return FilePart(data=data, filename=name, media_type=media_type, extra=extra or EMPTY)


def _file(value: Any, where: str, extra: dict[str, Any]) -> Part:
    fields = camel(check.mapping(value, where))
    uri = check.text(check.need(fields, "fileUri", where), f"{where}.fileUri")
    if _URI.fullmatch(uri) is None:
        check.refuse(f"{where}.fileUri", "be a gs: or https: URI")
    media_type = None if fields.get("mimeType") is None else _media_type(fields["mimeType"], where)
    if left := check.beyond(fields, frozenset({"fileUri", "mimeType"})):
        extra["fileData"] = left
    if media_type is not None and media_type.startswith("image/"):
        return ImagePart(url=uri, media_type=media_type, extra=extra or EMPTY)
    return FilePart(url=uri, media_type=media_type, extra=extra or EMPTY)


def _media_type(value: Any, where: str) -> str:
    said = check.text(value, f"{where}.mimeType")
    if _MIME.fullmatch(said) is None:
        check.refuse(f"{where}.mimeType", "be a media type such as image/png")
    return said.lower()


def system_message(value: Any, where: str) -> Message:
    """`systemInstruction`: a content whose role means nothing."""
    fields = camel(check.mapping(value, where))
    parts = parts_of(fields, where) if "parts" in fields else [check.beyond(fields, frozenset({"role"}))]
    said: list[Part] = []
    for number, item in enumerate(parts):
        within = f"{where}.parts[{number}]"
        said.append(read_part(camel(check.mapping(item, within)), within))
    if not said:
        raise ClawError("invalid_request", f"`{where}.parts` is missing.", param=f"{where}.parts")
    return Message("system", simple(said))
