"""Chat Completions requests to a provider, and there and back."""

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
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_request, make_route

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


EXTRA: dict[str, Any] = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "logit_bias": {"50256": -100},
    "prompt_cache_key": "k",
    "service_tier": "flex",
    "verbosity": "low",
    "store": False,
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {},
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "safety_identifier": "s",
    "top_k": -1,
    "a_parameter_from_next_year": {"deep": [1, None, "x"]},
}


@pytest.mark.parametrize("name", EXTRA)
def test_other_parameters_pass_in_the_same_dialect_only(name: str) -> None:
    request = decode(**{name: EXTRA[name]})
    assert request.extra == {name: EXTRA[name]}
    assert sent(request)[name] == EXTRA[name]
    with pytest.raises(ClawError) as caught:
        sent(evolve(request, dialect="claw"))
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", name)


SAMPLING: dict[str, Any] = {"top_k": 40, "frequency_penalty": 0.5, "presence_penalty": -0.5, "temperature": 0.25, "top_p": 0.5}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_is_vocabulary(name: str) -> None:
    request = decode(**{name: SAMPLING[name]})
    assert request == make_request(model="m", messages=(Message("user", "hi"),), **{name: SAMPLING[name]})
    assert sent(request) == {"model": "upstream-model", "messages": [USER], name: SAMPLING[name]}
    assert decode(**{name: None}) == decode() if name != "top_k" else decode(top_k=None).top_k is None
    elsewhere = evolve(request, dialect="claw")
    if name != "top_k":
        assert sent(elsewhere)[name] == SAMPLING[name]
        return
    with pytest.raises(ClawError) as caught:
        sent(elsewhere)
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", "top_k")


def test_j04_what_is_sent_is_what_was_decoded() -> None:
    body = b'{"model":"cheap","model":"costly","messages":[{"role":"user","content":"a","content":"b"}]}'
    request = CLIENT["openai_chat"].decode_request(body, {}, make_head())
    assert sent(request) == {"model": "upstream-model", "messages": [{"role": "user", "content": "b"}]}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_keeps_its_name_and_follows_the_field(name: str) -> None:
    request = evolve(decode(**{name: 100}), max_tokens=50)  # a policy lowered it
    body = sent(request)
    assert body[name] == 50
    assert sum(key.startswith("max_") for key in body) == 1
    assert sent(evolve(request, dialect="claw", extra={}))["max_tokens"] == 50


def test_streams_always_ask_for_usage() -> None:
    assert sent(decode(stream=True))["stream_options"] == {"include_usage": True}
    body = sent(decode(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}))
    assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "stream_options" not in sent(decode())
    assert "stream" not in sent(decode())


def test_people_are_not_named_to_providers_by_other_dialects() -> None:
    request = decode(user="u", metadata={"k": "v"})
    assert {"user", "metadata"} <= sent(request).keys()
    assert not {"user", "metadata"} & sent(evolve(request, dialect="claw")).keys()


SIGNED = {
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
    "extra_content": {"google": {"thought_signature": "abc"}},
}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "free text"}}


def test_what_a_tool_call_can_not_hold_is_put_back() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [SIGNED, CUSTOM]}
    request = decode(messages=[message])
    assert request.messages[0].tool_calls == (ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "free text"))
    assert sent(request)["messages"] == [message]
    changed = evolve(request.messages[0], tool_calls=(ToolCall("c2", "g", "cleaned"),))
    calls = sent(evolve(request, messages=(changed,)))["messages"][0]["tool_calls"]
    assert calls == [{**CUSTOM, "custom": {"name": "g", "input": "cleaned"}}]


def test_a_policys_text_wins_over_what_the_client_sent() -> None:
    message = {
        "role": "assistant",
        "reasoning": "secret",
        "content": [{"type": "text", "text": "secret", "cache_control": {"type": "ephemeral"}}],
    }
    request = decode(messages=[message])
    part = request.messages[0].content
    assert isinstance(part, tuple)
    assert isinstance(part[0], TextPart)
    cleaned = evolve(request.messages[0], reasoning="***", content=(evolve(part[0], text="***"),))
    body = sent(evolve(request, messages=(cleaned,)))
    assert "secret" not in json.dumps(body)
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["messages"][0]["reasoning"] == "***"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {"tools": [{"type": "custom", "custom": {"name": "g", "format": {"type": "text"}}}]},
        {"tools": [{"type": "function", "cache_control": {}, "function": {"name": "f", "later": 1}}]},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"tool_choice": {"type": "custom", "custom": {"name": "g"}}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test", "q": 1}, "z": 2}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f", "q": 1}}]}]},
    ],
)
def test_what_the_vocabulary_has_no_word_for_comes_out_as_it_came(fields: dict[str, Any]) -> None:
    request = decode(**fields)
    before = repr(request)
    assert sent(request) == {"model": "upstream-model", "messages": [USER], **fields}
    assert repr(request) == before  # encoding changes nothing in it


def test_a_file_by_url_is_refused_by_name() -> None:
    request = make_request(messages=(Message("user", (TextPart("x"), FilePart(url="https://x.test/a.pdf"))),))
    with pytest.raises(ClawError) as caught:
        sent(request)
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", "messages[0].content[1]")


def test_what_json_can_not_carry_is_an_error_with_a_status() -> None:
    with pytest.raises(ClawError) as caught:
        sent(make_request(extra={"x": "\ud800"}))
    assert caught.value.status == 400


# --- there and back --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORD = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=12)
SCHEMA = st.dictionaries(WORD, st.one_of(st.integers(-9, 9), TEXT, st.lists(TEXT, max_size=2)), max_size=3)
BASE64 = st.text("ABCDabcd0123+/", max_size=8)
PART = st.one_of(
    st.builds(TextPart, TEXT),
    st.builds(ImagePart, url=st.just("https://x.test/a?b=c"), detail=st.none() | WORD),
    st.builds(ImagePart, data=BASE64, media_type=st.just("image/webp")),
    st.builds(AudioPart, BASE64, WORD),
    st.builds(FilePart, file_id=WORD, filename=st.none() | WORD),
    st.builds(FilePart, data=BASE64, media_type=st.none() | st.just("application/pdf")),
)
CONTENT = TEXT | st.lists(PART, min_size=1, max_size=3).map(tuple)
CALLS = st.lists(st.builds(ToolCall, WORD, WORD, TEXT), min_size=1, max_size=3, unique_by=lambda call: call.id).map(tuple)
MESSAGE = st.one_of(
    st.builds(Message, st.sampled_from(["system", "developer", "user"]), CONTENT, name=st.none() | WORD),
    st.builds(Message, st.just("assistant"), st.none() | TEXT, tool_calls=CALLS, reasoning=st.none() | TEXT),
    st.builds(Message, st.just("assistant"), TEXT, reasoning=st.none() | TEXT),
    st.builds(Message, st.just("tool"), TEXT, tool_call_id=WORD),
)
REQUEST = st.builds(
    ChatRequest,
    model=st.just("upstream-model"),
    messages=st.lists(MESSAGE, min_size=1, max_size=4).map(tuple),
    stream=st.booleans(),
    max_tokens=st.none() | st.integers(1, 10_000_000),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    stop=st.lists(TEXT, max_size=4).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    top_k=st.none() | st.integers(1, 2**31 - 1),
    frequency_penalty=st.none() | st.floats(-2, 2),
    presence_penalty=st.none() | st.floats(-2, 2),
    tools=st.lists(st.builds(Tool, WORD, st.none() | TEXT, st.none() | SCHEMA, st.none() | st.booleans()), max_size=3).map(tuple),
    tool_choice=st.none()
    | st.sampled_from(["auto", "none", "required"]).map(lambda mode: ToolChoice(mode))  # type: ignore[arg-type]
    | st.builds(ToolChoice, st.just("tool"), WORD),
    parallel_tool_calls=st.none() | st.booleans(),
    response_format=st.none()
    | st.sampled_from([ResponseFormat("text"), ResponseFormat("json_object"), ResponseFormat("json_schema", {"name": "n"})]),
    reasoning_effort=st.none() | st.sampled_from(["none", "high", "max"]),
    user=st.none() | WORD,
    metadata=st.dictionaries(WORD, WORD, max_size=3),
    dialect=st.just("openai_chat"),
    extra=st.dictionaries(st.sampled_from(["top_a", "min_p", "later"]), SCHEMA, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(REQUEST)
def test_a_request_survives_the_way_to_a_provider_and_back(request: ChatRequest) -> None:
    """What a provider (or a second gateway in its place) reads is what was authorised. Only usage is asked for on the way."""
    outbound = PROVIDER["openai_chat"].encode_request(request, ROUTE)
    again = CLIENT["openai_chat"].decode_request(outbound.body, {}, make_head())
    assert again == evolve(request, include_usage=request.stream)
    assert PROVIDER["openai_chat"].encode_request(again, ROUTE) == outbound
