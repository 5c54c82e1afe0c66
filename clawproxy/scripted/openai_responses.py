"""OpenAI Responses, as a provider writes them. Source: OpenAI's API reference and the official Python SDK's models.

Rule 1: the terminal event holds the finish reason, the usage and the whole output, so `finish` and `usage` write nothing of it:
        `done` does. A script's `no done` is an answer without its terminal event.
Rule 2: a reason of `stop` or `tool_calls` is `response.completed`; `length` and `content_filter` are `response.incomplete`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures
from clawproxy.scripted.openai_chat import OpenAIChat, _dump, _error

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class OpenAIResponses:
    name = "openai_responses"
    answers: Sequence[str] = ("/v1/responses", "/responses")
    pattern: re.Pattern[str] | None = None
    lists: Sequence[str] = ()

    def __init__(self) -> None:
        self._chat = OpenAIChat()  # errors and models are written alike

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "The body must be a JSON object.")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "Missing required parameter: 'model'.", "model", "missing_required_parameter")
        said = body.get("input", [])
        items = [{"role": "user", "content": said}] if isinstance(said, str) else said
        if not isinstance(items, list):
            raise BadRequest(400, "Invalid type for 'input'.", "input", "invalid_type")
        prompt, words = "", len(str(body.get("instructions") or "").split())
        for number, item in enumerate(items):
            if not isinstance(item, dict):
                raise BadRequest(400, f"Invalid type for 'input[{number}]'.", f"input[{number}]", "invalid_type")
            text = _text(item.get("content")) + _text(item.get("output"))
            words += len(text.split())
            if item.get("role") == "user":
                prompt = text
        return Asked(model, body.get("stream") is True, prompt, words, usage=True)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return _Encoder(asked, serial)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        return self._chat.error_body(status, message, param, code)

    def models(self, names: Sequence[str]) -> bytes:
        return self._chat.models(names)


class _Encoder:
    content_type = "text/event-stream; charset=utf-8"
    stop = "stop"
    called = "tool_calls"

    def __init__(self, asked: Asked, serial: int) -> None:
        self._asked = asked
        self._serial = serial
        self._created = int(time.time())
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._reason = self.stop
        self._usage: Figures | None = None

    # --- events ---

    def begin(self) -> bytes:
        created = {"response": self._response("in_progress")}
        return self._event("response.created", created) + self._event("response.in_progress", created)

    def text(self, piece: str) -> bytes:
        return self._say("message", "output_text", piece)

    def refusal(self, piece: str) -> bytes:
        return self._say("message", "refusal", piece)

    def reasoning(self, piece: str) -> bytes:
        return self._say("reasoning", "summary_text", piece)

    def tool(self, index: int, name: str) -> bytes:
        closed = self._close()
        call = {
            "type": "function_call",
            "id": f"fc_scripted{self._serial}_{index}",
            "call_id": f"call_{index}",
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        self._calls[index] = call
        self._output.append(call)
        return closed + self._event("response.output_item.added", {**self._at(call, True), "item": call})

    def arguments(self, index: int, piece: str) -> bytes:
        call = self._calls[index]
        call["arguments"] += piece
        return self._event("response.function_call_arguments.delta", {**self._at(call), "delta": piece})

    def finish(self, reason: str) -> bytes:
        self._reason = reason
        written = self._close()
        for call in self._calls.values():
            call["status"] = "completed"
            said = {**self._at(call), "name": call["name"], "arguments": call["arguments"]}
            written += self._event("response.function_call_arguments.done", said)
            written += self._event("response.output_item.done", {**self._at(call, True), "item": call})
        self._calls.clear()
        return written

    def usage(self, figures: Figures) -> bytes:
        self._usage = figures
        return b""

    def done(self) -> bytes:
        status = "incomplete" if self._reason in _INCOMPLETE else "completed"
        return self._event(f"response.{status}", {"response": self._response(status)})

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return self._event("error", {"code": code or kind, "message": message, "param": None})

    def comment(self, text: str) -> bytes:
        return b"".join(b": " + line.encode("utf-8", "replace") + b"\n" for line in text.split("\n")) + b"\n"

    def bad_json(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"brok\n\n'

    def unknown_event(self) -> bytes:
        return self._event("response.scripted.unknown", {"note": "nobody knows this event"})

    # --- whole ---

    def whole(self, answer: Answer) -> bytes:
        for kind, text in (("reasoning", answer.reasoning), ("text", answer.text), ("refusal", answer.refusal)):
            if text:
                getattr(self, kind)(text)
        for index, (name, arguments) in enumerate(answer.tools):
            self.tool(index, name)
            self.arguments(index, arguments)
        self.finish(answer.finish or self.stop)
        self._usage = answer.usage
        status = "incomplete" if self._reason in _INCOMPLETE else "completed"
        return _dump(self._response(status if answer.finish is not None else "in_progress"))

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        return _dump({"error": _error(message, kind, None, code)})

    # --- parts ---

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = _dump({"type": kind, **fields, "sequence_number": self._number})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _at(self, item: dict[str, Any], whole: bool = False) -> dict[str, Any]:
        index = next(place for place, each in enumerate(self._output) if each is item)
        return {"output_index": index} if whole else {"item_id": item["id"], "output_index": index}

    def _say(self, kind: str, part_kind: str, piece: str) -> bytes:
        written = b""
        item = self._open
        if item is None or item["type"] != kind:
            written += self._close()
            item = self._open = self._item(kind, len(self._output))
            self._output.append(item)
            written += self._event("response.output_item.added", {**self._at(item, True), "item": item})
        parts: list[dict[str, Any]] = item["content" if kind == "message" else "summary"]
        field = "refusal" if part_kind == "refusal" else "text"
        more: dict[str, Any] = {"logprobs": []} if part_kind == "output_text" else {}
        if not parts or parts[-1]["type"] != part_kind:
            if parts:
                written += self._end_part(parts)
            parts.append({"type": part_kind, field: "", **({"annotations": [], **more} if more else {})})
            name = "content_part" if kind == "message" else "reasoning_summary_part"
            written += self._event(f"response.{name}.added", {**self._in(parts), "part": parts[-1]})
        parts[-1][field] += piece
        return written + self._event(f"response.{_delta(part_kind)}.delta", {**self._in(parts), "delta": piece, **more})

    def _item(self, kind: str, place: int) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": kind, "id": f"rs_scripted{self._serial}_{place}", "summary": []}
        ident = f"msg_scripted{self._serial}_{place}"
        return {"type": kind, "id": ident, "status": "in_progress", "role": "assistant", "content": []}

    def _in(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        assert self._open is not None
        index = "content_index" if self._open["type"] == "message" else "summary_index"
        return {**self._at(self._open), index: len(parts) - 1}

    def _end_part(self, parts: list[dict[str, Any]]) -> bytes:
        part = parts[-1]
        field = "refusal" if part["type"] == "refusal" else "text"
        logprobs: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
        name = "reasoning_summary_part" if part["type"] == "summary_text" else "content_part"
        return self._event(
            f"response.{_delta(part['type'])}.done", {**self._in(parts), field: part[field], **logprobs}
        ) + self._event(f"response.{name}.done", {**self._in(parts), "part": part})

    def _close(self) -> bytes:
        item = self._open
        if item is None:
            return b""
        written = self._end_part(item["content" if item["type"] == "message" else "summary"])
        if item["type"] == "message":
            item["status"] = "completed"
        else:
            item["encrypted_content"] = f"gAAAAscripted{self._serial}"
        self._open = None
        return written + self._event("response.output_item.done", {**self._at(item, True), "item": item})

    def _response(self, status: str) -> dict[str, Any]:
        reason = _INCOMPLETE.get(self._reason)
        return {
            "id": f"resp_scripted{self._serial}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "instructions": None,
            "metadata": {},
            "model": self._asked.model,
            "output": self._output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None if self._usage is None else _usage(self._usage),
        }


def _delta(kind: str) -> str:
    return "reasoning_summary_text" if kind == "summary_text" else kind


def _text(content: Any) -> str:
    """A string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _usage(figures: Figures) -> dict[str, Any]:
    return {
        "input_tokens": figures.input,
        "input_tokens_details": {"cached_tokens": figures.cached, "cache_write_tokens": 0},
        "output_tokens": figures.output,
        "output_tokens_details": {"reasoning_tokens": figures.reasoning},
        "total_tokens": figures.total,
    }
