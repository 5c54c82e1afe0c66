"""A provider's Chat Completions answers, from bytes to events, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.openai_chat.provider_answer import read_usage
from clawproxy.events import (
    Begin,
    End,
    Event,
    Failed,
    Finish,
    KeepAlive,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_request

DONE = b"data: [DONE]\n\n"
COMPLETE = Outcome("complete", finish="stop")


def sse(document: Any) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return sse(
        {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": choices, **fields}
    )


USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 2}}
REPORT = Usage(7, 5, 2, raw=USAGE)
BEGIN = Begin("m-1", "chatcmpl-7")
ROLE = chunk({"role": "assistant", "content": "", "refusal": None}, usage=None)
HI = chunk({"content": "h\u00e9\u2028\U0001f600"}, usage=None)
SAYS = Text("h\u00e9\u2028\U0001f600")
STOP = chunk({}, "stop", usage=None)
COUNT = chunk(usage=USAGE)


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, one by one, and cut in two anywhere."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def decode(pieces: Sequence[bytes], *, close: bool = True, **request: Any) -> tuple[list[Event], bytes, bool]:
    """`(events without Begin's twin, bytes for the client, done)`."""
    decoder = PROVIDER["openai_chat"].decoder(make_request(**{"stream": True, **request}))
    batches = [decoder.feed(piece) for piece in pieces]
    if close:
        batches.append(decoder.close())
    got = [batch for batch in batches if batch is not None]
    return [event for batch in got for event in batch.events], b"".join(batch.raw or b"" for batch in got), decoder.done


def kinds(events: Sequence[Event]) -> list[Any]:
    """Events, with the slug in place of a `Failed` (errors are not equal to each other)."""
    return [event.error.slug if isinstance(event, Failed) else event for event in events]


# --- from the provider -----------------------------------------------------------------------------------------------------

STREAMS: dict[str, tuple[bytes, list[Any], bytes]] = {
    "whole": (
        ROLE + HI + STOP + COUNT + DONE,
        [BEGIN, SAYS, Finish("stop", "stop"), UsageReport(REPORT), End()],
        ROLE + HI + STOP + DONE,
    ),
    "reasoning": (
        chunk({"reasoning_content": "a"}) + chunk({"reasoning": "b"}) + chunk({"reasoning_content": "", "reasoning": "c"}) + DONE,
        [BEGIN, Reasoning("a"), Reasoning("b"), Reasoning("c"), End()],
        chunk({"reasoning_content": "a"}) + chunk({"reasoning": "b"}) + chunk({"reasoning_content": "", "reasoning": "c"}) + DONE,
    ),
    "refusal": (chunk({"refusal": "no"}) + DONE, [BEGIN, Refused("no"), End()], chunk({"refusal": "no"}) + DONE),
    "tools": (
        chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]})
        + chunk(
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}, {"index": 1, "id": "d", "function": {"name": "g"}}]}
        )
        + chunk({}, "tool_calls")
        + DONE,
        [
            BEGIN,
            ToolCallDelta(0, "c", "f"),
            ToolCallDelta(0, None, None, '{"a'),
            ToolCallDelta(1, "d", "g"),
            Finish("tool_calls", "tool_calls"),
            End(),
        ],
        chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]})
        + chunk(
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}, {"index": 1, "id": "d", "function": {"name": "g"}}]}
        )
        + chunk({}, "tool_calls")
        + DONE,
    ),
    "azure's empty choices": (
        chunk(prompt_filter_results=[]) + HI + DONE,
        [BEGIN, SAYS, End()],
        chunk(prompt_filter_results=[]) + HI + DONE,
    ),
    "openrouter's comments": (
        b": OPENROUTER PROCESSING\n\n" + HI + b": OPENROUTER PROCESSING\n\n" + DONE,
        [KeepAlive(), BEGIN, SAYS, KeepAlive(), End()],
        HI + DONE,
    ),
    "crlf": (
        (HI + STOP + DONE).replace(b"\n", b"\r\n"),
        [BEGIN, SAYS, Finish("stop", "stop"), End()],
        HI + STOP + DONE,
    ),
    "no space, no last line end": (
        b"data:" + HI[6:] + STOP + b"data:[DONE]",
        [BEGIN, SAYS, Finish("stop", "stop"), End()],
        b"data:" + HI[6:] + STOP + DONE,
    ),
    "no done after a finish": (HI + STOP, [BEGIN, SAYS, Finish("stop", "stop"), End()], HI + STOP),
    "usage in the last chunk": (
        HI + chunk({}, "length", usage=USAGE) + DONE,
        [BEGIN, SAYS, Finish("length", "length"), UsageReport(REPORT), End()],
        HI + chunk({}, "length", usage=USAGE) + DONE,
    ),
    "words after the end": (HI + DONE + HI, [BEGIN, SAYS, End()], HI + DONE),
    "cut": (HI, [BEGIN, SAYS, "provider_error.cut"], HI),
    "cut in an event": (HI + STOP[:-9], [BEGIN, SAYS, "provider_error.cut"], HI),
    "nothing": (b"\n", ["provider_error.cut"], b""),
    "malformed": (HI + b"data: {nope\n\n" + HI + DONE, [BEGIN, SAYS, "provider_error.malformed"], HI),
    "no object": (b"data: 5\n\n", ["provider_error.malformed"], b""),
    "wrongly typed": (chunk({"content": "a"}, 5), ["provider_error.malformed"], b""),  # type: ignore[arg-type]
    "not utf-8": (HI + b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', [BEGIN, SAYS, "provider_error.malformed"], HI),
    "not utf-8 where nobody looks": (HI + b'data: {"choices":[],"x":"\xff"}\n\n', [BEGIN, SAYS, "provider_error.malformed"], HI),
    "error first": (sse({"error": {"message": "sk-canary", "code": 429}}) + DONE, ["provider_error.rate_limited"], b""),
    "error later": (HI + sse({"error": {"message": "x", "type": "server_error"}}), [BEGIN, SAYS, "provider_error.server"], HI),
    "error by name": (b"event: error\n" + sse({"message": "x", "code": 529}), ["provider_error.overloaded"], b""),
    "error as text": (sse({"error": "sk-canary"}), ["provider_error.server"], b""),
    "error null": (
        chunk({"content": "a"}, error=None) + DONE,
        [BEGIN, Text("a"), End()],
        chunk({"content": "a"}, error=None) + DONE,
    ),
    "unknown event": (HI + sse({"type": "ping", "key": "sk-canary"}) + DONE, [BEGIN, SAYS, End()], HI + DONE),
    "null delta, null usage": (
        sse({"choices": [{"delta": None, "finish_reason": None}, {}], "usage": {}}) + DONE,
        [Begin(), End()],
        sse({"choices": [{"delta": None, "finish_reason": None}, {}], "usage": {}}) + DONE,
    ),
    "mistral's parts": (
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "text", "text": "a"}, 5]})
        + DONE,
        [BEGIN, Reasoning("t"), Text("a"), End()],
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "text", "text": "a"}, 5]})
        + DONE,
    ),
    "function call": (
        chunk({"function_call": {"name": "f", "arguments": "{}"}}, "function_call") + DONE,
        [BEGIN, ToolCallDelta(0, None, "f", "{}"), Finish("tool_calls", "function_call"), End()],
        chunk({"function_call": {"name": "f", "arguments": "{}"}}, "function_call") + DONE,
    ),
    "an odd finish": (
        HI + chunk({}, "magic") + DONE,
        [BEGIN, SAYS, Finish("other", "magic"), End()],
        HI + chunk({}, "magic") + DONE,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_cut_anywhere(name: str) -> None:
    stream, events, raw = STREAMS[name]
    for pieces in cuts(stream):
        got, passed, done = decode(pieces)
        assert kinds(got) == events, pieces
        assert passed == raw, pieces
        assert done is (End() in events)


@pytest.mark.parametrize("name", STREAMS)
def test_k01_nothing_of_an_error_reaches_the_client(name: str) -> None:
    events, passed, _ = decode([STREAMS[name][0]])
    assert b"canary" not in passed
    assert "canary" not in "".join(event.error.message for event in events if isinstance(event, Failed))


def test_the_usage_chunk_passes_where_it_was_asked_for() -> None:
    stream = ROLE + HI + STOP + COUNT + DONE
    assert decode([stream], include_usage=True)[1] == stream
    assert decode([COUNT])[1] == b""


def test_one_read_one_batch_with_its_own_bytes() -> None:
    decoder = PROVIDER["openai_chat"].decoder(make_request(stream=True))
    decoder.feed(ROLE)
    batch = decoder.feed(HI)
    assert batch is not None
    assert (batch.raw, batch.dialect, list(batch.events)) == (HI, "openai_chat", [Text("h\u00e9\u2028\U0001f600")])
    assert decoder.feed(HI[:9]) is None
    assert not decoder.done


def test_after_the_end_nothing_is_decoded() -> None:
    decoder = PROVIDER["openai_chat"].decoder(make_request(stream=True))
    decoder.feed(HI + DONE)
    assert decoder.done
    assert decoder.feed(HI) is None
    assert decoder.close() is None


def test_an_endless_event_is_malformed() -> None:
    decoder = PROVIDER["openai_chat"].decoder(make_request(stream=True))
    batches = [decoder.feed(b"x" * 65_536) for _ in range(80)]
    failed = [event for batch in batches if batch is not None for event in batch.events]
    assert kinds(failed) == ["provider_error.malformed"]


def test_deep_chunks_are_malformed() -> None:
    assert kinds(decode([b'data: {"x":' + b"[" * 200_000 + b"\n\n"])[0]) == ["provider_error.malformed"]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (USAGE, REPORT),
        ({"prompt_tokens": 3}, Usage(3, None)),
        ({"prompt_tokens": -1, "completion_tokens": 10**18}, Usage(None, None)),
        ({"prompt_tokens": "5", "completion_tokens": True}, Usage(None, None)),
        ({"prompt_tokens": 5.0, "completion_tokens": None}, Usage(None, None)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 2}}, Usage(5, None, 5, 2)),
        ({"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 6}}, Usage(None, 5, reasoning_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "completion_tokens_details": []}, Usage(5, None)),
        ({"prompt_tokens": 5, "prompt_cache_hit_tokens": 4}, Usage(5, None, 4)),
        ({}, None),
        ([], None),
        ("x", None),
    ],
)
def test_b09_usage_is_kept_within_reason(said: Any, read: Usage | None) -> None:
    usage = read_usage(said)
    if read is None or usage is None:
        assert usage is read
        return
    figures = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
    assert [getattr(usage, name) for name in figures] == [getattr(read, name) for name in figures]
    assert usage.source == "measured"


def test_b09_what_was_said_is_kept_and_can_be_written_down() -> None:
    usage = read_usage({"prompt_tokens": -1, "completion_tokens": 10**40, "note": "x" * 1000, "a": {"b": {"c": {}}}})
    assert usage is not None
    assert usage.raw["prompt_tokens"] == -1
    assert len(json.dumps(dict(usage.raw))) < 200


# --- whole answers from the provider ---------------------------------------------------------------------------------------

ANSWER = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "created": 1,
    "model": "m-1",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hi",
                "refusal": None,
                "reasoning_content": "r",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}
EVENTS: list[Event] = [
    BEGIN,
    Reasoning("r"),
    Text("hi"),
    ToolCallDelta(0, "c", "f", "{}"),
    Finish("tool_calls", "tool_calls"),
    UsageReport(REPORT),
    End(),
]


def test_a_whole_answer() -> None:
    body = json.dumps(ANSWER).encode()
    for pieces in ([body], [body[:50], body[50:]]):
        events, raw, done = decode(pieces, stream=False)
        assert (events, raw, done) == (EVENTS, body, True)


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "provider_error.cut"),
        (json.dumps(ANSWER).encode()[:-1], "provider_error.cut"),
        (b"<html>", "provider_error.malformed"),
        (b"{}", "provider_error.malformed"),
        (b'{"choices":[]}', "provider_error.malformed"),
        (b'{"choices":[{"message":{"content":"\xff"}}]}', "provider_error.malformed"),
        (b'{"choices":[{"message":{"content":"a"}}],"x":"\xff"}', "provider_error.malformed"),
        (b"[" * 100_000, "provider_error.malformed"),
        (b'{"error":{"message":"sk-canary","code":503}}', "provider_error.overloaded"),
    ],
)
def test_a_whole_answer_that_is_none(body: bytes, slug: str) -> None:
    events, raw, done = decode([body], stream=False)
    assert (kinds(events), raw, done) == ([slug], b"", False)
