"""Responses events by hand, for tests: bytes as a provider sends them."""

from __future__ import annotations

import json
from typing import Any


def sse(*events: dict[str, Any]) -> bytes:
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return "".join([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in numbered]).encode()


def response(status: str, output: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": "gpt-x", "output": output or [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields,
    }  # fmt: skip


USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 12,
}
BEGIN: list[dict[str, Any]] = [
    {"type": "response.created", "response": response("in_progress")},
    {"type": "response.in_progress", "response": response("in_progress")},
]


def reasoning(index: int, *pieces: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of one item, and the item."""
    at = {"item_id": "rs_1", "output_index": index, "summary_index": 0}
    text = "".join(pieces)
    item = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}], "encrypted_content": "gAAA"}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": {"id": "rs_1", "type": "reasoning", "summary": []}},
        {"type": "response.reasoning_summary_part.added", **at, "part": {"type": "summary_text", "text": ""}},
        *[{"type": "response.reasoning_summary_text.delta", **at, "delta": piece} for piece in pieces],
        {"type": "response.reasoning_summary_text.done", **at, "text": text},
        {"type": "response.reasoning_summary_part.done", **at, "part": {"type": "summary_text", "text": text}},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ], item


def message(index: int, *pieces: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    at = {"item_id": "msg_1", "output_index": index, "content_index": 0}
    head = {"id": "msg_1", "type": "message", "role": "assistant"}
    part = {"type": "output_text", "text": "".join(pieces), "annotations": [], "logprobs": []}
    item = {**head, "status": "completed", "content": [part]}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": {**head, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *[{"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []} for piece in pieces],
        {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ], item


def call(index: int, *pieces: str, name: str = "f", space: str | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    head: dict[str, Any] = {"id": f"fc_{index}", "type": "function_call", "call_id": f"call_{index}", "name": name}
    if space is not None:
        head["namespace"] = space
    at = {"item_id": f"fc_{index}", "output_index": index}
    item = {**head, "arguments": "".join(pieces), "status": "completed"}
    added = {**head, "arguments": "", "status": "in_progress"}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": added},
        *[{"type": "response.function_call_arguments.delta", **at, "delta": piece} for piece in pieces],
        {"type": "response.function_call_arguments.done", **at, "name": name, "arguments": item["arguments"]},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ], item


def answer(*items: tuple[list[dict[str, Any]], dict[str, Any]], status: str = "completed", **fields: Any) -> list[dict[str, Any]]:
    events = [event for told, _ in items for event in told]
    end = response(status, [item for _, item in items], usage=USAGE, **fields)
    return [*BEGIN, *events, {"type": f"response.{status}", "response": end}]


FULL = answer(reasoning(0, "be", "cause"), message(1, "caf\u00e9 \u2028 ", "\U0001f600"), call(2, '{"a":', "1}"), call(3, "{}"))
