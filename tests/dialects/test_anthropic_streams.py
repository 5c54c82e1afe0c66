"""A provider's Messages answers, from bytes to events, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.anthropic.words import read_usage, usage_object
from clawproxy.events import (
    Begin,
    End,
    Event,
    Failed,
    Finish,
    KeepAlive,
    Opaque,
    Reasoning,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_request


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}, ensure_ascii=False).encode() + b"\n\n"


def start(index: int, **block: Any) -> bytes:
    return sse("content_block_start", index=index, content_block=block)


def delta(index: int, **fields: Any) -> bytes:
    return sse("content_block_delta", index=index, delta=fields)


def stop(index: int) -> bytes:
    return sse("content_block_stop", index=index)


INPUT = {"input_tokens": 5, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 1}
HEAD = sse("message_start", message={"id": "msg_1", "model": "claude-x", "content": [], "usage": INPUT})
BEGIN: list[Any] = [Begin("claude-x", "msg_1"), UsageReport(Usage(10, None, 3, 2, raw=INPUT))]
TEXT = start(0, type="text", text="") + delta(0, type="text_delta", text="h\u00e9\u2028\U0001f600") + stop(0)
SAYS = Text("h\u00e9\u2028\U0001f600")
OUTPUT = {"output_tokens": 15, "output_tokens_details": {"thinking_tokens": 4}}
TAIL = sse("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=OUTPUT)
ENDS: list[Any] = [Finish("stop", "end_turn"), UsageReport(Usage(10, 15, 3, 2, 4, raw={**INPUT, **OUTPUT}))]
DONE = sse("message_stop")
PING = sse("ping")
SEARCH = start(0, type="server_tool_use", id="s", name="web_search", input={})
SEARCH_DELTA = delta(0, type="input_json_delta", partial_json='{"q":1}')
CITED = delta(0, type="citations_delta", citation={"type": "page_location"})


def payload(wire: bytes) -> bytes:
    return wire.partition(b"data: ")[2].strip()


STREAMS: dict[str, tuple[bytes, list[Any], bytes]] = {
    "text": (HEAD + TEXT + TAIL + DONE, [*BEGIN, SAYS, *ENDS, End()], HEAD + TEXT + TAIL + DONE),
    "thinking": (
        HEAD
        + start(0, type="thinking", thinking="", signature="")
        + delta(0, type="thinking_delta", thinking="hm")
        + delta(0, type="signature_delta", signature="c2ln")
        + stop(0)
        + start(1, type="redacted_thinking", data="eA==")
        + stop(1)
        + DONE,
        [*BEGIN, Reasoning("hm"), Reasoning("", "c2ln"), Reasoning("", None, "eA=="), End()],
        b"",
    ),
    "tools": (
        HEAD
        + start(0, type="tool_use", id="toolu_1", name="f", input={})
        + delta(0, type="input_json_delta", partial_json="")
        + delta(0, type="input_json_delta", partial_json='{"a":')
        + delta(0, type="input_json_delta", partial_json="1}")
        + stop(0)
        + start(1, type="tool_use", id="toolu_2", name="g", input={"b": 2})
        + stop(1)
        + sse("message_delta", delta={"stop_reason": "tool_use"})
        + DONE,
        [
            *BEGIN,
            ToolCallDelta(0, "toolu_1", "f"),
            ToolCallDelta(0, arguments='{"a":'),
            ToolCallDelta(0, arguments="1}"),
            ToolCallDelta(1, "toolu_2", "g", '{"b":2}'),
            Finish("tool_calls", "tool_use"),
            End(),
        ],
        b"",
    ),
    "what only this format has": (
        HEAD + SEARCH + SEARCH_DELTA + stop(0) + CITED + DONE,
        [
            *BEGIN,
            Opaque("server_tool_use", payload(SEARCH)),
            Opaque("input_json_delta", payload(SEARCH_DELTA)),
            Opaque("citations_delta", payload(CITED)),
            End(),
        ],
        b"",
    ),
    "pings and events nobody knows": (
        HEAD + PING + sse("novel", delta="x", content_block=5) + TEXT + PING + DONE,
        [*BEGIN, KeepAlive(), SAYS, KeepAlive(), End()],
        b"",
    ),
    "a stop sequence": (
        HEAD + sse("message_delta", delta={"stop_reason": "stop_sequence", "stop_sequence": "END"}) + DONE,
        [*BEGIN, Finish("stop", "stop_sequence", "END"), End()],
        b"",
    ),
    "a stop reason nobody knows": (
        HEAD + sse("message_delta", delta={"stop_reason": "tired"}) + DONE,
        [*BEGIN, Finish("other", "tired"), End()],
        b"",
    ),
    "no event names": (
        (HEAD + TEXT + DONE).replace(b"event: ", b": "),
        [*BEGIN, SAYS, End()],
        HEAD + TEXT + DONE,
    ),
    "crlf, comments, ids": (
        b": hello\r\n\r\n" + (HEAD + TEXT).replace(b"\n", b"\r\n") + b"id: 7\r\n" + DONE.replace(b"\n", b"\r\n"),
        [KeepAlive(), *BEGIN, SAYS, End()],
        HEAD + TEXT + DONE,
    ),
    "json on several lines": (
        b'event: content_block_delta\ndata: {"type": "content_block_delta",\ndata: "index": 0, "delta": {"type": "text_delta",\n'
        b'data: "text": "a"}}\n\n' + DONE,
        [Text("a"), End()],
        b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", '
        b'"text": "a"}}\n\n' + DONE,
    ),
    "a habit of others": (HEAD + TEXT + b"data: [DONE]\n\n" + DONE, [*BEGIN, SAYS, End()], HEAD + TEXT + DONE),
    "words after the end": (HEAD + TEXT + DONE + TEXT, [*BEGIN, SAYS, End()], HEAD + TEXT + DONE),
    "no last line end": (HEAD + TEXT + DONE.rstrip(b"\n"), [*BEGIN, SAYS, End()], HEAD + TEXT + DONE),
    "cut": (HEAD + TEXT, [*BEGIN, SAYS, "provider_error.cut"], HEAD + TEXT),
    "cut after the stop reason": (HEAD + TEXT + TAIL, [*BEGIN, SAYS, *ENDS, "provider_error.cut"], HEAD + TEXT + TAIL),
    "cut in an event": (HEAD + TEXT[:-9], [*BEGIN, SAYS, "provider_error.cut"], HEAD + TEXT[: -len(stop(0))]),
    "nothing": (b"\n", ["provider_error.cut"], b"\n"),
    "overloaded at once": (
        sse("error", error={"type": "overloaded_error", "message": "sk-canary"}),
        ["provider_error.overloaded"],
        b"\n",
    ),
    "an error later": (
        HEAD + TEXT + sse("error", error={"type": "api_error", "message": "x"}) + DONE,
        [*BEGIN, SAYS, "provider_error.server"],
        HEAD + TEXT,
    ),
    "an error without a name": (
        b'data: {"type":"error","error":{"type":"rate_limit_error"}}\n\n',
        ["provider_error.rate_limited"],
        b"\n",
    ),
    "spent": (
        sse("error", error={"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}),
        ["provider_error.quota"],
        b"\n",
    ),
    "malformed": (HEAD + b"event: content_block_delta\ndata: {nope\n\n" + DONE, [*BEGIN, "provider_error.malformed"], HEAD),
    "wrongly typed": (HEAD + delta(0, type="text_delta", text=5) + DONE, [*BEGIN, "provider_error.malformed"], HEAD),
    "no delta": (HEAD + sse("content_block_delta", index=0) + DONE, [*BEGIN, "provider_error.malformed"], HEAD),
    "not utf-8": (HEAD + b'event: novel\ndata: {"x":"\xff"}\n\n' + DONE, [*BEGIN, "provider_error.malformed"], HEAD),
}


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, one by one, and cut in two anywhere."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def decode(pieces: Sequence[bytes], **request: Any) -> tuple[list[Any], bytes, bool]:
    """`(events, slugs in place of failures; bytes for the client; done)`."""
    decoder = PROVIDER["anthropic"].decoder(make_request(**{"stream": True, **request}))
    got = [batch for batch in [*map(decoder.feed, pieces), decoder.close()] if batch is not None]
    events: list[Event] = [event for batch in got for event in batch.events]
    shown = [event.error.slug if isinstance(event, Failed) else event for event in events]
    return shown, b"".join(batch.raw or b"" for batch in got), decoder.done


@pytest.mark.parametrize("name", STREAMS)
def test_streams_cut_anywhere(name: str) -> None:
    data, events, wire = STREAMS[name]
    for pieces in cuts(data):
        got, passed, done = decode(pieces)
        assert got == events
        assert done is (events[-1] == End())
        if wire == b"":  # all of it
            assert passed == data
        else:
            assert passed == wire.lstrip(b"\n")


WHOLE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
        {"type": "novel", "x": 1},
    ],
    "stop_reason": "tool_use",
    "usage": {**INPUT, **OUTPUT},
}


def whole(document: Any, **request: Any) -> list[Any]:
    return decode([json.dumps(document).encode()], stream=False, **request)[0]


def test_a_whole_message() -> None:
    assert whole(WHOLE) == [
        Begin("claude-x", "msg_1"),
        Reasoning("hm", "c2ln"),
        Text("a"),
        ToolCallDelta(0, "toolu_1", "f", '{"a":1}'),
        Opaque("novel", b'{"type":"novel","x":1}'),
        Finish("tool_calls", "tool_use"),
        UsageReport(Usage(10, 15, 3, 2, 4, raw={**INPUT, **OUTPUT})),
        End(),
    ]


@pytest.mark.parametrize(
    ("document", "slug"),
    [
        ({"type": "error", "error": {"type": "overloaded_error"}}, "provider_error.overloaded"),
        ({}, "provider_error.malformed"),
        ({"content": "x"}, "provider_error.malformed"),
        ({"content": [5]}, "provider_error.malformed"),
        ({"content": [{"type": "text", "text": 5}]}, "provider_error.malformed"),
        ([], "provider_error.malformed"),
    ],
)
def test_whole_answers_that_are_none(document: Any, slug: str) -> None:
    assert whole(document) == [slug]


def test_a_whole_answer_that_was_cut() -> None:
    assert decode([json.dumps(WHOLE).encode()[:-5]], stream=False)[0] == ["provider_error.cut"]


def test_counted_tokens() -> None:
    said = {"input_tokens": 25}
    assert whole(said, operation="count_tokens") == [UsageReport(Usage(25, 0, raw={**said, "output_tokens": 0})), End()]
    assert whole({"input_tokens": -1}, operation="count_tokens") == ["provider_error.malformed"]
    assert whole({"error": {"type": "not_found_error"}}, operation="count_tokens") == ["provider_error.not_found"]


def test_figures_that_can_not_be() -> None:
    usage = read_usage({"input_tokens": 5, "cache_read_input_tokens": -3, "output_tokens": 10**40, "note": "x" * 100})
    assert usage is not None
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens) == (5, None, None)
    assert usage.raw["output_tokens"] == "integer beyond 64 bits"
    assert len(usage.raw["note"]) == 64
    assert read_usage({}) is None


@pytest.mark.parametrize("usage", [Usage(10, 15, 3, 2, 4), Usage(10, 15), Usage(0, 0, 0, 0, 0), Usage(7, 5, 7)])
def test_figures_there_and_back(usage: Usage) -> None:
    back = read_usage(usage_object(usage))
    assert back is not None
    for name in ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert getattr(back, name) == getattr(usage, name)


def test_what_is_not_known_is_zero_only_where_the_format_wants_a_figure() -> None:
    assert usage_object(None) == usage_object(Usage()) == {"input_tokens": 0, "output_tokens": 0}
