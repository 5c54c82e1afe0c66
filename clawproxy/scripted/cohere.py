"""Cohere's chat and embeddings (API v2), as a provider writes them. Source: Cohere's API reference and the official Python SDK.

Reasoning is a block of thinking, or a plan (`tool_plan`) where its first word is `plan:`, for a stream can not know what follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder, Figures
from clawproxy.scripted.openai_chat import _dump, _text

_WORDS: Mapping[int, str] = {
    400: "invalid request: the body could not be read.",
    401: "invalid api token",
    404: "model not found, make sure the correct model ID was used and that you have access to the model.",
    422: "invalid request: a field is of the wrong type.",
    429: "You are past the per minute request limit, please wait and try again later.",
    498: "invalid api token",
    500: "internal server error",
    503: "service unavailable",
}
_FINISH = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL"}
PLAN = "plan:"


@frozen(slots=True)
class EmbedAsked(Asked):
    """A request for vectors."""

    texts: Sequence[str] = ()
    kinds: Sequence[str] = ("float",)


class Cohere:
    name = "cohere"
    answers: Sequence[str] = ("/v2/chat", "/v2/embed")
    pattern: re.Pattern[str] | None = None
    lists: Sequence[str] = ()

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "invalid request: the body must be a JSON object.")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "invalid request: model is required.")
        if target.partition("?")[0].endswith("/embed"):
            return _embed(model, body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest(400, "invalid request: messages must be at least 1 item long.")
        prompt, words = "", 0
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant", "tool"):
                raise BadRequest(422, f"invalid request: messages[{number}].role is not valid.")
            text = _text(message.get("content"))
            words += len(text.split())
            if message["role"] == "user":
                prompt = text
        return Asked(model, body.get("stream") is True, prompt, words, True)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return _Encoder(asked, serial)

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        return _dump({"id": "scripted", "message": message or _WORDS.get(status) or _WORDS[500]})

    def models(self, names: Sequence[str]) -> bytes:
        return _dump({"models": [{"name": name, "endpoints": ["chat"]} for name in names]})


def _embed(model: str, body: dict[str, Any]) -> EmbedAsked:
    if body.get("input_type") is None:
        raise BadRequest(400, "invalid request: input_type is required.")
    texts = body.get("texts")
    if texts is None:
        texts = ["" for _ in body.get("images") or body.get("inputs") or ()]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(400, "invalid request: texts must be at least 1 item long.")
    words = sum(len(text.split()) for text in texts)
    said = body.get("embedding_types")
    kinds = [kind for kind in said if isinstance(kind, str)] if isinstance(said, list) else []
    return EmbedAsked(model, False, "", words, True, texts=texts, kinds=kinds or ("float",))


def vector(text: str) -> list[float]:
    """The same for the same text."""
    return [float(len(text)), float(len(text.split())), 0.5]


class _Encoder:
    content_type = "text/event-stream"
    stop = "COMPLETE"
    called = "TOOL_CALL"

    def __init__(self, asked: Asked, serial: int) -> None:
        self._asked = asked
        self._id = f"scripted-{serial}"
        self._block = ""
        self._blocks = 0
        self._call: int | None = None
        self._planning = False
        self._end: dict[str, Any] = {"finish_reason": self.stop}

    def begin(self) -> bytes:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        return _event("message-start", id=self._id, delta={"message": message})

    def text(self, piece: str) -> bytes:
        return self._said("text", piece)

    def refusal(self, piece: str) -> bytes:
        return self._said("text", piece)

    def reasoning(self, piece: str) -> bytes:
        if self._planning or piece.strip() == PLAN:
            self._planning = True
            plan = "" if piece.strip() == PLAN else piece
            return _event("tool-plan-delta", delta={"message": {"tool_plan": plan}})
        return self._said("thinking", piece)

    def tool(self, index: int, name: str) -> bytes:
        before = self._close()
        self._call = index
        call = {"id": f"{name}_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        return before + _event("tool-call-start", index=index, delta={"message": {"tool_calls": call}})

    def arguments(self, index: int, piece: str) -> bytes:
        call = {"function": {"arguments": piece}}
        return _event("tool-call-delta", index=index, delta={"message": {"tool_calls": call}})

    def finish(self, reason: str) -> bytes:
        self._end["finish_reason"] = _FINISH.get(reason, reason)
        return self._close()

    def usage(self, figures: Figures) -> bytes:
        """Told at the very end only."""
        self._end["usage"] = _usage(figures)
        return b""

    def done(self) -> bytes:
        return _event("message-end", id=self._id, delta=self._end)

    def error(self, message: str, kind: str, code: str | None) -> bytes:
        return _event("message-end", id=self._id, delta={"error": message, "finish_reason": "ERROR"})

    def comment(self, text: str) -> bytes:
        return b"".join(b": " + line.encode("utf-8", "replace") + b"\n" for line in text.split("\n")) + b"\n"

    def bad_json(self) -> bytes:
        return b'event: content-delta\ndata: {"type":"content-delta","delta":{"mess\n\n'

    def unknown_event(self) -> bytes:
        return _event("scripted-unknown", note="nobody knows this event")

    def citation(self, text: str) -> bytes:
        """One citation, begun and ended. For scripts that send `raw` bytes."""
        cited = {"start": 0, "end": len(text), "text": text, "sources": [], "type": "TEXT_CONTENT"}
        start = _event("citation-start", index=0, delta={"message": {"citations": cited}})
        return start + _event("citation-end", index=0)

    def whole(self, answer: Answer) -> bytes:
        if isinstance(self._asked, EmbedAsked):
            return self._vectors(self._asked, answer)
        message: dict[str, Any] = {"role": "assistant"}
        if answer.tools:
            message["tool_plan"] = answer.reasoning
            message["tool_calls"] = [
                {"id": f"{name}_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(answer.tools)
            ]
        else:
            thinking = [{"type": "thinking", "thinking": answer.reasoning}] if answer.reasoning else []
            message["content"] = [*thinking, {"type": "text", "text": answer.text + answer.refusal}]
        finish = _FINISH.get(answer.finish or self.stop, answer.finish or self.stop)
        document = {"id": self._id, "finish_reason": finish, "message": message}
        return _dump(document if answer.usage is None else {**document, "usage": _usage(answer.usage)})

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        return _dump({"id": self._id, "message": message})

    def _said(self, kind: str, piece: str) -> bytes:
        before = b""
        if self._block != kind:
            before = self._close()
            before += _event("content-start", index=self._blocks, delta={"message": {"content": {"type": kind, kind: ""}}})
            self._block = kind
            self._blocks += 1
        return before + _event("content-delta", index=self._blocks - 1, delta={"message": {"content": {kind: piece}}})

    def _close(self) -> bytes:
        out = b""
        if self._block:
            out, self._block = _event("content-end", index=self._blocks - 1), ""
        if self._call is not None:
            out, self._call = out + _event("tool-call-end", index=self._call), None
        return out

    def _vectors(self, asked: EmbedAsked, answer: Answer) -> bytes:
        made = [vector(text) for text in asked.texts]
        by_type = {kind: made if kind == "float" else [[int(x) for x in each] for each in made] for kind in asked.kinds}
        meta: dict[str, Any] = {"api_version": {"version": "2"}}
        if answer.usage is not None:
            meta["billed_units"] = {"input_tokens": answer.usage.input}
        return _dump(
            {
                "id": self._id,
                "embeddings": by_type,
                "texts": list(asked.texts),
                "response_type": "embeddings_by_type",
                "meta": meta,
            }
        )


def _usage(figures: Figures) -> dict[str, Any]:
    spent = {"input_tokens": figures.input, "output_tokens": figures.output}
    # What is billed leaves out what Cohere itself wraps around a prompt.
    seen = {"input_tokens": figures.input + 60, "output_tokens": figures.output}
    return {"billed_units": spent, "tokens": seen, "cached_tokens": figures.cached}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _dump({"type": kind, **fields}) + b"\n\n"
