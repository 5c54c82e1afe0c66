"""Requests of other formats, as a Gemini provider is sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.gemini.provider_contents import UNSIGNED
from clawproxy.errors import ClawError
from clawproxy.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_request, make_route


def sent(model: str = "gemini-3-pro", **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(PROVIDER["gemini"].encode_request(make_request(**changes), make_route(model=model)).body)
    return body


def refused(**changes: Any) -> str | None:
    with pytest.raises(ClawError) as caught:
        sent(**changes)
    assert caught.value.slug == "unsupported_parameter"
    param: str | None = caught.value.details.param
    return param


def test_the_path_and_the_headers() -> None:
    provider = PROVIDER["gemini"]
    assert provider.auth_header == "x-goog-api-key"
    whole = provider.encode_request(make_request(), make_route(model="a/b?c"))
    assert (whole.path, whole.stream) == ("/models/a%2Fb%3Fc:generateContent", False)
    stream = provider.encode_request(make_request(stream=True), make_route(model="m"))
    assert (stream.path, stream.stream) == ("/models/m:streamGenerateContent?alt=sse", True)
    assert ("accept", "text/event-stream") in stream.headers


def test_a_conversation() -> None:
    messages = (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("user", (TextPart("b"), ImagePart(data="AA==", media_type="image/jpeg"), AudioPart("AAAA", "wav"))),
        Message("developer", "be kind"),
        Message(
            "assistant",
            "calling",
            (ToolCall("call_1", "f", '{"a": 1}', "foreign"), ToolCall("call_2", "g", "")),
            reasoning="hm",
            thinking=(Thinking("x", "sig", dialect="anthropic"),),
        ),
        Message("tool", "plain", tool_call_id="call_1"),
        Message("tool", '{"k": [1]}', tool_call_id="call_2"),
        Message("tool", "late", tool_call_id="call_1", is_error=True),
        Message("user", (FilePart(data="AA==", media_type="application/pdf", filename="x.pdf"), FilePart(url="gs://b/o"))),
    )
    body = sent(messages=messages)
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}, {"text": "be kind"}]}
    assert body["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "a"},
                {"text": "b"},
                {"inlineData": {"mimeType": "image/jpeg", "data": "AA=="}},
                {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "calling"},
                {"functionCall": {"name": "f", "args": {"a": 1}, "id": "call_1"}, "thoughtSignature": UNSIGNED},
                {"functionCall": {"name": "g", "args": {}, "id": "call_2"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "f", "id": "call_1", "response": {"result": "plain"}}},
                {"functionResponse": {"name": "g", "id": "call_2", "response": {"k": [1]}}},
                {"functionResponse": {"name": "f", "id": "call_1", "response": {"error": "late"}}},
                {"inlineData": {"mimeType": "application/pdf", "data": "AA=="}},
                {"fileData": {"fileUri": "gs://b/o"}},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("model", "marked"), [("gemini-2.5-pro", False), ("gemini-3.1-flash", True), ("google/gemini-10", True), ("gemma", False)]
)
def test_only_models_that_ask_for_signatures_get_the_mark(model: str, marked: bool) -> None:
    call = Message("assistant", None, (ToolCall("c", "f", "{}"),))
    assert ("thoughtSignature" in sent(model, messages=(call,))["contents"][0]["parts"][0]) is marked


def test_what_generation_is_told() -> None:
    body = sent(
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        max_tokens=7,
        stop=("x",),
        seed=4,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        response_format=ResponseFormat("json_schema", {"name": "n", "schema": {"type": "object"}, "strict": True}),
        tools=(Tool("f", "does f", {"type": "object"}, True),),
        tool_choice=ToolChoice("tool", "f"),
        parallel_tool_calls=True,
        user="somebody",
        metadata={"a": "b"},
    )
    assert body["generationConfig"] == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 3,
        "maxOutputTokens": 7,
        "stopSequences": ["x"],
        "seed": 4,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
    }
    declared = {"name": "f", "description": "does f", "parametersJsonSchema": {"type": "object"}}
    assert body["tools"] == [{"functionDeclarations": [declared]}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}
    assert body.keys() == {"contents", "generationConfig", "tools", "toolConfig"}, "nobody's name goes to another provider"
    assert sent(response_format=ResponseFormat("json_object"))["generationConfig"] == {"responseMimeType": "application/json"}
    assert "generationConfig" not in sent(response_format=ResponseFormat("text"))


@pytest.mark.parametrize(
    ("model", "asked", "thinking"),
    [
        ("gemini-3-pro", {"reasoning_effort": "low"}, {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3-pro", {"reasoning_effort": "max"}, {"thinkingLevel": "XHIGH", "includeThoughts": True}),
        ("gemini-3-pro", {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", {"reasoning_effort": "medium"}, {"thinkingBudget": 8192, "includeThoughts": True}),
        ("gemini-3-pro", {"reasoning_budget": 5, "reasoning_effort": "high"}, {"thinkingBudget": 5, "includeThoughts": True}),
        ("gemini-3-pro", {"reasoning_budget": 0}, {"thinkingBudget": 0}),
    ],
)
def test_how_much_to_think(model: str, asked: dict[str, Any], thinking: dict[str, Any]) -> None:
    assert sent(model, **asked)["generationConfig"]["thinkingConfig"] == thinking


def user(*parts: Part) -> tuple[Message, ...]:
    return (Message("user", parts),)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": user(ImagePart(url="https://example.org/x.png"))}, "messages[0].content[0].image_url"),
        ({"messages": user(TextPart("a"), FilePart(file_id="file-1"))}, "messages[0].content[1].file_id"),
        ({"messages": user(FilePart(data="AA=="))}, "messages[0].content[0].file"),
        ({"messages": (Message("tool", "x", tool_call_id="unknown"),)}, "messages[0].tool_call_id"),
        ({"messages": (Message("assistant", None, (ToolCall("c", "f", "[1]"),)),)}, "messages[0].tool_calls[0].arguments"),
        ({"messages": (Message("system", "x"),)}, "messages"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"parallel_tool_calls": False, "tools": (Tool("f"),)}, "parallel_tool_calls"),
        ({"extra": {"n": 2}}, "n"),
        ({"extra": {"logprobs": True}}, "logprobs"),
    ],
)
def test_what_gemini_can_not_be_told_is_refused(changes: dict[str, Any], param: str) -> None:
    assert refused(**changes) == param


def test_what_is_dropped_harmlessly_is_told() -> None:
    request = make_request(messages=(Message("user", "x", name="bob"),), extra={"service_tier": "flex", "store": True})
    notices = PROVIDER["gemini"].encode_request(request, make_route()).notices
    assert [notice.details["param"] for notice in notices] == ["service_tier", "store", "name"]


def test_tokens_are_counted_of_all_that_is_sent() -> None:
    provider = PROVIDER["gemini"]
    plain = provider.encode_request(make_request("x", operation="count_tokens"), make_route(model="m"))
    assert (plain.path, json.loads(plain.body)) == (
        "/models/m:countTokens",
        {"contents": [{"role": "user", "parts": [{"text": "x"}]}]},
    )
    whole = provider.encode_request(make_request("x", operation="count_tokens", tools=(Tool("f"),)), make_route(model="m"))
    body = json.loads(whole.body)["generateContentRequest"]
    assert (body["model"], body["tools"]) == ("models/m", [{"functionDeclarations": [{"name": "f"}]}])


def test_embeddings_of_another_format() -> None:
    messages = (Message("user", "a"), Message("user", "b"))
    extra = {"dimensions": 8, "encoding_format": "base64"}
    request = make_request(messages=messages, operation="embeddings", extra=extra)
    outbound = PROVIDER["gemini"].encode_request(request, make_route(model="m"))
    assert outbound.path == "/models/m:batchEmbedContents"
    assert json.loads(outbound.body) == {
        "requests": [
            {"outputDimensionality": 8, "model": "models/m", "content": {"parts": [{"text": text}]}} for text in ("a", "b")
        ]
    }
