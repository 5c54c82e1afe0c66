"""Requests of other formats for an Anthropic provider, and Anthropic's for others."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from clawproxy.config import ProviderConfig
from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.anthropic.provider import AnthropicProvider
from clawproxy.dialects.base import OutboundRequest
from clawproxy.dialects.translate import leftovers
from clawproxy.errors import ClawError
from clawproxy.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_request, make_route

USER = Message("user", "hi")


def outbound(request: ChatRequest, provider: AnthropicProvider | None = None, **route: Any) -> OutboundRequest:
    return (provider or AnthropicProvider()).encode_request(request, make_route(**route))


def body(**request: Any) -> Any:
    return json.loads(outbound(make_request(**request)).body)


def talk(*messages: Message, **request: Any) -> Any:
    return body(messages=messages, **request)["messages"]


def from_openai(**fields: Any) -> ChatRequest:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return CLIENT["openai_chat"].decode_request(json.dumps(document).encode(), {}, make_head())


def refused(request: ChatRequest) -> str | None:
    with pytest.raises(ClawError) as caught:
        PROVIDER["anthropic"].encode_request(request, make_route())
    assert caught.value.slug == "unsupported_parameter"
    return caught.value.details.param


# --- the conversation ------------------------------------------------------------------------------------------------------


def test_a_simple_request() -> None:
    assert body(max_tokens=5, stream=True, temperature=0.3, top_p=0.5, top_k=4, stop=("a",)) == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 5,
        "temperature": 0.3,
        "top_p": 0.5,
        "top_k": 4,
        "stop_sequences": ["a"],
        "stream": True,
    }


def test_system_messages_stand_apart() -> None:
    made = outbound(
        make_request(messages=(Message("system", "a"), Message("developer", "b"), USER, Message("system", "c"), USER))
    )
    document = json.loads(made.body)
    assert [block["text"] for block in document["system"]] == ["a", "b", "c"]
    assert document["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "hi"}]}]
    assert [notice.code for notice in made.notices] == ["system_moved"]
    assert body(messages=(Message("system", "a"), USER))["system"] == "a"
    assert refused(make_request(messages=(Message("system", "a"),))) == "messages"


def test_turns_are_joined_and_results_come_first() -> None:
    calls = (ToolCall("call_1", "f", '{"a": 1}'), ToolCall("functions.g:2", "g", ""))
    assert talk(
        USER,
        Message("assistant", None, calls),
        Message("tool", "one", tool_call_id="call_1"),
        Message("tool", "two", tool_call_id="functions.g:2", is_error=True),
        Message("user", "and?"),
    ) == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "functions_g_2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "functions_g_2", "content": "two", "is_error": True},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", "5", '{"a":1}x', "[" * 5000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    said = talk(USER, Message("assistant", None, (ToolCall("c", "f", arguments),)))
    assert said[1]["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_media() -> None:
    text = base64.b64encode("wörds".encode()).decode()
    said = talk(
        Message(
            "user",
            (
                ImagePart(data="aGk=", media_type="image/jpeg"),
                ImagePart(url="https://x.test/y", detail="high"),
                FilePart(data="aGk=", media_type="application/pdf", filename="a.pdf"),
                FilePart(data=text, media_type="text/markdown"),
                FilePart(url="https://x.test/z.pdf"),
            ),
        )
    )
    assert [block["source"] for block in said[0]["content"]] == [
        {"type": "base64", "media_type": "image/jpeg", "data": "aGk="},
        {"type": "url", "url": "https://x.test/y"},
        {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
        {"type": "text", "media_type": "text/plain", "data": "wörds"},
        {"type": "url", "url": "https://x.test/z.pdf"},
    ]
    assert said[0]["content"][2]["title"] == "a.pdf"


@pytest.mark.parametrize(
    "part",
    [
        AudioPart("aGk=", "wav"),
        FilePart(file_id="file-1"),
        FilePart(data="aGk=", media_type="application/zip"),
        FilePart(data="/w==", media_type="text/plain"),
        ImagePart(url="data:image/svg+xml,<svg/>"),
        ImagePart(),
        FilePart(),
    ],
)
def test_media_the_format_has_no_way_to_say(part: Any) -> None:
    assert refused(make_request(messages=(Message("user", (TextPart("x"), part)),))) == "messages[0].content[1]"


def test_only_its_own_thinking_goes_back() -> None:
    own, other = Thinking("a", "c2ln", dialect="anthropic"), Thinking("b", "x", dialect="gemini")
    said = talk(USER, Message("assistant", "c", reasoning="plain", thinking=(own, other)))
    assert said[1]["content"] == [
        {"type": "thinking", "thinking": "a", "signature": "c2ln"},
        {"type": "text", "text": "c"},
    ]
    deepseek = AnthropicProvider().configured(ProviderConfig(dialect="anthropic", base_url="https://api.deepseek.com/anthropic"))
    made = outbound(make_request(messages=(USER, Message("assistant", "c", reasoning="plain"))), deepseek)
    assert json.loads(made.body)["messages"][1]["content"][0] == {"type": "thinking", "thinking": "plain", "signature": ""}


# --- parameters ------------------------------------------------------------------------------------------------------------


def test_max_tokens_is_always_said() -> None:
    assert body()["max_tokens"] == 8192
    assert json.loads(outbound(make_request(), max_output_tokens=64_000).body)["max_tokens"] == 64_000
    assert body(reasoning_budget=10_000)["max_tokens"] == 18_192
    assert body(max_tokens=7)["max_tokens"] == 7


def test_tools() -> None:
    made = body(
        tools=(Tool("f", "d", {"properties": {}}, True), Tool("g", strict=False)),
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
    )
    assert made["tools"] == [
        {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}, "strict": True},
        {"name": "g", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert made["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body(tools=(Tool("f"),), parallel_tool_calls=False)["tool_choice"] == {
        "type": "auto",
        "disable_parallel_tool_use": True,
    }
    assert body(tools=(Tool("f"),), tool_choice=ToolChoice("tool", "f"), parallel_tool_calls=True)["tool_choice"] == {
        "type": "tool",
        "name": "f",
    }
    assert "tool_choice" not in body(tools=(Tool("f"),), parallel_tool_calls=True)


def test_how_much_to_think() -> None:
    assert body(reasoning_effort="minimal")["output_config"] == {"effort": "low"}
    assert body(reasoning_effort="xhigh")["output_config"] == {"effort": "xhigh"}
    assert body(reasoning_effort="none")["thinking"] == {"type": "disabled"}
    assert "output_config" not in body(reasoning_effort="none")
    assert body(reasoning_budget=0)["thinking"] == {"type": "disabled"}
    assert body(reasoning_budget=500)["thinking"] == {"type": "enabled", "budget_tokens": 1024}


def test_json() -> None:
    schema = {"name": "x", "schema": {"type": "object"}, "strict": True}
    assert body(response_format=ResponseFormat("json_schema", schema))["output_config"] == {
        "format": {"type": "json_schema", "schema": {"type": "object"}}
    }
    assert "output_config" not in body(response_format=ResponseFormat("text"))
    assert refused(make_request(response_format=ResponseFormat("json_object"))) == "response_format"
    assert refused(make_request(response_format=ResponseFormat("json_schema", {}))) == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"seed": 1}, "seed"),
        ({"temperature": 1.2}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x", "brand_new": 1}]}, "messages[0].brand_new"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ],
)
def test_what_openai_clients_are_told(fields: dict[str, Any], param: str) -> None:
    assert refused(from_openai(**fields)) == param


def test_penalties_of_the_vocabulary() -> None:
    assert refused(make_request(presence_penalty=0.5)) == "presence_penalty"
    assert "presence_penalty" not in body(presence_penalty=0)


def test_what_asks_for_nothing_is_not_refused() -> None:
    made = outbound(from_openai(n=1, frequency_penalty=0, presence_penalty=0.0, logprobs=False, store=True, user="u"))
    assert json.loads(made.body).keys() == {"model", "messages", "max_tokens"}
    assert [notice.details["param"] for notice in made.notices] == ["store"]


def test_no_embeddings() -> None:
    assert refused(make_request(operation="embeddings")) == "model"


# --- the provider's configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("https://api.anthropic.com/v1", "/messages"),
        ("https://api.anthropic.com/v1/", "/messages"),
        ("https://api.anthropic.com", "/v1/messages"),
        ("https://api.deepseek.com/anthropic", "/v1/messages"),
    ],
)
def test_both_ways_to_write_the_base_url(base_url: str, path: str) -> None:
    provider = AnthropicProvider().configured(ProviderConfig(dialect="anthropic", base_url=base_url))
    assert outbound(make_request(), provider).path == path


def test_the_version_asked_for() -> None:
    newer = AnthropicProvider().configured(ProviderConfig(dialect="anthropic", api_version="2026-10-21"))
    headers = (("anthropic-version", "2027-01-01"), ("anthropic-beta", "b"))
    ours = make_request(dialect="anthropic", headers=headers)
    theirs = make_request(headers=headers)
    for request, provider, version, beta in (
        (theirs, None, "2023-06-01", None),
        (ours, None, "2027-01-01", "b"),
        (ours, newer, "2026-10-21", "b"),
        (theirs, newer, "2026-10-21", None),
    ):
        sent = dict(outbound(request, provider).headers)
        assert (sent["anthropic-version"], sent.get("anthropic-beta")) == (version, beta)
    with pytest.raises(ClawError) as caught:
        outbound(make_request(temperature=0.5), newer)
    assert caught.value.details.param == "temperature"


# --- Anthropic's requests for others -------------------------------------------------------------------------------------------


def from_anthropic(**fields: Any) -> ChatRequest:
    document = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    return CLIENT["anthropic"].decode_request(json.dumps(document).encode(), {}, make_head("/v1/messages"))


def test_what_claude_code_sends_can_go_anywhere() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    request = from_anthropic(
        system=[{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi", **cached}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": "direct"}},
                    {"type": "text", "text": "late", "citations": None},
                ],
            },
            {"role": "system", "content": "<system-reminder>"},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok", **cached}]},
        ],
        tools=[{"name": "f", "input_schema": {"type": "object"}, "eager_input_streaming": True, **cached}],
        thinking={"type": "adaptive"},
        context_management={"edits": []},
        output_config={"effort": "high"},
        metadata={"user_id": "u"},
    )
    made = json.loads(PROVIDER["openai_chat"].encode_request(request, make_route()).body)
    assert [message["role"] for message in made["messages"]] == ["system", "user", "assistant", "system", "tool"]
    assert made["messages"][2]["tool_calls"][0]["id"] == "t"
    assert (made["reasoning_effort"], made["max_tokens"]) == ("high", 9)
    told = {notice.details["param"] for notice in leftovers(request, "openai_chat", "has no counterpart")}
    assert told == {"thinking", "context_management", "cache_control", "eager_input_streaming"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"container": "c"}, "container"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result", "source": "x"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
            "messages[0].content[0].source",
        ),
    ],
)
def test_what_only_anthropic_has_is_refused_elsewhere(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        leftovers(from_anthropic(**fields), "openai_chat", "has no counterpart")
    assert caught.value.details.param == param
