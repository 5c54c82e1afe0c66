"""Cohere's requests: read from its clients, written for its servers, and what happens between it and other formats."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_request, make_route

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
PNG = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def read(document: Any, kind: str = "cohere") -> ChatRequest:
    return CLIENT[kind].decode_request(json.dumps(document).encode(), {}, make_head("/v2/chat"))


def chat(**fields: Any) -> ChatRequest:
    return read({"model": "m", "messages": [USER], **fields})


def sent(request: ChatRequest) -> Any:
    body = json.loads(PROVIDER["cohere"].encode_request(request, make_route(model="there")).body)
    assert body.pop("model") == "there"
    return body


def notices(request: ChatRequest) -> list[tuple[str, str]]:
    made = PROVIDER["cohere"].encode_request(request, make_route()).notices
    return [(notice.code, notice.details["param"]) for notice in made]


def test_a_chat() -> None:
    request = chat(
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "u"}, {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}],
            },
            {"role": "assistant", "tool_plan": "I will.", "tool_calls": [CALL], "citations": []},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "document", "document": {"id": "d", "data": {"n": 2}}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "2"}]},
        ],
        stream=True,
        tools=[TOOL],
        strict_tools=True,
        tool_choice="REQUIRED",
        response_format={"type": "json_object", "json_schema": SCHEMA},
        max_tokens=9,
        temperature=0.3,
        p=0.9,
        k=5,
        seed=7,
        stop_sequences=["END"],
        frequency_penalty=0.1,
        presence_penalty=0.2,
        thinking={"type": "enabled", "token_budget": 100},
        logprobs=False,
        safety_mode="STRICT",
        priority=None,
    )
    assert request.messages == (
        Message("system", (TextPart("s"),)),
        Message("user", (TextPart("u"), ImagePart(data="iVBORw0KGgo=", media_type="image/png", detail="low"))),
        Message("assistant", None, (ToolCall("c1", "f", '{"a": 1}'),), reasoning="I will.", extra={"citations": []}),
        Message("tool", (TextPart('{"n":2}', {"document": {"id": "d", "data": {"n": 2}}}),), tool_call_id="c1"),
        Message("assistant", (TextPart("2"),), thinking=(Thinking("hm", dialect="cohere"),)),
    )
    assert request.tools == (Tool("f", "d", SCHEMA, strict=True),)
    assert request.tool_choice == ToolChoice("required")
    assert request.response_format == ResponseFormat("json_schema", {"name": "answer", "schema": SCHEMA})
    assert (request.max_tokens, request.temperature, request.top_p, request.top_k, request.seed) == (9, 0.3, 0.9, 5, 7)
    assert (request.stop, request.frequency_penalty, request.presence_penalty) == (("END",), 0.1, 0.2)
    assert (request.reasoning_budget, request.reasoning_effort) == (100, None)
    assert (request.stream, request.include_usage) == (True, True)
    assert request.extra == {"safety_mode": "STRICT"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "document": {}}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///a"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls[0].id"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"k": 0.5}, "k"),
        ({"p": 2}, "p"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"tool_choice": "AUTO"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "token_budget": 0}}, "thinking.token_budget"),
        ({"api_key": "x"}, "api_key"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.details.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": ToolChoice("tool", "f"), "tools": (Tool("f"), Tool("g"))}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"presence_penalty": 1.5}, "presence_penalty"),
        ({"stop": tuple("abcdef")}, "stop"),
        ({"extra": {"n": 2}}, "n"),
        ({"messages": (Message("user", (AudioPart("AA==", "wav"),)),)}, "messages[0].content[0]"),
        ({"messages": (Message("user", (TextPart("x"), FilePart(file_id="1"))),)}, "messages[0].content[1]"),
    ],
)
def test_what_can_not_be_said_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        sent(make_request(**fields))
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


def test_from_other_formats() -> None:
    request = make_request(
        messages=(
            Message("developer", "d"),
            Message("user", (TextPart("a"), ImagePart(url="https://x.test/a.png", detail="low")), name="Ann"),
            Message("assistant", "", (ToolCall("x1", "f", ""),), reasoning="I will."),
            Message("tool", "2", tool_call_id="x1"),
            Message("assistant", "2", reasoning="hm", thinking=(Thinking("signed", "sig", dialect="anthropic"),)),
        ),
        tools=(Tool("f", strict=True), Tool("g")),
        tool_choice=ToolChoice("auto"),
        response_format=ResponseFormat("json_schema", {"name": "n", "schema": SCHEMA}),
        top_p=1,
        reasoning_effort="high",
        user="u",
        extra={"store": True},
    )
    empty = {"type": "object", "properties": {}}
    assert sent(request) == {
        "messages": [
            {"role": "system", "content": "d"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "https://x.test/a.png", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_plan": "I will.",
                "tool_calls": [{"id": "x1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "x1"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "2"}]},
        ],
        "stream": False,
        "p": 0.99,
        "thinking": {"type": "enabled"},
        "tools": [{"type": "function", "function": {"name": name, "parameters": empty}} for name in ("f", "g")],
        "response_format": {"type": "json_object", "json_schema": SCHEMA},
    }
    assert notices(request) == [
        ("parameter_dropped", "store"),
        ("parameter_dropped", "messages[1].name"),
        ("parameter_clamped", "top_p"),
        ("parameter_dropped", "reasoning_effort"),
        ("parameter_dropped", "tools[0].strict"),
    ]


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"tool_choice": ToolChoice("tool", "f"), "tools": (Tool("f"),)}, "tool_choice", "REQUIRED"),
        ({"tool_choice": ToolChoice("none"), "tools": (Tool("f"),)}, "tool_choice", "NONE"),
        ({"reasoning_effort": "none"}, "thinking", {"type": "disabled"}),
        ({"reasoning_budget": 0}, "thinking", {"type": "disabled"}),
        ({"reasoning_budget": 64, "reasoning_effort": "low"}, "thinking", {"type": "enabled", "token_budget": 64}),
        ({"tools": (Tool("f", strict=True),)}, "strict_tools", True),
        ({"response_format": ResponseFormat("json_object")}, "response_format", {"type": "json_object"}),
        ({"top_k": 3}, "k", 3),
        ({"stop": ("a",)}, "stop_sequences", ["a"]),
        ({"stream": True}, "stream", True),
    ],
)
def test_how_it_is_said(fields: dict[str, Any], key: str, value: Any) -> None:
    assert sent(make_request(**fields))[key] == value


def test_what_cohere_alone_says_is_refused_elsewhere() -> None:
    for fields, param in (
        ({"documents": ["x"]}, "documents"),
        ({"safety_mode": "OFF"}, "safety_mode"),
        ({"logprobs": True}, "logprobs"),
    ):
        with pytest.raises(ClawError) as caught:
            PROVIDER["ollama"].encode_request(chat(**fields), make_route())
        assert caught.value.details.param == param
    harmless = chat(priority=1, citation_options={"mode": "OFF"}, logprobs=False)
    made = PROVIDER["ollama"].encode_request(harmless, make_route()).notices
    assert [notice.details["param"] for notice in made] == ["priority", "citation_options"]


def test_a_document_that_a_policy_changed_goes_out_changed() -> None:
    document = {"id": "d", "data": {"text": "my secret"}}
    request = chat(messages=[{"role": "tool", "tool_call_id": "c", "content": [{"type": "document", "document": document}]}])
    [message] = request.messages
    assert "secret" in message.text(), "policies read it"
    assert isinstance(message.content, tuple)
    [part] = message.content
    assert isinstance(part, TextPart)
    changed = evolve(request, messages=(evolve(message, content=(evolve(part, text="my ***"),)),))
    assert sent(changed)["messages"][0]["content"] == [{"type": "document", "document": {"id": "d", "data": {"text": "my ***"}}}]


def embed(**fields: Any) -> ChatRequest:
    return read({"model": "m", "input_type": "search_query", **fields}, "cohere_embed")


def test_embeddings() -> None:
    request = embed(texts=["a", "b"], embedding_types=["float"], truncate="END", output_dimension=8)
    assert request.operation == "embeddings"
    assert request.messages == (Message("user", "a"), Message("user", "b"))
    assert request.extra == {"input_type": "search_query", "output_dimension": 8}
    assert sent(request) == {"texts": ["a", "b"], "embedding_types": ["float"], **request.extra}
    assert PROVIDER["cohere"].encode_request(request, make_route()).path == "/embed"
    assert sent(embed(images=[PNG]))["images"] == [PNG]
    mixed = [{"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": PNG}}]}]
    assert sent(embed(inputs=mixed))["inputs"] == mixed
    assert sent(embed(texts=["a"], embedding_types=["int8"], truncate="NONE"))["embedding_types"] == ["int8"]
    other = make_request("a", operation="embeddings", dialect="ollama")
    assert sent(other) == {"texts": ["a"], "embedding_types": ["float"], "input_type": "search_document"}
    assert notices(other) == [("parameter_assumed", "input_type")]
    with pytest.raises(ClawError, match="unsupported_parameter"):
        sent(make_request(operation="count_tokens"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "texts"),
        ({"texts": ["a"], "images": [PNG]}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": [1]}, "texts[0]"),
        ({"images": ["file:///x"]}, "images[0]"),
        ({"inputs": [{"content": []}]}, "inputs[0].content"),
        ({"inputs": [{"content": [{"type": "sound"}]}]}, "inputs[0].content[0].type"),
    ],
)
def test_embeddings_that_are_wrong(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        embed(**fields)
    assert caught.value.details.param == param


TEXT = st.text(max_size=8)
BLOCK = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}, optional={"own": TEXT})
IMAGE = st.fixed_dictionaries(
    {"type": st.just("image_url"), "image_url": st.sampled_from([{"url": PNG}, {"url": "https://x.test/a", "own": 1}])}
)
DOCUMENT = st.fixed_dictionaries(
    {"type": st.just("document"), "document": st.sampled_from([{"data": {"a": 1}}, {"data": "x", "id": "1"}])}
)
THOUGHT = st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXT.filter(bool)})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user"]), "content": TEXT | st.lists(BLOCK, min_size=1, max_size=2)}
    )
    | st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(BLOCK | IMAGE, min_size=1, max_size=3)})
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.just([CALL])}, optional={"tool_plan": TEXT.filter(bool)}
    )
    | st.builds(
        lambda thoughts, blocks: {"role": "assistant", "content": thoughts + blocks},
        st.lists(THOUGHT, max_size=2),
        st.lists(BLOCK, min_size=1, max_size=2),
    )
    | st.fixed_dictionaries(
        {
            "role": st.just("tool"),
            "tool_call_id": st.just("c1"),
            "content": TEXT | st.lists(BLOCK | DOCUMENT, min_size=1, max_size=2),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries(
        {"messages": MESSAGES, "stream": st.booleans()},
        optional={
            "tools": st.just([TOOL]),
            "p": st.sampled_from([0, 0.5, 1]),
            "k": st.integers(0, 9),
            "thinking": st.sampled_from([{"type": "disabled"}, {"type": "enabled"}, {"type": "enabled", "token_budget": 9}]),
            "response_format": st.sampled_from(
                [{"type": "text"}, {"type": "json_object"}, {"type": "json_object", "json_schema": SCHEMA}]
            ),
            "stop_sequences": st.just(["a"]),
            "documents": st.just(["x", {"data": {"a": "b"}}]),
            "unknown": st.integers(0, 9),
        },
    )
)
def test_the_same_format_passes_everything(document: dict[str, Any]) -> None:
    assert sent(read({"model": "m", **document})) == document
