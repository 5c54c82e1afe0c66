"""Ollama's chat and embeddings, as a server writes them. Source: the official Python SDK and docs/api.md of the server.

A tool call is one whole object here, and usage stands in the last line: what a script says in pieces is kept until it is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from clawproxy.scripted.cohere import vector
from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures
from clawproxy.scripted.openai_chat import _dump as _utf8

_WORDS: Mapping[int, str] = {
    400: "invalid request",
    401: "unauthorized",
    404: "model 'scripted' not found",
    429: "too many requests",
    500: "llama runner process has terminated",
    503: "server busy, please try again.  maximum pending requests exceeded",
}
_CREATED = "2026-11-01T12:00:00.000000001Z"
_SPENT = {"total_duration": 5_000_000, "load_duration": 1_000_000, "prompt_eval_duration": 2_000_000, "eval_duration": 2_000_000}


@frozen(slots=True)
class EmbedAsked(Asked):
    """A request for vectors."""

    texts: Sequence[str] = ()


class Ollama:
    name = "ollama"
    answers: Sequence[str] = ("/api/chat", "/api/embed")
    pattern: re.Pattern[str] | None = None
    lists: Sequence[str] = ("/api/tags",)

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "the body must be a JSON object")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "model is required")
        if target.partition("?")[0].endswith("/embed"):
            texts = body.get("input")
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise BadRequest(400, "invalid input type")
            return EmbedAsked(model, False, "", sum(len(text.split()) for text in texts), True, texts=texts)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest(400, "messages is required")
        prompt, words = "", 0
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise BadRequest(400, "json: cannot unmarshal a message")
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise BadRequest(400, "json: cannot unmarshal array into Go struct field Message.content of type string")
            for call in message.get("tool_calls") or ():
                if not isinstance(call["function"]["arguments"], dict):
                    raise BadRequest(400, "json: cannot unmarshal string into Go struct field ToolCallFunction.arguments")
            words += len(text.split())
            if message["role"] == "user":
                prompt = text
        return Asked(model, body.get("stream") is not False, prompt, words, True)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return _Encoder(asked)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        return _dump({"error": message or _WORDS.get(status) or _WORDS[500]})

    def models(self, names: Sequence[str]) -> bytes:
        rows = [{"name": name, "model": name, "modified_at": _CREATED, "size": 1, "digest": "", "details": {}} for name in names]
        return _dump({"models": rows})


class _Encoder:
    content_type = "application/x-ndjson"
    stop = "stop"
    called = "stop"

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._calls: list[tuple[str, str]] = []
        self._reason = self.stop
        self._usage: Figures | None = None

    def begin(self) -> bytes:
        return b""

    def text(self, piece: str) -> bytes:
        return self._flush() + self._line({"content": piece})

    def refusal(self, piece: str) -> bytes:
        return self.text(piece)

    def reasoning(self, piece: str) -> bytes:
        return self._flush() + self._line({"content": "", "thinking": piece})

    def tool(self, index: int, name: str) -> bytes:
        before = self._flush()
        self._calls.append((name, ""))
        return before

    def arguments(self, index: int, piece: str) -> bytes:
        name, text = self._calls[-1]
        self._calls[-1] = (name, text + piece)
        return b""

    def finish(self, reason: str) -> bytes:
        self._reason = reason
        return self._flush()

    def usage(self, figures: Figures) -> bytes:
        """Told in the last line only."""
        self._usage = figures
        return b""

    def done(self) -> bytes:
        return _dump(self._document({"content": ""}, self._reason, self._usage)) + b"\n"

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return self.whole_error(message, kind, code) + b"\n"

    def comment(self, text: str) -> bytes:
        return b"\r\n"  # the format has none; a blank line is the nearest thing

    def bad_json(self) -> bytes:
        return b'{"model":"scripted","message":{"role":"assi\n'

    def unknown_event(self) -> bytes:
        return b'{"scripted":"nobody knows this line"}\n'

    def whole(self, answer: Answer) -> bytes:
        if isinstance(self._asked, EmbedAsked):
            vectors = [vector(text) for text in self._asked.texts]
            figures = {} if answer.usage is None else {"prompt_eval_count": answer.usage.input}
            return _dump({"model": self._asked.model, "embeddings": vectors, "total_duration": 5, "load_duration": 1, **figures})
        message: dict[str, Any] = {"content": answer.text + answer.refusal}
        if answer.reasoning:
            message["thinking"] = answer.reasoning
        if answer.tools:
            message["tool_calls"] = [_call(name, text) for name, text in answer.tools]
        return _dump(self._document(message, answer.finish or self.stop, answer.usage))

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        return _dump({"error": message})

    def _flush(self) -> bytes:
        calls, self._calls = self._calls, []
        if not calls:
            return b""
        return self._line({"content": "", "tool_calls": [_call(name, text) for name, text in calls]})

    def _line(self, message: dict[str, Any]) -> bytes:
        document = {
            "model": self._asked.model,
            "created_at": _CREATED,
            "message": {"role": "assistant", **message},
            "done": False,
        }
        return _dump(document) + b"\n"

    def _document(self, message: dict[str, Any], reason: str, figures: Figures | None) -> dict[str, Any]:
        counts = {} if figures is None else {"prompt_eval_count": figures.input, "eval_count": figures.output}
        return {
            "model": self._asked.model,
            "created_at": _CREATED,
            "message": {"role": "assistant", **message},
            "done": True,
            "done_reason": reason,
            **_SPENT,
            **counts,
        }


def _dump(value: Any) -> bytes:
    """As Go writes it: these two are escaped, so that no reader takes them for the end of a line."""
    return _utf8(value).replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def _call(name: str, text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text) if text else {}
    except ValueError:
        arguments = text  # a model's own mistake, as some servers pass it on
    return {"function": {"name": name, "arguments": arguments}}
