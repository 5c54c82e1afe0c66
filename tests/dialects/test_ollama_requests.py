"""Ollama's requests: read from its clients, written for its servers, and what happens between it and other formats."""

from __future__ import annotations

import json
from typing import Any

import pytest
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
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_request, make_route

USER = {"role": "user", "content": "hi"}
PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def read(document: Any, kind: str = "ollama") -> ChatRequest:
    return CLIENT[kind].decode_request(json.dumps(document).encode(), {}, make_head("/api/chat"))


def chat(**fields: Any) -> ChatRequest:
    return read({"model": "m", "messages": [USER], **fields})


def refused(document: Any, kind: str = "ollama") -> ClawError:
    with pytest.raises(ClawError) as caught:
        read(document, kind)
    assert caught.value.status == 400
    return caught.value


def sent(request: ChatRequest, dialect: str = "ollama") -> Any:
    outbound = PROVIDER[dialect].encode_request(request, make_route(model="there"))
    body = json.loads(outbound.body)
    assert body.pop("model") == "there"
    return body


def notices(request: ChatRequest) -> list[str]:
    return [notice.details["param"] for notice in PROVIDER["ollama"].encode_request(request, make_route()).notices]


def test_a_chat() -> None:
    request = read(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u", "images": [PNG, "/9j/4AAQ"]},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [
                        {"function": {"name": "f", "arguments": {"a": 1}}},
                        {"function": {"name": "g", "arguments": {}}},
                        {"id": "own", "function": {"index": 2, "name": "f", "arguments": {"a": 2}}},
                    ],
                },
                {"role": "tool", "tool_name": "g", "content": "2nd"},
                {"role": "tool", "content": "1st"},
                {"role": "tool", "tool_call_id": "own", "content": "3rd"},
            ],
            "tools": [TOOL],
            "think": True,
            "format": SCHEMA,
            "options": {
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 40.0,
                "seed": 7,
                "num_predict": 12,
                "stop": "END",
                "frequency_penalty": 0.1,
                "presence_penalty": -0.2,
                "num_ctx": 4096,
                "mirostat": None,
            },
            "keep_alive": -1,
        }
    )
    assert request.stream is True
    assert request.include_usage is True
    assert request.messages[1].content == (
        TextPart("u"),
        ImagePart(data=PNG, media_type="image/png"),
        ImagePart(data="/9j/4AAQ", media_type="image/jpeg"),
    )
    calls = (ToolCall("call_0", "f", '{"a":1}'), ToolCall("call_1", "g", "{}"), ToolCall("own", "f", '{"a":2}'))
    assert request.messages[2] == Message("assistant", None, calls, reasoning="hm")
    assert [(message.tool_call_id, message.name) for message in request.messages[3:]] == [
        ("call_1", "g"),
        ("call_0", "f"),
        ("own", "f"),
    ]
    assert request.tools == (Tool("f", "d", SCHEMA),)
    assert request.reasoning_effort == "medium"
    assert request.response_format == ResponseFormat("json_schema", {"name": "answer", "schema": SCHEMA})
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0.5, 0.9, 40, 7)
    assert (request.max_tokens, request.stop) == (12, ("END",))
    assert (request.frequency_penalty, request.presence_penalty) == (0.1, -0.2)
    assert request.extra == {"options.num_ctx": 4096, "keep_alive": -1}


def test_results_of_a_later_turn_belong_to_its_calls() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    turn = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "tool_name": "f", "content": "x"}]
    orphan = {"role": "tool", "tool_name": "other", "content": "?"}
    request = chat(messages=[USER, *turn, *turn, orphan])
    assert [message.tool_call_id for message in request.messages if message.role == "tool"] == ["call_0", "call_1", "call_2"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "images": ["https://x.test/a.png"]}]}, "messages[0].images[0]"),
        ({"messages": [{"role": "user", "content": "x", "images": [f"data:image/png;base64,{PNG}"]}]}, "messages[0].images[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"stream": 1}, "stream"),
        ({"think": 3}, "think"),
        ({"format": "yaml"}, "format"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"top_k": 1.5}}, "options.top_k"),
        ({"options": {"stop": [1]}}, "options.stop[0]"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"base_url": "http://evil"}, "base_url"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused({"model": "m", "messages": [USER], **fields}).details.param == param


def test_streaming_unless_told_not_to() -> None:
    assert [chat(**fields).stream for fields in ({}, {"stream": None}, {"stream": True}, {"stream": False})] == [
        True,
        True,
        True,
        False,
    ]


THINK = [(None, None), (True, "medium"), (False, "none"), ("low", "low"), ("high", "high"), ("max", "max")]


@pytest.mark.parametrize(("think", "effort"), THINK)
def test_thinking_there_and_back(think: Any, effort: str | None) -> None:
    request = chat(think=think)
    assert request.reasoning_effort == effort
    assert sent(request).get("think") == think


@pytest.mark.parametrize(
    ("fields", "think", "dropped"),
    [
        ({"reasoning_effort": "minimal"}, "low", ["reasoning_effort"]),
        ({"reasoning_effort": "xhigh"}, "high", ["reasoning_effort"]),
        ({"reasoning_budget": 0}, False, []),
        ({"reasoning_budget": 1000}, True, ["reasoning_budget"]),
        ({"reasoning_budget": 1000, "reasoning_effort": "high"}, "high", ["reasoning_budget"]),
    ],
)
def test_thinking_from_other_formats(fields: dict[str, Any], think: Any, dropped: list[str]) -> None:
    request = make_request(**fields)
    assert sent(request)["think"] == think
    assert notices(request) == dropped


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": ToolChoice("required"), "tools": (Tool("f"),)}, "tool_choice"),
        ({"tool_choice": ToolChoice("tool", "f"), "tools": (Tool("f"),)}, "tool_choice"),
        ({"parallel_tool_calls": False, "tools": (Tool("f"),)}, "parallel_tool_calls"),
        ({"extra": {"logit_bias": {"1": 2}}}, "logit_bias"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"messages": (Message("user", (ImagePart(url="https://x.test/a.png"),)),)}, "messages[0].content[0].image_url"),
        ({"messages": (Message("user", (TextPart("a"), AudioPart("AA==", "wav"))),)}, "messages[0].content[1]"),
        ({"messages": (Message("user", (FilePart(data="AA=="),)),)}, "messages[0].content[0]"),
        (
            {"messages": (Message("assistant", None, (ToolCall("1", "f", "{oops"),)),)},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_can_not_be_said_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        sent(make_request(**fields))
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


def test_from_other_formats() -> None:
    messages = (
        Message("developer", "d"),
        Message("user", (TextPart("a"), TextPart("b"), ImagePart(data=PNG, media_type="image/png")), name="Ann"),
        Message("assistant", None, (ToolCall("x1", "f", ""),), reasoning="hm"),
        Message("tool", "2", tool_call_id="x1", is_error=False),
    )
    request = make_request(
        messages=messages,
        tools=(Tool("f", strict=True),),
        tool_choice=ToolChoice("auto"),
        parallel_tool_calls=True,
        response_format=ResponseFormat("json_object"),
        max_tokens=5,
        user="u",
        metadata={"a": "b"},
        extra={"service_tier": "flex"},
    )
    assert sent(request) == {
        "messages": [
            {"role": "system", "content": "d"},
            {"role": "user", "content": "a\nb", "images": [PNG]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"id": "x1", "function": {"name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "x1", "tool_name": "f"},
        ],
        "stream": False,
        "options": {"num_predict": 5},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "format": "json",
    }
    assert notices(request) == ["service_tier", "messages[1].name", "tools[0].strict"]
    assert "tools" not in sent(make_request(tools=(Tool("f"),), tool_choice=ToolChoice("none")))


def test_generate() -> None:
    request = read({"model": "m", "prompt": "p", "system": "s", "images": [PNG], "context": [], "raw": False}, "ollama_generate")
    assert request.messages == (
        Message("system", "s"),
        Message("user", (TextPart("p"), ImagePart(data=PNG, media_type="image/png"))),
    )
    assert not request.extra
    assert refused({"model": "m", "prompt": ""}, "ollama_generate").details.param == "prompt"
    for name, value in (("raw", True), ("template", "x"), ("suffix", "x"), ("context", [1])):
        error = refused({"model": "m", "prompt": "p", name: value}, "ollama_generate")
        assert (error.slug, error.details.param) == ("unsupported_parameter", name)


def test_embeddings() -> None:
    request = read(
        {"model": "m", "input": ["a", "b"], "truncate": False, "dimensions": 8, "options": {"num_ctx": 9}}, "ollama_embed"
    )
    assert request.operation == "embeddings"
    assert request.messages == (Message("user", "a"), Message("user", "b"))
    assert sent(request) == {"input": ["a", "b"], "truncate": False, "dimensions": 8, "options": {"num_ctx": 9}}
    assert PROVIDER["ollama"].encode_request(request, make_route()).path == "/api/embed"
    assert read({"model": "m", "input": "a", "truncate": True}, "ollama_embed").extra == {}
    assert read({"model": "m", "prompt": "a"}, "ollama_embeddings").messages == (Message("user", "a"),)
    assert refused({"model": "m", "input": []}, "ollama_embed").details.param == "input"
    assert refused({"model": "m", "input": [1]}, "ollama_embed").details.param == "input[0]"
    assert refused({"model": "m", "prompt": ["a"]}, "ollama_embeddings").details.param == "prompt"
    picture = make_request(operation="embeddings", messages=(Message("user", (ImagePart(data=PNG),)),))
    with pytest.raises(ClawError):
        sent(picture)
    with pytest.raises(ClawError, match="unsupported_parameter"):
        sent(make_request(operation="count_tokens"))


TEXT = st.text(max_size=8)
NAME = st.sampled_from(["f", "g"])
OBJECT = st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT, max_size=2).filter(
    lambda each: not any("\0" in key for key in each)
)
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": NAME, "arguments": OBJECT})}), min_size=1, max_size=2
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}, optional={"own": TEXT})
    | st.fixed_dictionaries({"role": st.just("user"), "content": TEXT, "images": st.just([PNG])})
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXT, "tool_calls": CALLS}, optional={"thinking": TEXT.filter(bool)}
    )
    | st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT, "tool_name": NAME}),
    min_size=1,
    max_size=5,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.5, 2]),
        "top_k": st.integers(0, 50),
        "num_predict": st.integers(-2, 99),
        "stop": st.lists(TEXT, min_size=1, max_size=2),
        "mirostat": st.integers(0, 2),
    },
).filter(lambda options: options.get("num_predict") != 0)


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries(
        {"messages": MESSAGES, "stream": st.booleans()},
        optional={
            "tools": st.just([TOOL]),
            "options": OPTIONS.filter(bool),
            "format": st.just("json") | st.just(SCHEMA),
            "think": st.sampled_from([True, False, "low"]),
            "keep_alive": st.just("5m"),
            "unknown": st.integers(0, 9),
        },
    )
)
def test_the_same_format_passes_everything(document: dict[str, Any]) -> None:
    """But for the ids that tie results to calls, which are added."""
    body = sent(read({"model": "m", **document}))
    for message in body["messages"]:
        message.pop("tool_call_id", None)
        for call in message.get("tool_calls", ()):
            assert call.pop("id").startswith("call_")
    assert body == document
