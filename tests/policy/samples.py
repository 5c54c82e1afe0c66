"""Answers of every provider format that hold a text in every place a text can stand, the ones no vocabulary has a word for too.

Written by hand from the vendors' documents. `places` gives every string of an answer that may hold words of a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

CANARY = "sk-proj-Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3"
"""What no policy lets through: the sanitizer knows it as a key."""

_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
_CHUNK: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_CITED = {"type": "url_citation", "url_citation": {"url": "https://a.test", "title": "a title", "start_index": 0, "end_index": 1}}
_LOGPROBS = {"content": [{"token": "word", "logprob": -1, "bytes": [1], "top_logprobs": [{"token": "else", "logprob": -2}]}]}


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


OPENAI_STREAM: list[dict[str, Any]] = [
    _chunk({"role": "assistant", "content": ""}),
    _chunk({"reasoning_content": "thought"}),
    _chunk({"reasoning": "thought", "reasoning_details": [{"type": "reasoning.text", "text": "thought in detail"}]}),
    _chunk({"content": "word"}, logprobs=_LOGPROBS),
    _chunk({"content": "cited", "annotations": [_CITED]}),
    _chunk({"refusal": "no"}),
    _chunk({"audio": {"id": "a1", "transcript": "spoken"}}),
    _chunk({"tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]}),
    {**_chunk({"content": "more"}), "unknown": {"note": "beside"}},
    _chunk({}, "stop"),
    {**_CHUNK, "choices": [], "usage": _USAGE},
]
OPENAI_WHOLE: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "words",
                "refusal": "no",
                "reasoning_content": "thought",
                "annotations": [_CITED],
                "audio": {"id": "a1", "data": "", "transcript": "spoken"},
                "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
            },
            "logprobs": _LOGPROBS,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


_FOUND = {"type": "web_search_result", "url": "https://a.test", "title": "a title", "page_age": "new", "encrypted_content": ""}
_A_USAGE = {"input_tokens": 3, "output_tokens": 1}
ANTHROPIC_BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "thought", "signature": ""},
    {"type": "text", "text": "word", "citations": [{"type": "char_location", "cited_text": "cited", "document_title": "title"}]},
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "asked"}},
    {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [_FOUND]},
    {"type": "code_execution_tool_result", "tool_use_id": "s1", "content": {"stdout": "out", "stderr": "err", "return_code": 0}},
    {"type": "mcp_tool_result", "tool_use_id": "s1", "is_error": False, "content": [{"type": "text", "text": "of a tool"}]},
    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "of a call"}},
    {"type": "not_yet_known", "words": "anything"},
]
ANTHROPIC_STREAM: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": _A_USAGE,
        },
    },
    *_block(0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "thought"}),
    *_block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "word"},
        {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "cited", "document_title": "title"}},
    ),
    *_block(
        2,
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"query": "asked"}'},
    ),
    *_block(3, ANTHROPIC_BLOCKS[3]),
    *_block(4, ANTHROPIC_BLOCKS[4]),
    *_block(5, ANTHROPIC_BLOCKS[5]),
    *_block(
        6,
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"a": "of a call"}'},
    ),
    *_block(7, ANTHROPIC_BLOCKS[7], {"type": "not_yet_known_delta", "words": "anything"}),
    {"type": "not_yet_known_event", "words": "anything"},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "refusal", "stop_sequence": None, "stop_details": {"explanation": "why not"}},
        "usage": {"output_tokens": 5},
    },
    {"type": "message_stop"},
]  # fmt: skip
ANTHROPIC_WHOLE: dict[str, Any] = {
    "id": "m1", "type": "message", "role": "assistant", "model": "m", "content": ANTHROPIC_BLOCKS, "stop_reason": "end_turn",
    "stop_sequence": None, "usage": _A_USAGE,
}  # fmt: skip


_G_USAGE = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
_GROUNDED = {"webSearchQueries": ["asked"], "groundingChunks": [{"web": {"uri": "https://a.test", "title": "a title"}}]}


def _gemini(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **more}
    return {"candidates": [candidate], "usageMetadata": _G_USAGE, "modelVersion": "m", "responseId": "r1"}


_GEMINI_PARTS: list[dict[str, Any]] = [
    {"text": "thought", "thought": True},
    {"text": "word"},
    {"functionCall": {"id": "t1", "name": "f", "args": {"a": "of a call"}}},
    {"executableCode": {"language": "PYTHON", "code": "print('x')"}},
    {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "x"}},
    {"notYetKnown": {"words": "anything"}},
]
GEMINI_STREAM: list[dict[str, Any]] = [
    *(_gemini(part) for part in _GEMINI_PARTS),
    _gemini({"text": "end"}, finishReason="STOP", finishMessage="why", groundingMetadata=_GROUNDED),
]
GEMINI_WHOLE: dict[str, Any] = _gemini(*_GEMINI_PARTS, finishReason="STOP", finishMessage="why", groundingMetadata=_GROUNDED)


_R_USAGE = {
    "input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5,
}  # fmt: skip
_R_TEXT = {"type": "output_text", "text": "word", "annotations": [{"type": "url_citation", "title": "a title"}], "logprobs": []}
_R_ITEMS: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs1", "summary": [{"type": "summary_text", "text": "thought"}]},
    {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [_R_TEXT]},
    {"type": "function_call", "id": "fc1", "call_id": "t1", "name": "f", "arguments": '{"a":"b"}', "status": "completed"},
    {"type": "web_search_call", "id": "ws1", "status": "completed", "action": {"type": "search", "query": "asked"}},
    {"type": "code_interpreter_call", "id": "ci1", "status": "completed", "code": "print(1)", "outputs": [{"logs": "said"}]},
    {"type": "mcp_call", "id": "mc1", "name": "f", "server_label": "s", "arguments": "{}", "output": "of a tool"},
    {"type": "not_yet_known", "id": "x1", "words": "anything"},
]
RESPONSES_WHOLE: dict[str, Any] = {
    "id": "resp1", "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": _R_ITEMS,
    "error": None, "incomplete_details": None, "usage": _R_USAGE, "instructions": "as told",
}  # fmt: skip


def _responses() -> list[dict[str, Any]]:
    begun = {**RESPONSES_WHOLE, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(_R_ITEMS):
        at = {"output_index": index, "item_id": item["id"]}
        empty = {**item, "content": []} if item["type"] == "message" else item
        if item["type"] == "function_call":
            empty = {**item, "arguments": ""}
        if item["type"] == "reasoning":
            empty = {**item, "summary": []}
        events.append({"type": "response.output_item.added", "output_index": index, "item": empty})
        if item["type"] == "message":
            place = {**at, "content_index": 0}
            events += [
                {"type": "response.content_part.added", **place, "part": {**_R_TEXT, "text": "", "annotations": []}},
                {"type": "response.output_text.delta", **place, "delta": "word", "logprobs": []},
                {"type": "response.output_text.annotation.added", **place, "annotation": {"type": "x", "title": "a title"}},
                {"type": "response.output_text.done", **place, "text": "word", "logprobs": []},
                {"type": "response.content_part.done", **place, "part": _R_TEXT},
            ]
        elif item["type"] == "reasoning":
            place = {**at, "summary_index": 0}
            part = {"type": "summary_text", "text": "thought"}
            events += [
                {"type": "response.reasoning_summary_part.added", **place, "part": {"type": "summary_text", "text": ""}},
                {"type": "response.reasoning_summary_text.delta", **place, "delta": "thought"},
                {"type": "response.reasoning_summary_text.done", **place, "text": "thought"},
                {"type": "response.reasoning_summary_part.done", **place, "part": part},
            ]
        elif item["type"] == "function_call":
            events += [
                {"type": "response.function_call_arguments.delta", **at, "delta": '{"a":"b"}'},
                {"type": "response.function_call_arguments.done", **at, "name": "f", "arguments": '{"a":"b"}'},
            ]
        elif item["type"] == "code_interpreter_call":
            events += [
                {"type": "response.code_interpreter_call_code.delta", **at, "delta": "print(1)"},
                {"type": "response.code_interpreter_call_code.done", **at, "code": "print(1)"},
            ]
        elif item["type"] == "mcp_call":
            events.append({"type": "response.mcp_call_arguments.delta", **at, "delta": "{}"})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.not_yet_known", "words": "anything"})
    events.append({"type": "response.completed", "response": RESPONSES_WHOLE})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


RESPONSES_STREAM = _responses()


_CALL = {"id": "t1", "function": {"name": "f", "arguments": {"a": "of a call"}}}
OLLAMA_STREAM: list[dict[str, Any]] = [
    {"model": "m", "created_at": "2026", "message": {"role": "assistant", "content": "", "thinking": "thought"}, "done": False},
    {"model": "m", "created_at": "2026", "message": {"role": "assistant", "content": "word"}, "done": False},
    {"model": "m", "created_at": "2026", "message": {"role": "assistant", "content": "", "tool_calls": [_CALL]}, "done": False},
    {"model": "m", "created_at": "2026", "message": {"role": "assistant", "content": "x"}, "words": "anything", "done": False},
    {
        "model": "m", "created_at": "2026", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
        "prompt_eval_count": 3, "eval_count": 2,
    },
]  # fmt: skip
OLLAMA_WHOLE: dict[str, Any] = {
    **OLLAMA_STREAM[-1],
    "message": {"role": "assistant", "content": "word", "thinking": "thought", "tool_calls": [_CALL]},
    "logprobs": [{"token": "word", "logprob": -1}],
}


_C_CITED = {
    "start": 0,
    "end": 1,
    "text": "cited",
    "sources": [{"type": "document", "id": "d1", "document": {"title": "a title"}}],
}
_C_CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
_C_USAGE = {"billed_units": {"input_tokens": 3, "output_tokens": 2}, "tokens": {"input_tokens": 3, "output_tokens": 2}}


def _cohere(kind: str, message: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": message}}


COHERE_STREAM: list[dict[str, Any]] = [
    {"type": "message-start", "id": "m1", "delta": {"message": {"role": "assistant"}}},
    _cohere("tool-plan-delta", {"tool_plan": "planned"}),
    _cohere("content-start", {"content": {"type": "text", "text": ""}}),
    _cohere("content-delta", {"content": {"text": "word"}}),
    _cohere("citation-start", {"citations": _C_CITED}),
    {"type": "citation-end", "index": 0},
    {"type": "content-end", "index": 0},
    _cohere("tool-call-start", {"tool_calls": _C_CALL}),
    {"type": "tool-call-end", "index": 0},
    {"type": "not-yet-known", "words": "anything"},
    {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _C_USAGE}},
]
COHERE_WHOLE: dict[str, Any] = {
    "id": "m1",
    "finish_reason": "COMPLETE",
    "message": {
        "role": "assistant",
        "tool_plan": "planned",
        "content": [{"type": "thinking", "thinking": "thought"}, {"type": "text", "text": "word"}],
        "citations": [_C_CITED],
        "tool_calls": [_C_CALL],
    },
    "usage": _C_USAGE,
}


STREAMS: dict[str, list[dict[str, Any]]] = {
    "openai_chat": OPENAI_STREAM,
    "openai_responses": RESPONSES_STREAM,
    "anthropic": ANTHROPIC_STREAM,
    "gemini": GEMINI_STREAM,
    "ollama": OLLAMA_STREAM,
    "cohere": COHERE_STREAM,
}
WHOLE: dict[str, dict[str, Any]] = {
    "openai_chat": OPENAI_WHOLE,
    "openai_responses": RESPONSES_WHOLE,
    "anthropic": ANTHROPIC_WHOLE,
    "gemini": GEMINI_WHOLE,
    "ollama": OLLAMA_WHOLE,
    "cohere": COHERE_WHOLE,
}


def written(dialect: str, events: list[dict[str, Any]]) -> str:
    """A stream as its provider writes it."""
    texts = [json.dumps(event) for event in events]
    if dialect == "ollama":
        return "".join(text + "\n" for text in texts)
    if dialect in ("openai_chat", "gemini"):
        done = "data: [DONE]\n\n" if dialect == "openai_chat" else ""
        return "".join(f"data: {text}\n\n" for text in texts) + done
    return "".join(f"event: {event['type']}\ndata: {text}\n\n" for event, text in zip(events, texts, strict=True))


_NO_WORDS = frozenset(
    (
        *("type", "id", "object", "role", "status", "model", "modelVersion", "responseId", "created_at", "language", "outcome"),
        *("finish_reason", "finishReason", "stop_reason", "done_reason", "stop_sequence", "page_age", "server_label"),
        *("item_id", "call_id", "tool_use_id", "tool_call_id", "url", "uri", "signature", "encrypted_content", "data"),
    )
)
"""Keys whose strings only machines read."""


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where texts stand."""
    if isinstance(value, str):
        if path[-1] not in _NO_WORDS and value:
            yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


def planted(value: Any, path: tuple[str | int, ...], text: str = CANARY) -> Any:
    """A copy with `text` inside the string at `path`."""
    made = json.loads(json.dumps(value))  # not a copy, which would keep what is shared shared
    at = made
    for step in path[:-1]:
        at = at[step]
    old = at[path[-1]]
    at[path[-1]] = json.dumps({"a": f"my {text} ."}) if old[:1] == "{" else f"{old} my {text} ."
    return made
