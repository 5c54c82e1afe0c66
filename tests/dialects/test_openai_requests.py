"""Chat Completions requests, from JSON to the vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import ClawError
from clawproxy.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_route

ROUTE = make_route(model="upstream-model")
USER = {"role": "user", "content": "hi"}


def decode(**fields: Any) -> ChatRequest:
    return CLIENT["openai_chat"].decode_request(
        json.dumps({"model": "m", "messages": [USER], **fields}).encode(), {}, make_head()
    )


def sent(request: ChatRequest) -> dict[str, Any]:
    outbound = PROVIDER["openai_chat"].encode_request(request, ROUTE)
    assert b"\n" not in outbound.body
    document: dict[str, Any] = json.loads(outbound.body)
    return document


def refused(**fields: Any) -> ClawError:
    with pytest.raises(ClawError) as caught:
        decode(**fields)
    assert caught.value.status == 400
    return caught.value


# --- from the client -------------------------------------------------------------------------------------------------------


def test_the_least_request() -> None:
    assert decode() == ChatRequest(model="m", messages=(Message("user", "hi"),), dialect="openai_chat")


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_completion_tokens": 7, "max_tokens": 7}, "max_tokens", 7),
        ({"temperature": 1}, "temperature", 1),
        ({"temperature": None}, "temperature", None),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"stop": "END"}, "stop", ("END",)),
        ({"stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": None}, "stop", ()),
        ({"seed": -5}, "seed", -5),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", False),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort", "xhigh"),
        ({"user": "u"}, "user", "u"),
        ({"metadata": {"k": "v"}}, "metadata", {"k": "v"}),
        ({"stream": True}, "stream", True),
        ({"stream": None}, "stream", False),
        ({"stream": True, "stream_options": {"include_usage": True}}, "include_usage", True),
        ({"stream": True, "stream_options": {}}, "include_usage", False),
        ({"stream": True, "stream_options": None}, "include_usage", False),
        ({"tool_choice": "required"}, "tool_choice", ToolChoice("required")),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", ToolChoice("tool", "f")),
        ({"response_format": {"type": "json_object"}}, "response_format", ResponseFormat("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": True}}},
            "response_format",
            ResponseFormat("json_schema", {"name": "s", "schema": {}, "strict": True}),
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": 1}, "strict": True}}
                ]
            },
            "tools",
            (Tool("f", "d", {"a": 1}, True),),
        ),
    ],
)
def test_parameters(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(decode(**fields), name) == value


@pytest.mark.parametrize(
    ("message", "right"),
    [
        ({"role": "system", "content": "s"}, Message("system", "s")),
        ({"role": "developer", "content": "s"}, Message("developer", "s")),
        ({"role": "user", "content": ""}, Message("user", "")),
        ({"role": "user", "content": "x", "name": "n"}, Message("user", "x", name="n")),
        ({"role": "tool", "content": "r", "tool_call_id": "c"}, Message("tool", "r", tool_call_id="c")),
        ({"role": "user", "content": [{"type": "text", "text": "t"}]}, Message("user", (TextPart("t"),))),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png", "detail": "low"}}]},
            Message("user", (ImagePart(url="https://x.test/a.png", detail="low"),)),
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
            Message("user", (ImagePart(data="QUJD", media_type="image/png"),)),
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}]},
            Message("user", (AudioPart("QQ==", "wav"),)),
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1", "filename": "a.pdf"}}]},
            Message("user", (FilePart(file_id="file-1", filename="a.pdf"),)),
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ=="}}]},
            Message("user", (FilePart(data="QQ==", media_type="application/pdf"),)),
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            },
            Message("assistant", None, tool_calls=(ToolCall("c", "f", "{"),)),
        ),
        ({"role": "assistant", "content": "a", "reasoning_content": "r"}, Message("assistant", "a", reasoning="r")),
        (
            {"role": "assistant", "content": "a", "reasoning": "r"},
            Message("assistant", "a", reasoning="r", extra={"reasoning": "r"}),
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            Message("assistant", (TextPart("no", {"type": "refusal"}),)),
        ),
        ({"role": "assistant", "refusal": "no"}, Message("assistant", None, extra={"refusal": "no"})),
    ],
)
def test_messages(message: dict[str, Any], right: Message) -> None:
    request = decode(messages=[message])
    assert request.messages == (right,)
    again = sent(request)["messages"][0]
    assert {"content": None, **message} == again


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": 5}, "model", "be a string"),
        ({"model": ""}, "model", "not be empty"),
        ({"messages": {}}, "messages", "be an array"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [USER, 5]}, "messages[1]", "be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "be one of system"),
        ({"messages": [USER, USER, {"role": "user", "content": 5}]}, "messages[2].content", "a string or an array of parts"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string or an array of parts"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "a string or an array of parts"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least one part"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", "be one of text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            "messages[0].content[0].image_url.url",
            "http:, https: or data:",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file", "file_data"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "is missing"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "be a string",
        ),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "be absent, or equal"),
        ({"temperature": 2.1}, "temperature", "be between 0 and 2"),
        ({"temperature": True}, "temperature", "be a number"),
        ({"top_p": -0.1}, "top_p", "be between 0 and 1"),
        ({"stop": 5}, "stop", "be a string or an array"),
        ({"stop": ["a", 5]}, "stop[1]", "be a string"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"seed": 1.5}, "seed", "be an integer"),
        ({"stream": "yes"}, "stream", "be true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "be absent unless"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "be true or false"),
        ({"tools": [{"type": "magic"}]}, "tools[0].type", "be function or custom"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "be an object",
        ),
        ({"tool_choice": "perhaps"}, "tool_choice", "be auto, none, required"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", "is missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name", "is missing"),
        ({"reasoning_effort": "very HIGH"}, "reasoning_effort", "be a word"),
        ({"user": "a\r\nb"}, "user", "printable"),
        ({"n": 0}, "n", "be between 1 and 128"),
        ({"n": True}, "n", "be an integer"),
        ({"logprobs": 1}, "logprobs", "be true or false"),
        ({"top_logprobs": 21}, "top_logprobs", "be between 0 and 20"),
        ({"presence_penalty": -3}, "presence_penalty", "be between -2 and 2"),
    ],
)
def test_refusals_name_the_place_and_what_would_be_right(fields: dict[str, Any], param: str, words: str) -> None:
    error = refused(**fields)
    assert (error.slug, error.details.param) == ("invalid_request", param)
    assert words in error.message
    assert f"`{param}`" in error.message


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_must_be_there(missing: str) -> None:
    body = {"model": "m", "messages": [USER]}
    del body[missing]
    with pytest.raises(ClawError) as caught:
        CLIENT["openai_chat"].decode_request(json.dumps(body).encode(), {}, make_head())
    assert caught.value.details.param == missing


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null"])
def test_the_body_is_an_object(body: bytes) -> None:
    with pytest.raises(ClawError, match="must be a JSON object"):
        CLIENT["openai_chat"].decode_request(body, {}, make_head())


@pytest.mark.parametrize(
    "metadata",
    [
        {"user": "a\r\nAuthorization: Bearer x"},
        {"user": "a\x1b[2J"},
        {"user": "\x7f"},
        {"user": "a\0"},
        {"user": "x" * 513},
        {"user": 5},
        {"a\r\nb": "x"},
        {"": "x"},
        {"k" * 65: "x"},
        {str(number): "x" for number in range(17)},
        [],
    ],
)
def test_i02_metadata_can_not_break_a_line(metadata: Any) -> None:
    error = refused(metadata=metadata)
    assert (error.details.param or "").startswith("metadata")
    assert error.message.isprintable()


def test_i02_metadata_may_hold_any_printable_text() -> None:
    assert decode(metadata={"user": "Zoë 中"}).metadata == {"user": "Zoë 中"}


@pytest.mark.parametrize(
    "name",
    ["api_base", "base_url", "custom_llm_provider", "extra_headers", "proxy", "timeout", "api_key", "extra_body", "models"],
)
def test_ss01_parameters_that_steer_the_gateway(name: str) -> None:
    error = refused(**{name: "http://evil.test"})
    assert (error.slug, error.details.param) == ("unknown_parameter", name)
    assert "evil" not in error.message


@pytest.mark.parametrize("model", ["../../admin", "gpt-4?key=x", "gpt-4#", "gpt-4\r\nX: y", "\u2028", "m" * 10_000])
def test_i01_a_strange_model_name_is_only_a_name(model: str) -> None:
    request = decode(model=model)
    assert request.model == model  # the router answers 404
    outbound = PROVIDER["openai_chat"].encode_request(request, ROUTE)
    assert outbound.path == "/chat/completions"
    assert json.loads(outbound.body)["model"] == "upstream-model"
