"""Requests of every client format that hold a text in every place one can stand. Written by hand from the vendors' documents."""

from __future__ import annotations

import base64
from typing import Any

from tests.matrix.cells import PNG

_SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "which one"}}}
_NOTE = base64.b64encode(b"a note").decode()

OPENAI: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "told"},
        {"role": "developer", "content": [{"type": "text", "text": "told too"}], "name": "dev"},
        {"role": "user", "content": [
            {"type": "text", "text": "asked", "beside": {"note": "more"}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            {"type": "file", "file": {"filename": "name.txt", "file_data": f"data:text/plain;base64,{_NOTE}"}},
        ]},
        {"role": "assistant", "content": "said", "reasoning_content": "thought", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
        ], "beside": "anything"},
        {"role": "tool", "tool_call_id": "t1", "content": "result"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "what for", "parameters": _SCHEMA}, "beside": "x y"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "description": "form", "schema": _SCHEMA}},
    "stop": ["end of it"],
    "metadata": {"job": "night"},
    "user": "somebody",
    "prediction": {"type": "content", "content": "foreseen"},
    "web_search_options": {"user_location": {"approximate": {"city": "Paris"}}},
}  # fmt: skip

ANTHROPIC: dict[str, Any] = {
    "max_tokens": 100,
    "system": [{"type": "text", "text": "told", "citations": None}],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "asked"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "document", "title": "a title", "context": "about it",
             "source": {"type": "text", "media_type": "text/plain", "data": "plain"}},
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "in a block"}]}},
            {"type": "search_result", "source": "where", "title": "a title", "content": [{"type": "text", "text": "found"}]},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "thought", "signature": "c2ln"},
            {"type": "text", "text": "said", "citations": [{"type": "char_location", "cited_text": "cited"}]},
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "asked"}},
            {"type": "not_yet_known", "words": "anything"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "b"}, "beside": "x y"},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [
                {"type": "text", "text": "result"},
                {"type": "search_result", "source": "where", "title": "t", "content": [{"type": "text", "text": "found"}]},
            ]},
            {"type": "text", "text": "go on"},
        ]},
    ],
    "tools": [{"name": "f", "description": "what for", "input_schema": _SCHEMA, "input_examples": [{"city": "Paris"}]}],
    "stop_sequences": ["end of it"],
    "metadata": {"user_id": "somebody"},
    "mcp_servers": [{"type": "url", "name": "server", "url": "https://a.test"}],
    "container": {"skills": [{"note": "skill"}]},
}  # fmt: skip

GEMINI: dict[str, Any] = {
    "systemInstruction": {"parts": [{"text": "told"}]},
    "contents": [
        {"role": "user", "parts": [
            {"text": "asked"},
            {"inlineData": {"mimeType": "image/png", "data": PNG}},
            {"inlineData": {"mimeType": "text/plain", "data": _NOTE, "displayName": "name of it"}},
        ]},
        {"role": "model", "parts": [
            {"text": "thought", "thought": True},
            {"text": "said"},
            {"executableCode": {"language": "PYTHON", "code": "print('x')"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "x"}},
            {"functionCall": {"id": "t1", "name": "f", "args": {"a": "b"}}},
        ]},
        {"role": "user", "parts": [{"functionResponse": {"id": "t1", "name": "f", "response": {"result": "of it"}}}]},
    ],
    "tools": [{"functionDeclarations": [{"name": "f", "description": "what for", "parametersJsonSchema": _SCHEMA}]}],
    "generationConfig": {
        "stopSequences": ["end of it"], "responseMimeType": "application/json", "responseJsonSchema": _SCHEMA,
        "beside": {"note": "anything"},
    },
    "labels": {"job": "night"},
    "beside": "anything",
}  # fmt: skip

RESPONSES: dict[str, Any] = {
    "instructions": "told",
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "asked"},
            {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"},
            {"type": "input_file", "filename": "name.txt", "file_data": f"data:text/plain;base64,{_NOTE}"},
        ]},
        {"type": "reasoning", "id": "rs1", "summary": [{"type": "summary_text", "text": "thought"}], "encrypted_content": "ZW5j"},
        {"type": "message", "role": "assistant", "id": "m1", "status": "completed", "content": [
            {"type": "output_text", "text": "said", "annotations": [{"type": "url_citation", "title": "a title"}]},
            {"type": "refusal", "refusal": "no"},
        ]},
        {"type": "function_call", "call_id": "t1", "name": "f", "arguments": '{"a":"b"}', "beside": "x y"},
        {"type": "custom_tool_call", "call_id": "t2", "name": "g", "input": "free"},
        {"type": "function_call_output", "call_id": "t1", "output": "result"},
        {"type": "custom_tool_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "result"}]},
        {"type": "web_search_call", "id": "ws1", "status": "completed", "action": {"type": "search", "query": "asked"}},
        {"type": "mcp_call", "id": "mc1", "name": "f", "server_label": "s", "arguments": "{}", "output": "of a tool"},
        {"type": "not_yet_known", "words": "anything"},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "what for", "parameters": _SCHEMA, "strict": False},
        {"type": "custom", "name": "g", "description": "free form", "format": {"type": "grammar", "definition": "rule: x"}},
        {"type": "mcp", "server_label": "s", "server_url": "https://a.test", "server_description": "about it"},
    ],
    "text": {"format": {"type": "json_schema", "name": "a", "description": "form", "schema": _SCHEMA}},
    "metadata": {"job": "night"},
    "user": "somebody",
    "prompt": {"id": "p1", "variables": {"who": "somebody"}},
    "beside": "anything",
}  # fmt: skip

OLLAMA: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "told"},
        {"role": "user", "content": "asked", "images": [PNG], "beside": "anything"},
        {"role": "assistant", "content": "said", "thinking": "thought", "tool_calls": [
            {"function": {"name": "f", "arguments": {"a": "b"}}}
        ]},
        {"role": "tool", "tool_name": "f", "content": "result"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "what for", "parameters": _SCHEMA}}],
    "format": _SCHEMA,
    "options": {"stop": ["end of it"], "beside": "anything"},
    "beside": {"note": "anything"},
}  # fmt: skip

COHERE: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "told"},
        {"role": "user", "content": [{"type": "text", "text": "asked"}]},
        {"role": "assistant", "tool_plan": "planned", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
        ]},
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "document", "document": {"data": "plain", "id": "d1"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "thought"}, {"type": "text", "text": "said"}],
         "citations": [{"start": 0, "end": 1, "text": "cited", "sources": []}]},
        {"role": "user", "content": "go on"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "what for", "parameters": _SCHEMA}}],
    "documents": ["a document", {"id": "d2", "data": {"title": "a title", "snippet": "found"}}],
    "response_format": {"type": "json_object", "json_schema": _SCHEMA},
    "stop_sequences": ["end of it"],
    "beside": "anything",
}  # fmt: skip

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai_chat": ("/v1/chat/completions", OPENAI),
    "openai_responses": ("/v1/responses", RESPONSES),
    "anthropic": ("/v1/messages", ANTHROPIC),
    "gemini": ("/v1beta/models/{model}:generateContent", GEMINI),
    "ollama": ("/api/chat", {**OLLAMA, "stream": False}),
    "cohere": ("/v2/chat", {**COHERE, "stream": False}),
}
"""Client format -> path, body; the model is still to be said."""
EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai_chat": ("/v1/embeddings", {"input": ["asked", "asked again"], "user": "somebody"}),
    "gemini": (
        "/v1beta/models/{model}:batchEmbedContents",
        {"requests": [{"model": "models/{model}", "content": {"parts": [{"text": "asked"}]}, "title": "a title"}]},
    ),
    "ollama": ("/api/embed", {"input": ["asked", "asked again"]}),
    "cohere": ("/v2/embed", {"texts": ["asked", "again"], "input_type": "search_query", "embedding_types": ["float"]}),
}
