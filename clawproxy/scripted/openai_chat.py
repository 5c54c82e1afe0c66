"""OpenAI chat completions, as a provider writes them. Source: OpenAI's API reference and the official Python SDK.

Text goes out as UTF-8, not as \\u escapes, as OpenAI does; only half a surrogate pair is escaped, since UTF-8 cannot hold it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures

_WORDS: Mapping[int, tuple[str, str, str | None]] = {
    400: ("We could not parse the JSON body of your request.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("You are not allowed to use this model.", "invalid_request_error", "forbidden"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later.", "server_error", "overloaded"),
}


class OpenAIChat:
    name = "openai_chat"
    answers: Sequence[str] = ("/v1/chat/completions", "/chat/completions")
    pattern: re.Pattern[str] | None = re.compile(r"(?:/[^/]+)*/chat/completions")  # hosts have it below prefixes of their own
    lists: Sequence[str] = ("/v1/models", "/models")

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "The body must be a JSON object.")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "you must provide a model parameter", "model")
        if not isinstance(messages, list) or not messages:
            raise BadRequest(400, "[] is too short - 'messages'", "messages")
        prompt, words = "", 0
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise BadRequest(400, "a message is an object with a role", f"messages[{number}]")
            text = _text(message.get("content"))
            words += len(text.split())
            if message["role"] == "user":
                prompt = text
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        return Asked(model, body.get("stream") is True, prompt, words, wants_usage)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return ChatEncoder(asked, serial)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        words, kind, usual = _WORDS.get(status) or _WORDS[500 if status >= 500 else 400]
        return _dump({"error": _error(message or words, kind, param, code or (usual if message is None else None))})

    def models(self, names: Sequence[str]) -> bytes:
        rows = [{"id": name, "object": "model", "created": 1763712000, "owned_by": "scripted"} for name in names]
        return _dump({"object": "list", "data": rows})


class ChatEncoder:
    content_type = "text/event-stream; charset=utf-8"
    stop = "stop"
    called = "tool_calls"

    def __init__(self, asked: Asked, serial: int) -> None:
        self._asked = asked
        self._id = f"chatcmpl-scripted{serial}"
        self._created = int(time.time())
        # The parts that every chunk of this answer shares are built once: a token event is one concatenation.
        head = self._dump_head("chat.completion.chunk")
        usage = b',"usage":null' if asked.usage else b""
        self._before = b"data: " + head + b',"choices":[{"index":0,"delta":{'
        self._after = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._finish_after = b"}]" + usage + b"}\n\n"
        self._usage_before = b"data: " + head + b',"choices":[],"usage":'

    def begin(self) -> bytes:
        return self._delta(b'"role":"assistant","content":"","refusal":null')

    def text(self, piece: str) -> bytes:
        return b"".join((self._before, b'"content":', _dump(piece), self._after))

    def reasoning(self, piece: str) -> bytes:
        return self._delta(b'"reasoning_content":' + _dump(piece))

    def refusal(self, piece: str) -> bytes:
        return self._delta(b'"refusal":' + _dump(piece))

    def tool(self, index: int, name: str) -> bytes:
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        return self._delta(b'"tool_calls":[' + _dump(call) + b"]")

    def arguments(self, index: int, piece: str) -> bytes:
        return self._delta(b'"tool_calls":[' + _dump({"index": index, "function": {"arguments": piece}}) + b"]")

    def finish(self, reason: str) -> bytes:
        return b"".join((self._before, b'},"logprobs":null,"finish_reason":', _dump(reason), self._finish_after))

    def usage(self, figures: Figures) -> bytes:
        return self._usage_before + _dump(_usage(figures)) + b"}\n\n"

    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return b"data: " + self.whole_error(message, kind, code) + b"\n\n"

    def comment(self, text: str) -> bytes:
        return b"".join(b": " + line.encode("utf-8", "replace") + b"\n" for line in text.split("\n")) + b"\n"

    def bad_json(self) -> bytes:
        return self._before + b'"content":"brok\n\n'

    def unknown_event(self) -> bytes:
        return b'event: scripted.unknown\ndata: {"object":"scripted.unknown","note":"nobody knows this event"}\n\n'

    def whole(self, answer: Answer) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text or not (answer.tools or answer.refusal) else None,
            "refusal": answer.refusal or None,
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tools:
            message["tool_calls"] = [
                {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(answer.tools)
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        usage = b"" if answer.usage is None else b',"usage":' + _dump(_usage(answer.usage))
        return self._dump_head("chat.completion") + b',"choices":[' + _dump(choice) + b"]" + usage + b"}"

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        return _dump({"error": _error(message, kind, None, code)})

    def _delta(self, members: bytes) -> bytes:
        return self._before + members + self._after

    def _dump_head(self, kind: str) -> bytes:
        """The opening of a document, its brace left open."""
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}
        return _dump(head)[:-1] + b',"system_fingerprint":"fp_scripted"'


def _text(content: Any) -> str:
    """A message's text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def _usage(figures: Figures) -> dict[str, Any]:
    return {
        "prompt_tokens": figures.input,
        "completion_tokens": figures.output,
        "total_tokens": figures.total,
        "prompt_tokens_details": {"cached_tokens": figures.cached},
        "completion_tokens_details": {"reasoning_tokens": figures.reasoning},
    }


def _error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _dump(value: Any) -> bytes:
    try:
        return _json(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
