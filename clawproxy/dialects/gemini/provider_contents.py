"""Messages as Gemini's `contents` and `systemInstruction`.

Rule 1: neighbours of one role are one content; a tool's answer is part of a user's content.
Rule 2: what a tool answered must be an object here: JSON that is one goes as it is, anything else as `{"result": ...}`, and a
        failure as `{"error": ...}`.
Rule 3: reasoning and signatures go to this format only where they came from it. A newer model refuses a call of its own without
        its signature, so one of another origin carries the mark that Google documents for that.
Rule 4: no URL of a stranger is sent: Google would fetch it. Its own files, and its buckets, are asked for by URI; whoever speaks
        this format may name what it likes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import msgspec

from clawproxy.dialects.gemini.names import NAME, is_made
from clawproxy.dialects.translate import refuse
from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, TextPart, Thinking, ToolCall

UNSIGNED = "skip_thought_signature_validator"
"""https://ai.google.dev/gemini-api/docs/thought-signatures: for calls that the model did not make itself."""
_SIGNS = re.compile(r"(?:.*/)?gemini-(?:[3-9]|[1-9][0-9])(?![0-9])")
_OWN_URI = re.compile(r"gs://.+|https://generativelanguage\.googleapis\.com/[a-z0-9]+/files/.+")


class Writer:
    """Writes one request's messages. `system` and `contents` are the result."""

    def __init__(self, request: ChatRequest, model: str) -> None:
        self._same = request.dialect == NAME
        self._sign = not self._same and _SIGNS.match(model) is not None
        self._names: dict[str, str] = {}
        self.system: list[dict[str, Any]] = []
        self.contents: list[dict[str, Any]] = []
        for number, message in enumerate(request.messages):
            self._message(message, f"messages[{number}]")
        if not self.contents:
            refuse("messages", "must hold more than instructions for a Gemini provider")

    def _message(self, message: Message, where: str) -> None:
        if message.role in ("system", "developer"):
            self.system += self._parts(message.content, where)
        elif message.role == "assistant":
            self._add("model", self._model(message, where), message)
        elif message.role == "tool":
            self._add("user", [self._answer(message, where)], message)
        else:
            self._add("user", self._parts(message.content, where), message)

    def _add(self, role: str, parts: list[dict[str, Any]], message: Message) -> None:
        beside: dict[str, Any] = {}
        if self._same and message.role != "tool":
            beside = {name: value for name, value in message.extra.items() if name not in _PLACED}
        last = self.contents[-1] if self.contents else None
        if last is not None and last["role"] == role and not beside:
            last["parts"] += parts
        else:
            self.contents.append({**beside, "role": role, "parts": parts})

    # --- the model's turns -----------------------------------------------------------------------------------------------

    def _model(self, message: Message, where: str) -> list[dict[str, Any]]:
        thoughts = [_thought(each) for each in message.thinking if each.dialect == NAME and self._same]
        said = self._parts(message.content, where)
        odd = message.extra.get("functionCalls", {}) if self._same else {}
        calls = [self._call(call, odd.get(call.id, {}), f"{where}.tool_calls[{n}]") for n, call in enumerate(message.tool_calls)]
        if self._sign and calls and "thoughtSignature" not in calls[0]:
            calls[0]["thoughtSignature"] = UNSIGNED
        order = message.extra.get("partsOrder") if self._same else None
        if not isinstance(order, str):
            return [*thoughts, *said, *calls]
        queues = {"t": thoughts, "p": said, "c": calls}
        parts = [queue.pop(0) for letter in order if (queue := queues.get(letter))]
        return [*parts, *thoughts, *said, *calls]  # what a policy added

    def _call(self, call: ToolCall, odd: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._names[call.id] = call.name
        args = _object(call.arguments or "{}")
        if args is None:
            refuse(f"{where}.arguments", "must be a JSON object for a Gemini provider")
        inner: dict[str, Any] = {**odd.get("functionCall", {}), "name": call.name, "args": args}
        if not is_made(call.id):
            inner["id"] = call.id
        part = {**odd, "functionCall": inner}
        if call.signature is not None and self._same:
            part["thoughtSignature"] = call.signature
        return part

    # --- answers of tools ------------------------------------------------------------------------------------------------

    def _answer(self, message: Message, where: str) -> dict[str, Any]:
        ident = message.tool_call_id or ""
        name = message.name or self._names.get(ident)
        if name is None:
            refuse(f"{where}.tool_call_id", "names no call of this conversation, and a Gemini provider wants the tool's name")
        text, media = message.text(), []
        if not isinstance(message.content, str):
            others = [part for part in message.content or () if not isinstance(part, TextPart)]
            media = [self._part(part, f"{where}.content") for part in others]
        extra = dict(message.extra) if self._same else {}
        response = _object(text)
        if response is None:
            response = {"error" if message.is_error else "result": text}
        elif message.is_error and "error" not in response:
            response = {"error": response}
        inner: dict[str, Any] = {**extra.pop("functionResponse", {}), "name": name, "response": response}
        if ident and not is_made(ident):
            inner["id"] = ident
        if media:
            inner["parts"] = media
        return {**extra, "functionResponse": inner}

    # --- parts -----------------------------------------------------------------------------------------------------------

    def _parts(self, content: str | Sequence[Part] | None, where: str) -> list[dict[str, Any]]:
        if content is None:
            return []
        if isinstance(content, str):
            return [{"text": content}]
        return [self._part(part, f"{where}.content[{place}]") for place, part in enumerate(content)]

    def _part(self, part: Part, where: str) -> dict[str, Any]:
        extra = dict(part.extra) if self._same else {}
        if isinstance(part, TextPart):
            if "text" in extra and not part.text:
                del extra["text"]
                return extra
            return {**extra, "text": part.text}
        if isinstance(part, AudioPart):
            return self._inline(extra, part.data, f"audio/{part.format}")
        if isinstance(part, ImagePart):
            if part.data is not None:
                return self._inline(extra, part.data, part.media_type or "image/png")
            return self._uri(extra, part.url, part.media_type, f"{where}.image_url")
        if isinstance(part, FilePart):
            if part.data is not None:
                if part.media_type is None:
                    refuse(f"{where}.file", "needs a media type for a Gemini provider: send it as a data: URL")
                made = self._inline(extra, part.data, part.media_type)
                if part.filename is not None and self._same:
                    made["inlineData"]["displayName"] = part.filename
                return made
            if part.url is None:
                refuse(f"{where}.file_id", "means nothing to a Gemini provider")
            return self._uri(extra, part.url, part.media_type, f"{where}.url")
        assert_never(part)

    def _inline(self, extra: dict[str, Any], data: str, media_type: str) -> dict[str, Any]:
        return {**extra, "inlineData": {**extra.get("inlineData", {}), "mimeType": media_type, "data": data}}

    def _uri(self, extra: dict[str, Any], uri: str | None, media_type: str | None, where: str) -> dict[str, Any]:
        if uri is None or (not self._same and _OWN_URI.fullmatch(uri) is None):
            refuse(where, "must be inline data, a gs: URI or a file of Google's for a Gemini provider")
        inner: dict[str, Any] = {**extra.get("fileData", {}), "fileUri": uri}
        if media_type is not None:
            inner["mimeType"] = media_type
        return {**extra, "fileData": inner}


_PLACED = frozenset({"functionCalls", "partsOrder"})
"""What `client_contents` keeps in a message's `extra`, and this file puts where it belongs."""


def _thought(thinking: Thinking) -> dict[str, Any]:
    part: dict[str, Any] = {**thinking.extra, "text": thinking.text, "thought": True}
    return part if thinking.signature is None else {**part, "thoughtSignature": thinking.signature}


def _object(text: str) -> dict[str, Any] | None:
    """`text` as a JSON object, None where it is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
