"""Anthropic messages, as a provider writes them. Source: Anthropic's API reference and the official Python SDK.

The end of a stream is one `message_delta` with stop reason and figures, as Anthropic sends it: `finish` ends the open block and
leaves the rest to `usage`, or to `done` where no figures are reported. `message_start` says the input's words and one token.

The model list stands below `/anthropic`, since `/v1/models` alone does not tell whose it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures

_WORDS: Mapping[int, tuple[str, str]] = {
    400: ("Invalid request.", "invalid_request_error"),
    401: ("invalid x-api-key", "authentication_error"),
    402: ("Your credit balance is too low to access the Anthropic API.", "billing_error"),
    403: ("Your API key does not have permission to use the specified resource.", "permission_error"),
    404: ("model: scripted", "not_found_error"),
    405: ("Method Not Allowed", "invalid_request_error"),
    413: ("Request exceeds the maximum size", "request_too_large"),
    429: ("This request would exceed your organization's rate limit.", "rate_limit_error"),
    500: ("Internal server error", "api_error"),
    504: ("Request timed out", "timeout_error"),
    529: ("Overloaded", "overloaded_error"),
}
_ROOTS = ("/v1", "", "/anthropic/v1")


class Anthropic:
    name = "anthropic"
    answers: Sequence[str] = [f"{root}/messages{end}" for root in _ROOTS for end in ("", "/count_tokens")]
    pattern: re.Pattern[str] | None = None
    lists: Sequence[str] = ("/anthropic/v1/models",)

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "Input should be a valid dictionary")
        counts = target.partition("?")[0].endswith("/count_tokens")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "model: Field required")
        if not counts and type(body.get("max_tokens")) is not int:
            raise BadRequest(400, "max_tokens: Field required")
        if not isinstance(messages, list) or not messages:
            raise BadRequest(400, "messages: at least one message is required")
        prompt, words = "", len(_text(body.get("system")).split())
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
                raise BadRequest(400, f"messages.{number}.role: Input should be 'user', 'assistant' or 'system'")
            text = _text(message.get("content"))
            words += len(text.split())
            if message["role"] == "user":
                prompt = text
        return Asked(model, body.get("stream") is True, prompt, words, usage=True, counts=counts)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return _Encoder(asked, serial)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        words, kind = _WORDS.get(status) or _WORDS[500 if status >= 500 else 400]
        return _dump({"type": "error", "error": {"type": kind, "message": message or words}, "request_id": "req_scripted"})

    def models(self, names: Sequence[str]) -> bytes:
        rows = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2026-11-01T00:00:00Z", "lifecycle": "active"}
            for name in names
        ]
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return _dump({"data": rows, "has_more": False, **ends})


class _Encoder:
    content_type = "text/event-stream; charset=utf-8"
    stop = "end_turn"
    called = "tool_use"

    def __init__(self, asked: Asked, serial: int) -> None:
        self._asked = asked
        self._serial = serial
        self._kind = ""
        self._index = -1
        self._reason: str | None = None
        self._told = False

    def begin(self) -> bytes:
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        usage = {"input_tokens": self._asked.words, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return _event("message_start", message={**message, "usage": {**usage, "output_tokens": 1}})

    def text(self, piece: str) -> bytes:
        return self._open("text", {"type": "text", "text": ""}) + self._delta({"type": "text_delta", "text": piece})

    def reasoning(self, piece: str) -> bytes:
        opened = self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        return opened + self._delta({"type": "thinking_delta", "thinking": piece})

    def refusal(self, piece: str) -> bytes:
        return self.text(piece)  # the format has no other; what makes it one is `finish refusal`

    def tool(self, index: int, name: str) -> bytes:
        closed, self._kind = self._close(), "tool"
        return closed + self._start({"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}})

    def arguments(self, index: int, piece: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": piece})

    def finish(self, reason: str) -> bytes:
        self._reason = reason
        return self._close()

    def usage(self, figures: Figures) -> bytes:
        return self._end(_usage(figures))

    def done(self) -> bytes:
        return (b"" if self._told else self._end(None)) + _event("message_stop")

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return b"event: error\ndata: " + self.whole_error(message, kind, code) + b"\n\n"

    def comment(self, text: str) -> bytes:
        return b"".join(b": " + line.encode("utf-8", "replace") + b"\n" for line in text.split("\n")) + b"\n"

    def bad_json(self) -> bytes:
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"brok\n\n'

    def unknown_event(self) -> bytes:
        return _event("scripted_unknown", note="nobody knows this event")

    def whole(self, answer: Answer) -> bytes:
        if self._asked.counts:
            return _dump({"input_tokens": self._asked.words if answer.usage is None else answer.usage.input})
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": self._signature()})
        if answer.text or answer.refusal:
            content.append({"type": "text", "text": answer.text + answer.refusal})
        for index, (name, arguments) in enumerate(answer.tools):
            content.append({"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": _object(arguments)})
        message = {**self._head(), "content": content, "stop_reason": answer.finish, "stop_sequence": None}
        return _dump(message if answer.usage is None else {**message, "usage": _usage(answer.usage)})

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        error: dict[str, Any] = {"type": "api_error" if kind == "server_error" else kind, "message": message}
        if code is not None:
            error["details"] = {"error_code": code}
        return _dump({"type": "error", "error": error, "request_id": f"req_scripted_{self._serial}"})

    def _head(self) -> dict[str, Any]:
        return {"id": f"msg_scripted{self._serial}", "type": "message", "role": "assistant", "model": self._asked.model}

    def _signature(self) -> str:
        return f"c2lnbmVk{self._serial}=="

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._kind == kind:
            return b""
        closed = self._close()
        self._kind = kind
        return closed + self._start(block)

    def _start(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        kind, self._kind = self._kind, ""
        if self._index < 0 or not kind:
            return b""
        signed = self._delta({"type": "signature_delta", "signature": self._signature()}) if kind == "thinking" else b""
        return signed + _event("content_block_stop", index=self._index)

    def _end(self, usage: dict[str, Any] | None) -> bytes:
        self._told = True
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        return _event("message_delta", delta=delta) if usage is None else _event("message_delta", delta=delta, usage=usage)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _dump({"type": kind, **fields}))


def _text(content: Any) -> str:
    """A text, or the text blocks of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [block.get("text") for block in content if isinstance(block, dict) and block.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def _usage(figures: Figures) -> dict[str, Any]:
    """`input` counts what was read from the cache; Anthropic's `input_tokens` does not."""
    return {
        "input_tokens": figures.input - figures.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached,
        "output_tokens": figures.output,
        "output_tokens_details": {"thinking_tokens": figures.reasoning},
    }


def _object(arguments: str) -> Any:
    try:
        made = json.loads(arguments)
    except (ValueError, RecursionError):
        made = None
    return made if isinstance(made, dict) else {"INVALID_JSON": arguments}


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _dump(value: Any) -> bytes:
    try:
        return _json(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
