"""What a client of each format understands of an answer. As strict as the vendors' SDKs: order, end markers, names of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field


@define
class Seen:
    """An answer, whatever the format. `finish` is in OpenAI's words."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, Any]] = field(factory=dict)
    """By index: id, name, arguments (JSON text)."""
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    """What it was told went wrong: a message."""
    ended: bool = False
    """By the format's own end marker."""

    def called(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [(call["id"], call["name"], json.loads(call["arguments"])) for _, call in sorted(self.calls.items())]


def events(body: bytes) -> Iterator[tuple[str, Any]]:
    """Server-sent events as `(name, data)`; `[DONE]` as it is."""
    for block in body.replace(b"\r\n", b"\n").decode().split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].strip())
        if data:
            text = "\n".join(data)
            yield name, text if text == "[DONE]" else json.loads(text)


def openai_chat(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    if not stream:
        document = json.loads(body)
        choice = document["choices"][0]
        _openai_delta(seen, choice["message"])
        seen.finish, seen.ended = choice["finish_reason"], True
        _openai_usage(seen, document["usage"])
        return seen
    for _, data in events(body):
        assert not seen.ended
        if data == "[DONE]":
            seen.ended = True
        elif data.get("error"):
            seen.error = data["error"]["message"]
        else:
            assert data["object"] == "chat.completion.chunk"
            for choice in data["choices"]:
                _openai_delta(seen, choice["delta"])
                seen.finish = choice["finish_reason"] or seen.finish
            if data.get("usage"):
                _openai_usage(seen, data["usage"])
    return seen


def _openai_delta(seen: Seen, delta: dict[str, Any]) -> None:
    seen.text += delta.get("content") or ""
    seen.reasoning += delta.get("reasoning_content") or ""
    for place, call in enumerate(delta.get("tool_calls") or ()):
        mine = seen.calls.setdefault(call.get("index", place), {"id": "", "name": "", "arguments": ""})
        mine["id"] = call.get("id") or mine["id"]
        mine["name"] = call["function"].get("name") or mine["name"]
        mine["arguments"] += call["function"].get("arguments") or ""


def _openai_usage(seen: Seen, usage: dict[str, Any]) -> None:
    seen.input_tokens, seen.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    assert usage["total_tokens"] == seen.input_tokens + seen.output_tokens


def openai_responses(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    if not stream:
        _response(seen, json.loads(body))
        return seen
    text = reasoning = ""
    number = -1
    for name, data in events(body):
        assert not seen.ended
        assert name == data["type"]
        assert data["sequence_number"] > number
        number = data["sequence_number"]
        if name == "response.output_text.delta":
            text += data["delta"]
        elif name in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            reasoning += data["delta"]
        elif name in ("response.completed", "response.incomplete"):
            _response(seen, data["response"])
            assert (seen.text, seen.reasoning) == (text, reasoning)
        elif name == "response.failed":
            seen.error = data["response"]["error"]["message"]
        elif name == "error":
            seen.error = data["message"]
    seen.text, seen.reasoning = text, reasoning
    return seen


def _response(seen: Seen, response: dict[str, Any]) -> None:
    assert response["object"] == "response"
    for item in response["output"]:
        if item["type"] == "message":
            seen.text += "".join(part["text"] for part in item["content"] if part["type"] == "output_text")
        elif item["type"] == "reasoning":
            pieces = item.get("summary") or item.get("content") or ()
            seen.reasoning += "".join(part["text"] for part in pieces)
        elif item["type"] == "function_call":
            seen.calls[len(seen.calls)] = {"id": item["call_id"], "name": item["name"], "arguments": item["arguments"]}
    incomplete = response["status"] == "incomplete"
    seen.finish = "length" if incomplete else "tool_calls" if seen.calls else "stop"
    seen.input_tokens, seen.output_tokens = response["usage"]["input_tokens"], response["usage"]["output_tokens"]
    seen.ended = response["status"] in ("completed", "incomplete")


_ANTHROPIC = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def anthropic(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    if not stream:
        message = json.loads(body)
        assert (message["type"], message["role"]) == ("message", "assistant")
        for block in message["content"]:
            if block["type"] == "text":
                seen.text += block["text"]
            elif block["type"] == "thinking":
                seen.reasoning += block["thinking"]
            elif block["type"] == "tool_use":
                seen.calls[len(seen.calls)] = {
                    "id": block["id"], "name": block["name"], "arguments": json.dumps(block["input"]),
                }  # fmt: skip
        seen.finish, seen.ended = _ANTHROPIC[message["stop_reason"]], True
        _anthropic_usage(seen, message["usage"])
        return seen
    begun: dict[int, str] = {}
    for name, data in events(body):
        assert not seen.ended
        assert name == data["type"]
        if name == "content_block_start":
            assert data["index"] == len(begun)
            block = data["content_block"]
            begun[data["index"]] = block["type"]
            if block["type"] == "tool_use":
                seen.calls[data["index"]] = {"id": block["id"], "name": block["name"], "arguments": ""}
        elif name == "content_block_delta":
            delta = data["delta"]
            if delta["type"] == "text_delta":
                seen.text += delta["text"]
            elif delta["type"] == "thinking_delta":
                seen.reasoning += delta["thinking"]
            elif delta["type"] == "input_json_delta":
                seen.calls[data["index"]]["arguments"] += delta["partial_json"]
        elif name == "message_delta":
            seen.finish = _ANTHROPIC[data["delta"]["stop_reason"]]
            _anthropic_usage(seen, data["usage"])
        elif name == "message_start":
            _anthropic_usage(seen, data["message"]["usage"])
        elif name == "message_stop":
            seen.ended = True
        elif name == "error":
            seen.error = data["error"]["message"]
    for call in seen.calls.values():
        call["arguments"] = call["arguments"] or "{}"
    return seen


def _anthropic_usage(seen: Seen, usage: dict[str, Any]) -> None:
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    given = sum(usage.get(part) or 0 for part in parts)
    seen.input_tokens = given or seen.input_tokens
    seen.output_tokens = usage.get("output_tokens", seen.output_tokens)


def gemini(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    for document in [data for _, data in events(body)] if stream else [json.loads(body)]:
        if "error" in document:
            seen.error = document["error"]["message"]
            continue
        for candidate in document.get("candidates", ()):
            for part in candidate.get("content", {}).get("parts", ()):
                if "functionCall" in part:
                    call = part["functionCall"]
                    arguments = json.dumps(call.get("args", {}))
                    seen.calls[len(seen.calls)] = {"id": call.get("id", ""), "name": call["name"], "arguments": arguments}
                elif part.get("thought"):
                    seen.reasoning += part.get("text", "")
                else:
                    seen.text += part.get("text", "")
            if candidate.get("finishReason"):
                seen.finish = {"STOP": "stop", "MAX_TOKENS": "length"}[candidate["finishReason"]]
        usage = document.get("usageMetadata", {})
        seen.input_tokens = usage.get("promptTokenCount", seen.input_tokens)
        if "candidatesTokenCount" in usage:
            seen.output_tokens = usage["candidatesTokenCount"] + usage.get("thoughtsTokenCount", 0)
    seen.ended = seen.finish is not None
    if seen.finish == "stop" and seen.calls:
        seen.finish = "tool_calls"  # the format has no word for it
    return seen


def ollama(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    for line in body.splitlines() if stream else [body]:
        if not line.strip():
            continue
        document = json.loads(line)
        assert not seen.ended
        if "error" in document:
            seen.error = document["error"]
            continue
        message = document.get("message", {})
        seen.text += message.get("content") or ""
        seen.reasoning += message.get("thinking") or ""
        for call in message.get("tool_calls") or ():
            function = call["function"]
            assert isinstance(function["arguments"], dict)
            seen.calls[len(seen.calls)] = {
                "id": call.get("id", ""), "name": function["name"], "arguments": json.dumps(function["arguments"]),
            }  # fmt: skip
        if document["done"]:
            seen.ended = True
            seen.finish = "tool_calls" if seen.calls and document["done_reason"] == "stop" else document["done_reason"]
            seen.input_tokens, seen.output_tokens = document.get("prompt_eval_count"), document.get("eval_count")
    return seen


_COHERE = {"COMPLETE": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length", "TOOL_CALL": "tool_calls"}


def cohere(body: bytes, stream: bool) -> Seen:
    seen = Seen()
    if not stream:
        document = json.loads(body)
        message = document["message"]
        seen.text = "".join(part["text"] for part in message.get("content") or () if part["type"] == "text")
        seen.reasoning = message.get("tool_plan") or "".join(
            part["thinking"] for part in message.get("content") or () if part["type"] == "thinking"
        )
        for call in message.get("tool_calls") or ():
            seen.calls[len(seen.calls)] = {"id": call["id"], **call["function"]}
        _cohere_end(seen, document)
        return seen
    for _, data in events(body):
        assert not seen.ended
        kind, delta = data["type"], data.get("delta", {})
        message = delta.get("message", {}) if isinstance(delta, dict) else {}
        if kind == "content-delta":
            seen.text += message["content"].get("text") or ""
            seen.reasoning += message["content"].get("thinking") or ""
        elif kind == "tool-plan-delta":
            seen.reasoning += message["tool_plan"]
        elif kind == "tool-call-start":
            call = message["tool_calls"]
            seen.calls[data["index"]] = {
                "id": call["id"], "name": call["function"]["name"], "arguments": call["function"].get("arguments") or "",
            }  # fmt: skip
        elif kind == "tool-call-delta":
            seen.calls[data["index"]]["arguments"] += message["tool_calls"]["function"]["arguments"]
        elif kind == "message-end":
            if delta.get("finish_reason") in ("ERROR", "TIMEOUT"):
                seen.error = delta.get("error") or delta["finish_reason"]
            else:
                _cohere_end(seen, delta)
    return seen


def _cohere_end(seen: Seen, document: dict[str, Any]) -> None:
    seen.finish, seen.ended = _COHERE[document["finish_reason"]], True
    tokens = document["usage"]["billed_units"]
    seen.input_tokens, seen.output_tokens = int(tokens["input_tokens"]), int(tokens["output_tokens"])


def claw(frames: list[dict[str, Any]]) -> Seen:
    seen = Seen()
    for place, frame in enumerate(frames):
        kind = frame["type"]
        assert frame["seq"] == place
        if kind == "llm_token":
            seen.text += frame["content"]
        elif kind == "llm_reasoning":
            seen.reasoning += frame.get("content") or ""
        elif kind == "llm_tool_call":
            call = seen.calls.setdefault(frame["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] = frame.get("call_id") or call["id"]
            call["name"] = frame.get("name") or call["name"]
            call["arguments"] += frame.get("arguments") or ""
        elif kind == "llm_response_end":
            seen.finish, seen.ended = frame["finish_reason"], True
            seen.input_tokens, seen.output_tokens = frame["usage"]["input_tokens"], frame["usage"]["output_tokens"]
        elif kind == "error":
            seen.error = frame["message"]
    return seen


HTTP: dict[str, Callable[[bytes, bool], Seen]] = {
    "openai_chat": openai_chat,
    "openai_responses": openai_responses,
    "anthropic": anthropic,
    "gemini": gemini,
    "ollama": ollama,
    "cohere": cohere,
}
