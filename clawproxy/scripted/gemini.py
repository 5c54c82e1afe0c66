"""Gemini's `generateContent` and what stands beside it, as Google writes them. Source: the google-genai SDK.

Rule 1: a call is one part with all its arguments: its pieces are written with whatever comes after them.
Rule 2: there is no terminal marker; a stream's lines end in CR LF.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

from attrs import frozen

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures

_STATUS: Mapping[int, tuple[str, str]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission."),
    404: ("NOT_FOUND", "The model is not found for API version v1beta."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out. Please try again."),
}
_TYPE = "type.googleapis.com/google.rpc."
_TARGET = re.compile(
    r"(?:/v1(?:beta)?)?/models/(?P<model>.+):"
    r"(?P<method>generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents)"
)


@frozen(slots=True)
class GeminiAsked(Asked):
    method: str = "generateContent"
    inputs: int = 1
    sse: bool = True


class Gemini:
    name = "gemini"
    answers: Sequence[str] = ()
    pattern: re.Pattern[str] | None = _TARGET
    lists: Sequence[str] = ("/v1beta/models",)

    def read(self, body: Any, target: str) -> Asked:
        path, _, query = target.partition("?")
        match = _TARGET.fullmatch(path)
        if match is None or not isinstance(body, dict):
            raise BadRequest(400, "Invalid JSON payload received.")
        method = match["method"]
        body = body.get("generateContentRequest", body)
        requests = body.get("requests") if method == "batchEmbedContents" else None
        contents = body.get("contents")
        if requests is None and method == "embedContent":
            requests = [body]
        if requests is not None:
            contents = [request.get("content") for request in requests if isinstance(request, dict)]
        if not isinstance(contents, list) or not contents:
            raise BadRequest(400, "* GenerateContentRequest.contents: contents is not specified", "contents")
        prompt, words = "", 0
        for number, content in enumerate([*contents, body.get("systemInstruction") or {}]):
            if not isinstance(content, dict) or content.get("role", "user") not in ("user", "model"):
                raise BadRequest(400, "Please use a valid role: user, model.", f"contents[{number}].role")
            text = _text(content.get("parts"), f"contents[{number}].parts")
            words += len(text.split())
            if content.get("role", "user") == "user" and text and number < len(contents):
                prompt = text
        stream = method == "streamGenerateContent"
        sse = parse_qs(query).get("alt") == ["sse"]
        model, inputs = unquote(match["model"]), len(contents)
        return GeminiAsked(model, stream, prompt, words, True, method=method, inputs=inputs, sse=sse)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        assert isinstance(asked, GeminiAsked)
        return _Encoder(asked, serial)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        name, words = _STATUS.get(status) or _STATUS[500 if status >= 500 else 400]
        return _dump({"error": _error(status, name, message or words, param, code)})

    def models(self, names: Sequence[str]) -> bytes:
        methods = ["generateContent", "countTokens"]
        rows = [{"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods} for name in names]
        return _dump({"models": rows})


class _Encoder:
    stop = "STOP"
    called = "STOP"

    def __init__(self, asked: GeminiAsked, serial: int) -> None:
        self._asked = asked
        self._serial = serial
        self._call: tuple[int, str, list[str]] | None = None
        self._first = True
        self.content_type = "text/event-stream" if asked.sse else "application/json; charset=UTF-8"

    def begin(self) -> bytes:
        return b""

    def text(self, piece: str) -> bytes:
        return self._called() + self._chunk([{"text": piece}])

    def reasoning(self, piece: str) -> bytes:
        return self._called() + self._chunk([{"text": piece, "thought": True}])

    def refusal(self, piece: str) -> bytes:
        return self.text(piece)

    def tool(self, index: int, name: str) -> bytes:
        before = self._called()
        self._call = (index, name, [])
        return before

    def arguments(self, index: int, piece: str) -> bytes:
        assert self._call is not None
        self._call[2].append(piece)
        return b""

    def finish(self, reason: str) -> bytes:
        return self._called() + self._chunk([], reason)

    def usage(self, figures: Figures) -> bytes:
        return self._called() + self._framed({**self._identity(), "usageMetadata": _usage(figures)})

    def done(self) -> bytes:
        return b"" if self._asked.sse else b"]"

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return self._called() + self._event(self.whole_error(message, kind, code))

    def comment(self, text: str) -> bytes:
        return b"".join(b": " + line.encode("utf-8", "replace") + b"\r\n" for line in text.split("\n")) + b"\r\n"

    def bad_json(self) -> bytes:
        return b'data: {"candidates": [{"content": {"parts": [{"text": "brok\r\n\r\n'

    def unknown_event(self) -> bytes:
        return self._event(b'{"scriptedUnknown":{"note":"nobody knows this document"}}')

    def whole(self, answer: Answer) -> bytes:
        method = self._asked.method
        if method == "countTokens":
            return _dump({"totalTokens": self._asked.words})
        if method in ("embedContent", "batchEmbedContents"):
            vectors = [{"values": [number + 0.5, -0.25, 1.0]} for number in range(self._asked.inputs)]
            return _dump({"embedding": vectors[0]} if method == "embedContent" else {"embeddings": vectors})
        parts: list[dict[str, Any]] = []
        if answer.reasoning:
            parts.append({"text": answer.reasoning, "thought": True})
        if answer.text or answer.refusal:
            parts.append({"text": answer.text + answer.refusal})
        parts += [_call(index, name, arguments) for index, (name, arguments) in enumerate(answer.tools)]
        document = self._document(parts, answer.finish)
        if answer.usage is not None:
            document["usageMetadata"] = _usage(answer.usage)
        return json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace")  # Google's are not on one line

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        number = int(code) if code is not None and code.isdecimal() else 500
        return _dump({"error": _error(number, (_STATUS.get(number) or _STATUS[500])[0], message, None, None)})

    def _called(self) -> bytes:
        """The call whose pieces are all there."""
        if self._call is None:
            return b""
        index, name, pieces = self._call
        self._call = None
        return self._chunk([_call(index, name, "".join(pieces))])

    def _chunk(self, parts: list[dict[str, Any]], finish: str | None = None) -> bytes:
        return self._framed(self._document(parts, finish))

    def _document(self, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = finish
        return {"candidates": [candidate], **self._identity()}

    def _identity(self) -> dict[str, str]:
        return {"modelVersion": self._asked.model, "responseId": f"scripted{self._serial}"}

    def _framed(self, document: Mapping[str, Any]) -> bytes:
        return self._event(_dump(document))

    def _event(self, data: bytes) -> bytes:
        if self._asked.sse:
            return b"data: " + data + b"\r\n\r\n"
        first, self._first = self._first, False
        return (b"[" if first else b",\r\n") + data


def _text(parts: Any, where: str) -> str:
    """The text of a content. Raises BadRequest for what is no part of one."""
    if parts is None:
        return ""
    if not isinstance(parts, list):
        raise BadRequest(400, "Invalid value at 'contents.parts'", where)
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, dict) or not part:
            raise BadRequest(400, "* contents.parts: must have one initialized field", where)
        answer = part.get("functionResponse")
        if answer is not None and not (isinstance(answer.get("response"), dict) and isinstance(answer.get("name"), str)):
            raise BadRequest(400, "* functionResponse: name and response are required", where)
        if isinstance(part.get("text"), str) and not part.get("thought"):
            texts.append(part["text"])
    return "\n".join(texts)


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    """A call as newer models make it: without an id, signed where it is the first of its step."""
    try:
        args = json.loads(arguments or "{}")
    except ValueError:
        args = {"unparsable": arguments}
    part: dict[str, Any] = {"functionCall": {"name": name, "args": args}}
    if index == 0:
        part["thoughtSignature"] = base64.b64encode(b"scripted signature").decode()
    return part


def _usage(figures: Figures) -> dict[str, Any]:
    made = {
        "promptTokenCount": figures.input,
        "candidatesTokenCount": figures.output - figures.reasoning,
        "totalTokenCount": figures.total,
    }
    if figures.cached:
        made["cachedContentTokenCount"] = figures.cached
    if figures.reasoning:
        made["thoughtsTokenCount"] = figures.reasoning
    return made


def _error(code: int, status: str, message: str, param: str | None, reason: str | None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    details: list[dict[str, Any]] = []
    if param is not None:
        details.append({"@type": _TYPE + "BadRequest", "fieldViolations": [{"field": param, "description": message}]})
    if reason is not None:
        details.append({"@type": _TYPE + "ErrorInfo", "reason": reason, "domain": "googleapis.com"})
    if code == 429:
        details.append({"@type": _TYPE + "RetryInfo", "retryDelay": "12s"})
    return {**error, "details": details} if details else error


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _dump(value: Any) -> bytes:
    try:
        return _json(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
