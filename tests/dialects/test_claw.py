"""The Claw format: what is understood, what is refused and how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawproxy.dialects import claw
from clawproxy.errors import ClawError
from clawproxy.messages import AudioPart, ImagePart, Message, TextPart, Tool, ToolCall, ToolChoice


def decode(**fields: Any) -> Any:
    base = {"type": "llm_request", "model": "m", "prompt": "hi"}
    if "messages" in fields:
        del base["prompt"]
    return claw.decode_request(base | fields)


def refused(slug: str, param: str | None, **fields: Any) -> ClawError:
    with pytest.raises(ClawError) as caught:
        decode(**fields)
    assert caught.value.slug == slug
    assert caught.value.details.param == param
    return caught.value


def test_the_sample_request() -> None:
    request = claw.decode_request(
        {
            "type": "llm_request",
            "model": "gpt-4-turbo",
            "prompt": "...",
            "parameters": {"max_tokens": 500, "temperature": 0.7, "stream": True},
            "metadata": {"user_id": "user123", "priority": "normal"},
        }
    )
    assert request.messages == (Message("user", "..."),)
    assert (request.model, request.max_tokens, request.temperature, request.stream) == ("gpt-4-turbo", 500, 0.7, True)
    assert (request.user, request.dialect, request.include_usage) == ("user123", "claw", True)
    assert request.metadata == {"user_id": "user123", "priority": "normal"}


def test_unknown_keys_are_ignored_except_inside_parameters() -> None:
    assert decode(new_thing=1, parameters={}).stream is True
    assert "parameters.api_base" in refused("unknown_parameter", "parameters.api_base", parameters={"api_base": "x"}).message
    error = refused("unknown_parameter", "parameters.a??b", parameters={"a\x1b\u20acb": 1})
    assert "\x1b" not in str(error)


def test_all_parameters() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}
    request = decode(
        parameters={
            "max_tokens": 1,
            "temperature": 0,
            "top_p": 1,
            "stop": ["a", "b"],
            "seed": -5,
            "stream": False,
            "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": False}},
            "reasoning_effort": "high",
            "parallel_tool_calls": False,
            "top_k": 40,
            "frequency_penalty": -2,
            "presence_penalty": 0.5,
            "reasoning_budget": 0,
        }
    )
    assert (request.top_k, request.frequency_penalty, request.presence_penalty, request.reasoning_budget) == (40, -2, 0.5, 0)
    assert request.stop == ("a", "b")
    assert request.tools == (Tool("f", "d", {"type": "object"}, True),)
    assert request.tool_choice == ToolChoice("tool", "f")
    assert request.response_format is not None
    assert request.response_format.schema == {"name": "n", "schema": {}, "strict": False}
    assert (request.reasoning_effort, request.parallel_tool_calls, request.stream) == ("high", False, False)
    assert decode(parameters={"stop": "x"}).stop == ("x",)
    sampled = decode(parameters={"top_k": 40, "frequency_penalty": -2, "presence_penalty": 0.5})
    assert (sampled.top_k, sampled.frequency_penalty, sampled.presence_penalty) == (40, -2, 0.5)
    assert decode(parameters={"tool_choice": "none"}).tool_choice == ToolChoice("none")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [-1, 0, 10**18, 1.5, 5.0, True, "5", None]),  # J-03
        ("temperature", [-0.1, 2.1, True, "1", None, float("inf"), float("nan"), 10**400]),
        ("top_p", [-1, 1.1, False, []]),
        ("top_k", [-1, 0, 1.0, True, 2**31, "5", None]),
        ("frequency_penalty", [-2.1, 2.1, True, "1", None, float("nan")]),
        ("presence_penalty", [-2.1, 2.1, True, "1", None]),
        ("seed", [1.0, True, 2**63, "1"]),
        ("stream", [1, 0, "true", None]),
        ("tool_choice", ["any", {"type": "function"}, 1, None, {"type": "x"}]),
        ("reasoning_effort", ["", "HIGH", 1, "x" * 40, "a\n"]),
        ("parallel_tool_calls", [1, None]),
        ("top_k", [0, -1, 1.5, True, "1", None, 2**31]),
        ("presence_penalty", [-2.1, 2.1, False, [], None]),
        ("reasoning_budget", [-1, 1.5, True, None]),
        ("stop", [[""], [1], 5, ["a"] * 17, None]),
        ("tools", [{}, [1], [{"type": "x"}], [{"type": "function", "function": {"name": ""}}]]),
        ("response_format", ["json", {"type": "xml"}, {"type": "json_schema"}, {}]),
    ],
)
def test_types_and_ranges_are_strict(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ClawError) as caught:
            decode(parameters={name: value})
        assert caught.value.slug == "invalid_request"
        assert (caught.value.details.param or "").startswith(f"parameters.{name}")


@pytest.mark.parametrize("value", [1, True, {}, {"text": "x"}, "", []])
def test_a_prompt_that_is_none(value: Any) -> None:
    assert refused("invalid_request", "prompt", prompt=value).message.startswith("Invalid prompt format")


def test_prompt_and_messages_are_alternatives() -> None:
    for frame in ({"model": "m"}, {"model": "m", "prompt": "a", "messages": [{"role": "user", "content": "b"}]}):
        with pytest.raises(ClawError, match="Invalid prompt format"):
            claw.decode_request(frame)
    refused("invalid_request", "messages", messages=[])
    refused("invalid_request", "messages[0].role", messages=[{"role": "robot", "content": "x"}])
    refused("invalid_request", "messages[0].role", messages=[{"role": [], "content": "x"}])
    refused("invalid_request", "messages[0].content", messages=[{"role": "user"}])
    refused("invalid_request", "messages[0].tool_call_id", messages=[{"role": "tool", "content": "x"}])
    with pytest.raises(ClawError, match="at most 3"):
        claw.decode_request({"model": "m", "messages": [{"role": "user", "content": "x"}] * 4}, max_messages=3)


@pytest.mark.parametrize("model", [None, 1, "", {}])
def test_a_model_is_a_name(model: Any) -> None:
    refused("invalid_request", "model", model=model)


def test_messages_in_the_openai_shape() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    request = decode(
        system="Be brief.",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "look"}], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call], "ignored": 1},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
    )
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", (TextPart("look"),), name="ann"),
        Message("assistant", None, tool_calls=(ToolCall("c1", "f", '{"a":1}'),)),
        Message("tool", "42", tool_call_id="c1"),
    )


def test_content_parts() -> None:
    request = decode(
        prompt=[
            {"type": "text", "text": "what is this"},
            {"type": "image", "url": "https://example.test/a.png", "detail": "low"},
            {"type": "image", "data": "aGk=", "media_type": "image/png"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGk="}},
            {"type": "audio", "data": "aGk=", "format": "wav"},
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}},
        ]
    )
    assert request.messages[0].content == (
        TextPart("what is this"),
        ImagePart(url="https://example.test/a.png", detail="low"),
        ImagePart(data="aGk=", media_type="image/png"),
        ImagePart(data="aGk=", media_type="image/jpeg"),
        AudioPart("aGk=", "wav"),
        AudioPart("aGk=", "mp3"),
    )


@pytest.mark.parametrize(
    "part",
    [
        1,
        {},
        {"type": "video"},
        {"type": "text"},
        {"type": "image"},
        {"type": "image", "url": "https://a.test/", "data": "aGk="},
        {"type": "image", "url": "file:///etc/passwd"},  # SS-02
        {"type": "image", "url": "gopher://a.test"},
        {"type": "image", "url": "https://a.test/\nHost: x"},
        {"type": "image", "url": "https://\u2460.test/"},
        {"type": "image", "url": "data:text/html;base64,aGk="},
        {"type": "image", "data": "aGk=", "media_type": "text/html"},
        {"type": "image", "data": "not base64!", "media_type": "image/png"},
        {"type": "image", "data": "aGk", "media_type": "image/png"},
        {"type": "image", "data": "aGk="},
        {"type": "image", "url": "https://a.test/", "detail": "huge"},
        {"type": "audio", "data": "aGk=", "format": "../x"},
        {"type": "audio", "format": "wav"},
    ],
)
def test_parts_that_are_none(part: Any) -> None:
    with pytest.raises(ClawError) as caught:
        decode(prompt=[part])
    assert caught.value.slug == "invalid_request"
    assert (caught.value.details.param or "").startswith("prompt[0]")


def test_metadata() -> None:
    """I-02"""
    assert decode(metadata={"tags": ["a", "b"], "n": 1.5, "yes": True, "no": None}).metadata["tags"] == ("a", "b")
    assert decode(metadata=None).metadata == {}
    cases: tuple[Any, ...] = (
        [],
        "x",
        {"user": "a\r\nAuthorization: Bearer x"},
        {"a": "x" * 513},
        {"x" * 65: "a"},
        {"a\n": "b"},
        {"": "b"},
        {"deep": {}},
        {"list": ["a"]},
        {"tags": [1]},
        {"tags": ["a"] * 65},
        {"user_id": 7},
        {"app": True},
        {str(i): 1 for i in range(65)},
        {"a": "\x1b[2J"},
        {"a": "\u2028"},
        {"a": 10**400},
        {"a": float("nan")},
    )
    for bad in cases:
        with pytest.raises(ClawError) as caught:
            decode(metadata=bad)
        assert (caught.value.details.param or "").startswith("metadata")


def test_what_is_not_there_yet_is_refused_by_name() -> None:
    refused("invalid_request", "prompt_stream", prompt_stream=1)
    assert decode(prompt_stream=False, on_disconnect="cancel", session_id=None, idempotency_key=None)
    for mode in ("grace", "drain", "detach", "never", None, 1):
        refused("invalid_request", "on_disconnect", on_disconnect=mode)
    refused("unsupported_parameter", "session_id", session_id="s")
    refused("unsupported_parameter", "idempotency_key", idempotency_key="k")


def test_the_deadline() -> None:
    assert claw.deadline({"deadline_ms": 1500}) == 1.5
    for bad in (0, -1, True, "1", 1.5, None, 10**12):
        assert claw.deadline({"deadline_ms": bad}) is None
        refused("invalid_request", "deadline_ms", deadline_ms=bad)
    assert claw.deadline({}) is None


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
OBJECT = st.dictionaries(st.sampled_from(["type", "role", "content", "text"]), SCALAR, max_size=3)
JSON = SCALAR | OBJECT | st.lists(SCALAR | OBJECT, max_size=2)
KEYS = ["model", "prompt", "messages", "system", "metadata", "session_id", "deadline_ms", "on_disconnect", "prompt_stream"]
FRAMES = st.fixed_dictionaries(
    {"model": st.just("m") | SCALAR, "prompt": st.just("p") | JSON},
    optional=dict.fromkeys(KEYS[2:], JSON)
    | {"parameters": st.dictionaries(st.sampled_from(sorted(claw.PARAMETERS)), JSON, max_size=2) | JSON},
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(FRAMES)
def test_any_json_gives_a_request_or_a_refusal(frame: dict[str, Any]) -> None:
    refusal: ClawError | None = None
    try:
        request = claw.decode_request(frame)
    except ClawError as error:
        refusal = error
    else:
        assert request.model
        assert request.messages
    assert refusal is None or (refusal.status in (400, 501) and refusal.details.param)
