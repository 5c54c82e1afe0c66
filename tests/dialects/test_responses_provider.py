"""A provider's Responses answers: the events they hold, however they are cut, and every way they can be wrong."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import PROVIDER
from clawproxy.errors import ClawError
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Failed,
    Finish,
    KeepAlive,
    Opaque,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_request
from tests.dialects.responses_wire import BEGIN, FULL, USAGE, answer, call, message, response, sse


def decode(*pieces: bytes, stream: bool = True) -> tuple[list[Event], bytes]:
    decoder = PROVIDER["openai_responses"].decoder(make_request(stream=stream, dialect="openai_responses"))
    batches: list[Batch | None] = [decoder.feed(piece) for piece in pieces]
    batches.append(decoder.close())
    events = [event for batch in batches if batch is not None for event in batch.events]
    raw = b"".join(batch.raw or b"" for batch in batches if batch is not None)
    assert decoder.done == (bool(events) and type(events[-1]) is End)
    return events, raw


def fault(*events: dict[str, Any]) -> ClawError:
    last = decode(sse(*events))[0][-1]
    assert isinstance(last, Failed)
    return last.error


EVENTS: list[Event] = [
    Begin("gpt-x", "resp_1"),
    Reasoning("be"),
    Reasoning("cause"),
    Reasoning("", None, "gAAA", "rs_1"),
    Text("caf\u00e9 \u2028 "),
    Text("\U0001f600"),
    ToolCallDelta(0, "call_2", "f", ""),
    ToolCallDelta(0, None, None, '{"a":'),
    ToolCallDelta(0, None, None, "1}"),
    ToolCallDelta(1, "call_3", "f", ""),
    ToolCallDelta(1, None, None, "{}"),
    UsageReport(Usage(7, 5, 2, 1, 3, raw=USAGE)),
    Finish("tool_calls", "completed"),
    End(),
]


def test_a_stream() -> None:
    data = sse(*FULL)
    assert decode(data) == (EVENTS, data)


@given(st.lists(st.integers(0, len(sse(*FULL))), max_size=12))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    data = sse(*FULL)
    places = [0, *sorted(cuts), len(data)]
    assert decode(*[data[a:b] for a, b in pairwise(places)]) == (EVENTS, data)


def test_byte_by_byte_and_with_other_line_ends() -> None:
    data = sse(*FULL)
    assert decode(*[bytes([byte]) for byte in data]) == (EVENTS, data)
    assert decode(data.replace(b"\n", b"\r\n")) == (EVENTS, data)


def test_a_whole_answer() -> None:
    document = json.dumps(FULL[-1]["response"]).encode()
    events, raw = decode(document, stream=False)
    assert raw == document
    assert events == [
        Begin("gpt-x", "resp_1"),
        Reasoning("because"),
        Reasoning("", None, "gAAA", "rs_1"),
        Text("caf\u00e9 \u2028 \U0001f600"),
        ToolCallDelta(0, "call_2", "f", '{"a":1}'),
        ToolCallDelta(1, "call_3", "f", "{}"),
        *EVENTS[-3:],
    ]


def test_a_provider_that_sends_no_deltas_is_heard_all_the_same() -> None:
    whole = [event for event in FULL if not event["type"].endswith(".delta")]
    events, _ = decode(sse(*whole))
    assert [event.text for event in events if isinstance(event, Text | Reasoning)] == [
        "because",
        "",
        "caf\u00e9 \u2028 \U0001f600",
    ]
    assert [event.arguments for event in events if isinstance(event, ToolCallDelta) and event.arguments] == ['{"a":1}', "{}"]


@pytest.mark.parametrize(
    ("status", "fields", "finish"),
    [
        ("completed", {}, Finish("stop", "completed")),
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, Finish("length", "max_output_tokens")),
        ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, Finish("content_filter", "content_filter")),
        ("incomplete", {"incomplete_details": {"reason": "steered"}}, Finish("other", "steered")),
        ("incomplete", {}, Finish("other", None)),
    ],
)
def test_ends(status: str, fields: dict[str, Any], finish: Finish) -> None:
    events = answer(message(0, "a"), status=status, **fields)
    assert decode(sse(*events))[0][-2:] == [finish, End()]
    assert decode(json.dumps(events[-1]["response"]).encode(), stream=False)[0][-2:] == [finish, End()]


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        ({"code": "server_error", "message": "x"}, "provider_error.server"),
        ({"code": "rate_limit_exceeded", "message": "x"}, "provider_error.rate_limited"),
        ({"code": "context_length_exceeded", "message": "x"}, "context_length_exceeded"),
        ({"code": "insufficient_quota", "message": "x"}, "provider_error.quota"),
        ({}, "provider_error.server"),
        ("broken", "provider_error.server"),
    ],
)
def test_failures(error: Any, slug: str) -> None:
    assert fault(*BEGIN, {"type": "response.failed", "response": response("failed", error=error)}).slug == slug
    if isinstance(error, dict):
        assert fault(*BEGIN, {"type": "error", **error, "param": None}).slug == slug
    if error:
        assert fault(*BEGIN, {"type": "error", "error": error}).slug == slug
        [event] = decode(json.dumps(response("failed", error=error)).encode(), stream=False)[0]
        assert isinstance(event, Failed)
        assert event.error.slug == slug


def test_an_error_is_not_for_the_client_and_what_was_before_is() -> None:
    before = [*BEGIN, *message(0, "a")[0][:3]]
    events, raw = decode(sse(*before, {"type": "error", "code": "server_error", "message": "secret sk-1234567890"}))
    assert raw == sse(*before)
    assert events[:-1] == [Begin("gpt-x", "resp_1"), Text("a")]


@pytest.mark.parametrize("kept", [0, 1, 2, 5, 9, len(FULL) - 1])
def test_an_answer_that_ends_early_is_cut(kept: int) -> None:
    for left in (b"", b"data: [DONE]\n\n", b'event: response.completed\ndata: {"type":"response.comp'):
        last = decode(sse(*FULL[:kept]) + left)[0][-1]
        assert isinstance(last, Failed)
        assert last.error.slug == "provider_error.cut"


def test_the_last_event_needs_no_blank_line() -> None:
    assert decode(sse(*FULL)[:-2])[0] == EVENTS


def test_strange_events() -> None:
    search = {"id": "ws_1", "type": "web_search_call", "status": "in_progress"}
    strange: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "output_index": 0, "item": search},
        {"type": "response.web_search_call.searching", "output_index": 0, "item_id": "ws_1"},
        {"type": "response.rate_limits.updated"},
        {"type": "response.mcp_call.failed", "error": {"message": "a tool's error is not the answer's"}},
        {"type": "response.output_text.delta", "delta": 7},
        {"type": "response.output_text.delta"},
        {"type": "response.refusal.delta", "output_index": [], "delta": "no"},
        {"type": "response.output_item.added", "item": []},
        {"type": "response.output_item.done", "output_index": "x", "item": {"type": "message", "content": [5, {"text": 6}]}},
        {"type": "response.function_call_arguments.done", "arguments": 4},
    ]
    data = b": hello\n\n" + sse(*BEGIN, *strange) + b'event: ping\ndata: {"type":"ping"}\n\n'
    events, raw = decode(data + sse(FULL[-1]))
    assert events[:-3] == [
        KeepAlive(),
        Begin("gpt-x", "resp_1"),
        Opaque("web_search_call"),
        Opaque("web_search_call"),
        Opaque("mcp_"),
        Refused("no"),
    ]
    assert raw == sse(*BEGIN, *strange) + sse(FULL[-1])


def test_custom_and_namespaced_calls() -> None:
    custom = {"id": "ctc_0", "type": "custom_tool_call", "call_id": "c0", "name": "apply_patch", "input": ""}
    events, _ = decode(
        sse(
            *BEGIN,
            {"type": "response.output_item.added", "output_index": 0, "item": custom},
            {"type": "response.custom_tool_call_input.delta", "output_index": 0, "item_id": "ctc_0", "delta": "*** Be"},
            {"type": "response.output_item.done", "output_index": 0, "item": {**custom, "input": "*** Begin"}},
            *call(1, "{}", name="spawn", space="agents")[0],
        )
    )
    assert events[1:-1] == [
        ToolCallDelta(0, "c0", "apply_patch", ""),
        ToolCallDelta(0, None, None, "*** Be"),
        ToolCallDelta(0, None, None, "gin"),
        ToolCallDelta(1, "call_1", "agents__spawn", ""),
        ToolCallDelta(1, None, None, "{}"),
    ]


@pytest.mark.parametrize(
    "usage", [{"input_tokens": -1, "output_tokens": 2**40}, {"input_tokens": "7", "output_tokens": 1.5}, {}, 5, None]
)
def test_figures_that_can_not_be(usage: Any) -> None:
    end = {"type": "response.completed", "response": response("completed", usage=usage)}
    reports = [event.usage for event in decode(sse(*BEGIN, end))[0] if isinstance(event, UsageReport)]
    assert [(report.input_tokens, report.output_tokens) for report in reports] == (
        [(None, None)] if isinstance(usage, dict) and usage else []
    )


names = st.sampled_from(["type", "text", "content", "summary", "id"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from([event["type"] for event in FULL] + ["error", "response.failed", "response.refusal.delta", "x"])
fields = st.sampled_from(
    ["delta", "item", "output_index", "response", "part", "error", "summary_index", "arguments", "code", "message"]
)


@given(st.lists(st.tuples(kinds, st.dictionaries(fields, json_values, max_size=4)), max_size=6), st.binary(max_size=8))
def test_nothing_a_provider_sends_raises(events: list[tuple[str, dict[str, Any]]], junk: bytes) -> None:
    data = sse(*[{**more, "type": kind} for kind, more in events])
    for stream in (True, False):
        last = decode(data + junk, stream=stream)[0][-1]
        assert isinstance(last, Failed | End)
    for _, more in events:
        assert decode(json.dumps({"status": "completed", "output": [more], **more}).encode(), stream=False)
