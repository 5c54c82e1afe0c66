"""One question in every format a client may speak. Written by hand, from the vendors' documents, not with our own encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import frozen

SCHEMA = {
    "type": "object",
    "properties": {"answer_in_full": {"type": "integer"}},
    "required": ["answer_in_full"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL, ABOUT = "get_weather", "The weather in a city."


@frozen
class Ask:
    """What is asked, whatever the format.

    Attributes:
        calls, results: an earlier turn, `(id, name, arguments)` and `(id, name, text)`.
        image: base64 of a PNG.
    """

    text: str = "Go on."
    stream: bool = False
    tools: bool = False
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    results: tuple[tuple[str, str, str], ...] = ()
    image: str | None = None
    schema: bool = False
    effort: str | None = None
    stop: tuple[str, ...] = ()


@frozen
class Question:
    """A request ready to send; `path` may hold the model."""

    path: str
    body: bytes
    headers: dict[str, str]


def openai_chat(ask: Ask, model: str) -> Question:
    content: Any = ask.text
    if ask.image:
        content = [
            {"type": "text", "text": ask.text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ask.image}"}},
        ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    if ask.calls:
        calls = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for ident, name, arguments in ask.calls
        ]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": ident, "content": text} for ident, _, text in ask.results]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": ask.stream, "max_tokens": 1000}
    if ask.stream:
        body["stream_options"] = {"include_usage": True}
    if ask.tools:
        body["tools"] = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": PARAMETERS}}]
        body["tool_choice"] = "auto"
    if ask.schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    if ask.effort:
        body["reasoning_effort"] = ask.effort
    if ask.stop:
        body["stop"] = list(ask.stop)
    return _question("/v1/chat/completions", body)


def openai_responses(ask: Ask, model: str) -> Question:
    content: list[dict[str, Any]] = [{"type": "input_text", "text": ask.text}]
    if ask.image:
        content.append({"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{ask.image}"})
    items: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for ident, name, arguments in ask.calls:
        items.append({"type": "function_call", "call_id": ident, "name": name, "arguments": json.dumps(arguments)})
    for ident, _, text in ask.results:
        items.append({"type": "function_call_output", "call_id": ident, "output": text})
    body: dict[str, Any] = {"model": model, "instructions": "Be brief.", "input": items, "stream": ask.stream, "store": False}
    body["max_output_tokens"] = 1000
    if ask.tools:
        body["tools"] = [{"type": "function", "name": TOOL, "description": ABOUT, "parameters": PARAMETERS, "strict": False}]
        body["tool_choice"] = "auto"
    if ask.schema:
        body["text"] = {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": SCHEMA}}
    if ask.effort:
        body["reasoning"] = {"effort": ask.effort, "summary": "auto"}
    return _question("/v1/responses", body)


def anthropic(ask: Ask, model: str) -> Question:
    content: Any = ask.text
    if ask.image:
        source = {"type": "base64", "media_type": "image/png", "data": ask.image}
        content = [{"type": "text", "text": ask.text}, {"type": "image", "source": source}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if ask.calls:
        calls = [{"type": "tool_use", "id": ident, "name": name, "input": arguments} for ident, name, arguments in ask.calls]
        results = [{"type": "tool_result", "tool_use_id": ident, "content": text} for ident, _, text in ask.results]
        messages += [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    body: dict[str, Any] = {
        "model": model, "system": "Be brief.", "messages": messages, "stream": ask.stream, "max_tokens": 1000,
    }  # fmt: skip
    if ask.tools:
        body["tools"] = [{"name": TOOL, "description": ABOUT, "input_schema": PARAMETERS}]
        body["tool_choice"] = {"type": "auto"}
    if ask.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    if ask.effort:
        body["output_config"] = {"effort": ask.effort}
        body["thinking"] = {"type": "adaptive"}
    if ask.stop:
        body["stop_sequences"] = list(ask.stop)
    return _question("/v1/messages", body, {"anthropic-version": "2023-06-01"})


def gemini(ask: Ask, model: str) -> Question:
    parts: list[dict[str, Any]] = [{"text": ask.text}]
    if ask.image:
        parts.append({"inlineData": {"mimeType": "image/png", "data": ask.image}})
    contents: list[dict[str, Any]] = [{"role": "user", "parts": parts}]
    if ask.calls:
        calls = [{"functionCall": {"id": ident, "name": name, "args": arguments}} for ident, name, arguments in ask.calls]
        results = [
            {"functionResponse": {"id": ident, "name": name, "response": {"result": text}}} for ident, name, text in ask.results
        ]
        contents += [{"role": "model", "parts": calls}, {"role": "user", "parts": results}]
    settings: dict[str, Any] = {"maxOutputTokens": 1000}
    if ask.schema:
        settings |= {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    if ask.effort:
        settings["thinkingConfig"] = {"thinkingLevel": ask.effort.upper(), "includeThoughts": True}
    if ask.stop:
        settings["stopSequences"] = list(ask.stop)
    body: dict[str, Any] = {
        "systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": contents, "generationConfig": settings,
    }  # fmt: skip
    if ask.tools:
        body["tools"] = [{"functionDeclarations": [{"name": TOOL, "description": ABOUT, "parametersJsonSchema": PARAMETERS}]}]
        body["toolConfig"] = {"functionCallingConfig": {"mode": "AUTO"}}
    method = "streamGenerateContent?alt=sse" if ask.stream else "generateContent"
    return _question(f"/v1beta/models/{model}:{method}", body)


def ollama(ask: Ask, model: str) -> Question:
    user: dict[str, Any] = {"role": "user", "content": ask.text}
    if ask.image:
        user["images"] = [ask.image]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, user]
    if ask.calls:
        calls = [{"function": {"name": name, "arguments": arguments}} for _, name, arguments in ask.calls]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [{"role": "tool", "tool_name": name, "content": text} for _, name, text in ask.results]
    options: dict[str, Any] = {"num_predict": 1000}
    if ask.stop:
        options["stop"] = list(ask.stop)
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": ask.stream, "options": options}
    if ask.tools:
        body["tools"] = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": PARAMETERS}}]
    if ask.schema:
        body["format"] = SCHEMA
    if ask.effort:
        body["think"] = ask.effort
    return _question("/api/chat", body)


def cohere(ask: Ask, model: str) -> Question:
    content: Any = ask.text
    if ask.image:
        content = [
            {"type": "text", "text": ask.text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ask.image}"}},
        ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    if ask.calls:
        calls = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for ident, name, arguments in ask.calls
        ]
        messages.append({"role": "assistant", "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": ident, "content": text} for ident, _, text in ask.results]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": ask.stream, "max_tokens": 1000}
    if ask.tools:
        body["tools"] = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": PARAMETERS}}]
    if ask.schema:
        body["response_format"] = {"type": "json_object", "json_schema": SCHEMA}
    if ask.effort:
        body["thinking"] = {"type": "enabled", "token_budget": 1024}
    if ask.stop:
        body["stop_sequences"] = list(ask.stop)
    return _question("/v2/chat", body)


def claw(ask: Ask, model: str) -> dict[str, Any]:
    """The frame of a Claw WebSocket request."""
    content: Any = ask.text
    if ask.image:
        content = [
            {"type": "text", "text": ask.text},
            {"type": "image", "data": ask.image, "media_type": "image/png"},
        ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    if ask.calls:
        calls = [{"id": ident, "name": name, "arguments": json.dumps(arguments)} for ident, name, arguments in ask.calls]
        messages.append({"role": "assistant", "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": ident, "content": text} for ident, _, text in ask.results]
    parameters: dict[str, Any] = {"stream": ask.stream, "max_tokens": 1000}
    if ask.tools:
        parameters["tools"] = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": PARAMETERS}}]
        parameters["tool_choice"] = "auto"
    if ask.schema:
        parameters["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    if ask.effort:
        parameters["reasoning_effort"] = ask.effort
    if ask.stop:
        parameters["stop"] = list(ask.stop)
    return {"type": "llm_request", "id": "1", "model": model, "messages": messages, "parameters": parameters}


def _question(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Question:
    return Question(path, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})


HTTP: dict[str, Callable[[Ask, str], Question]] = {
    "openai_chat": openai_chat,
    "openai_responses": openai_responses,
    "anthropic": anthropic,
    "gemini": gemini,
    "ollama": ollama,
    "cohere": cohere,
}
