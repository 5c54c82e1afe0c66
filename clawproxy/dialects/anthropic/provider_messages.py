"""Messages of the vocabulary as Anthropic's `system` and `messages`.

Rule 1: what several messages say in one turn (a tool's results, then the user) is joined: `user` and `assistant` alternate, and
        results stand before everything else of their turn.
Rule 2: system and developer messages at the beginning are `system`. A later one stays where it is if its client wrote it in this
        dialect; any other moves to `system` too, with a notice, for only the newest models take them in place.
Rule 3: thinking goes out only with its signature, unchanged. Plain `reasoning` is left out: no Anthropic model made it, and one
        without a signature is refused. Hosts that sign nothing and want it back (`unsigned`) get it as it was.
Rule 4: an id or argument that the format has no way to say is made one it can: other characters of ids become `_`; arguments
        that are no JSON object are wrapped as `{"INVALID_JSON": "..."}`, the form Anthropic's documentation gives them.
Rule 5: `extra` is sent only to this dialect (`same`), and the vocabulary's fields win over it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, assert_never

import msgspec
from attrs import define, field

from clawproxy.dialects.anthropic.words import NAME
from clawproxy.dialects.translate import ORDER, dropped_notice, refuse
from clawproxy.events import Notice
from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, TextPart, Thinking, ToolCall

WORDS = "has no counterpart in the Anthropic format"
_NOT_ID = re.compile(r"[^A-Za-z0-9_-]")
_RAW = re.compile(r"content\[[0-9]+\]")


@define(slots=True)
class _Turn:
    role: str
    results: list[dict[str, Any]] = field(factory=list)
    blocks: list[dict[str, Any]] = field(factory=list)
    extra: dict[str, Any] = field(factory=dict)

    def document(self) -> dict[str, Any]:
        blocks = [*self.results, *self.blocks]
        if len(blocks) > 1:  # the API refuses an empty text
            blocks = [block for block in blocks if block.get("type") != "text" or block.get("text")] or blocks[:1]
        plain = len(blocks) == 1 and blocks[0].keys() == {"type", "text"}
        return {**self.extra, "role": self.role, "content": blocks[0]["text"] if plain else blocks}


class Conversation:
    """The two fields, and the notices for what moved or was left out.

    Raises ClawError("unsupported_parameter") where the format has no way to say it.
    """

    def __init__(self, request: ChatRequest, *, unsigned: bool = False) -> None:
        self.same = request.dialect == NAME
        self.unsigned = unsigned
        self.system: list[dict[str, Any]] = []
        self.notices: list[Notice] = []
        self.turns: list[_Turn] = []
        for number, message in enumerate(request.messages):
            self._add(message, f"messages[{number}]")
        if not self.turns:
            refuse("messages", "must hold more than system messages for this provider")

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [turn.document() for turn in self.turns]

    def system_field(self) -> str | list[dict[str, Any]] | None:
        if not self.system:
            return None
        alone = self.system[0]
        return alone["text"] if len(self.system) == 1 and alone.keys() == {"type", "text"} else self.system

    def _add(self, message: Message, where: str) -> None:
        if message.name is not None:
            self._notice(dropped_notice("name"))
        if message.role in ("system", "developer"):
            blocks = [block for block in self._parts(message, where) if block.get("text")]
            if self.turns and self.same:
                if blocks:
                    self.turns.append(_Turn("system", blocks=blocks, extra=self._extra(message)))
                return
            if self.turns:
                words = "A system message inside the conversation was moved to its beginning: not every model takes it in place."
                self._notice(Notice("system_moved", words))
            self.system += blocks
        elif message.role == "tool":
            self._turn("user").results.append(self._result(message, where))
        elif message.role == "user":
            turn = self._turn("user")
            turn.blocks += self._ordered(message, where)
            turn.extra |= self._extra(message)
        else:
            turn = self._turn("assistant")
            turn.blocks += self._ordered(message, where)
            turn.extra |= self._extra(message)

    def _turn(self, role: str) -> _Turn:
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(_Turn(role))
        return self.turns[-1]

    def _notice(self, notice: Notice) -> None:
        if notice not in self.notices:
            self.notices.append(notice)

    def _extra(self, message: Message) -> dict[str, Any]:
        """Without what is put back as blocks."""
        if not self.same or not message.extra:
            return {}
        return {name: value for name, value in message.extra.items() if name != ORDER and not _RAW.fullmatch(name)}

    # --- blocks ------------------------------------------------------------------------------------------------------------

    def _ordered(self, message: Message, where: str) -> list[dict[str, Any]]:
        """The blocks of one message, in the order its client gave them where it is known and still holds."""
        thinking = [_thinking(each) for each in message.thinking if each.dialect == NAME]
        if self.unsigned and message.reasoning is not None:
            thinking.insert(0, {"type": "thinking", "thinking": message.reasoning, "signature": ""})
        parts = self._parts(message, where)
        calls = [_call(call) for call in message.tool_calls]
        raw = {name: block for name, block in message.extra.items() if _RAW.fullmatch(name)} if self.same else {}
        order = message.extra.get(ORDER) if self.same else None
        if order is None:
            return [*thinking, *parts, *calls]
        sources = {"thinking": thinking, "part": parts, "call": calls}
        made: list[dict[str, Any]] = []
        used = 0
        for entry in order:
            if "block" in entry:
                made += [raw[entry["block"]]] if entry["block"] in raw else []
                continue
            (kind, place) = next(item for item in entry.items() if item[0] != "extra")
            if isinstance(place, int) and place < len(sources.get(kind, ())):  # a policy may have changed any word, these too
                made.append({**entry.get("extra", {}), **sources[kind][place]})
                used += 1
        if used == len(thinking) + len(parts) + len(calls):
            return made
        return [*thinking, *parts, *raw.values(), *calls]  # a policy took something out or put something in

    def _parts(self, message: Message, where: str) -> list[dict[str, Any]]:
        content = message.content
        if content is None:
            return []
        if isinstance(content, str):
            empty = not content and (message.tool_calls or message.thinking or ORDER in message.extra)
            return [] if empty else [{"type": "text", "text": content}]
        return [self._part(part, f"{where}.content[{place}]") for place, part in enumerate(content)]

    def _result(self, message: Message, where: str) -> dict[str, Any]:
        blocks = self._ordered(message, where)
        content: Any = message.content if isinstance(message.content, str) and ORDER not in message.extra else blocks
        result = {**self._extra(message), "type": "tool_result", "tool_use_id": _ident(message.tool_call_id or "")}
        if content:
            result["content"] = content
        if message.is_error is not None:
            result["is_error"] = message.is_error
        return result

    def _part(self, part: Part, where: str) -> dict[str, Any]:
        extra: Mapping[str, Any] = part.extra if self.same else {}
        if isinstance(part, TextPart):
            return {**extra, "type": "text", "text": part.text}
        if isinstance(part, ImagePart):
            if part.detail is not None:
                self._notice(dropped_notice("detail"))
            source: dict[str, str] | None
            if part.data is not None:
                source = {"type": "base64", "media_type": part.media_type or "image/png", "data": part.data}
            elif part.url is not None:
                if part.url[:5].lower() == "data:":
                    refuse(where, f"is a data URL that is not in base64, which {WORDS}")
                source = {"type": "url", "url": part.url}
            else:
                source = extra.get("source")
            if source is None:
                refuse(where, f"holds no image and {WORDS}")
            return {**extra, "type": "image", "source": source}
        if isinstance(part, FilePart):
            return self._file(part, extra, where)
        if isinstance(part, AudioPart):
            refuse(where, f"is audio, which {WORDS}")
        assert_never(part)

    def _file(self, part: FilePart, extra: Mapping[str, Any], where: str) -> dict[str, Any]:
        source: Any
        if part.data is not None:
            source = _inline(part, self.same, where)
        elif part.url is not None:
            source = {"type": "url", "url": part.url}
        elif part.file_id is not None:
            if not self.same:
                refuse(where, "names a file of another vendor, which this provider does not have")
            source = {"type": "file", "file_id": part.file_id}
        else:
            source = extra.get("source")
        if source is None:
            refuse(where, f"holds no document and {WORDS}")
        document = {**extra, "type": "document", "source": source}
        if part.filename is not None:
            document["title"] = part.filename
        return document


def _inline(part: FilePart, same: bool, where: str) -> dict[str, Any]:
    media_type = part.media_type or "application/pdf"
    if same or media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": part.data}
    if not media_type.startswith("text/"):
        refuse(where, "is of a kind this provider does not read: it takes PDF and plain text")
    try:
        text = base64.b64decode(part.data or "", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        refuse(where, "is no text in UTF-8")
    return {"type": "text", "media_type": "text/plain", "data": text}


def _thinking(thought: Thinking) -> dict[str, Any]:
    if thought.data is not None:
        return {**thought.extra, "type": "redacted_thinking", "data": thought.data}
    return {**thought.extra, "type": "thinking", "thinking": thought.text, "signature": thought.signature or ""}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": _ident(call.id), "name": call.name, "input": arguments_object(call.arguments)}


def _ident(ident: str) -> str:
    return _NOT_ID.sub("_", ident)


def arguments_object(arguments: str) -> Any:
    """A tool call's arguments as the object the format wants."""
    if not arguments.strip():
        return {}
    data = arguments.encode("utf-8", "replace")
    try:
        whole = isinstance(msgspec.json.decode(data), dict)
    except (msgspec.DecodeError, ValueError, RecursionError):
        whole = False
    return msgspec.Raw(data) if whole else {"INVALID_JSON": arguments.encode("utf-8", "replace").decode()}
