"""Gemini's answers read: events, figures and ends, however the bytes were cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.base import ProviderDecoder
from clawproxy.errors import KINDS
from clawproxy.events import (
    Batch,
    Begin,
    Embedding,
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
from clawproxy.messages import Message, ToolCall, Usage
from clawproxy.testing.factories import make_request


def chunk(*parts: Any, finish: str | None = None, **beside: Any) -> bytes:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return b"data: " + json.dumps({"candidates": [candidate], **beside}, ensure_ascii=False).encode() + b"\r\n\r\n"


STREAM = b"".join(
    (
        chunk({"text": "hm", "thought": True}, modelVersion="g-1", responseId="r", usageMetadata={"promptTokenCount": 5}),
        chunk({"text": "caf\u00e9 \u2028"}, usageMetadata={"promptTokenCount": 5, "candidatesTokenCount": 1}),
        b": comment\r\n\r\n",
        chunk({"text": "", "thoughtSignature": "c2ln"}),
        chunk({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "Y2FsbA=="}, {"functionCall": {"name": "g"}}),
        chunk({"inlineData": {"mimeType": "image/png", "data": "AA=="}}),
        chunk(
            finish="STOP",
            usageMetadata={
                "promptTokenCount": 5,
                "toolUsePromptTokenCount": 2,
                "candidatesTokenCount": 3,
                "thoughtsTokenCount": 4,
                "cachedContentTokenCount": 9,
            },
        ),
    )
)


def decode(pieces: Sequence[bytes], decoder: ProviderDecoder | None = None) -> tuple[list[Event], bytes, bool]:
    """The events, the bytes that may be passed on, and whether the answer is complete."""
    decoder = PROVIDER["gemini"].decoder(make_request(stream=True)) if decoder is None else decoder
    batches = [batch for piece in pieces if (batch := decoder.feed(piece)) is not None]
    last = decoder.close()
    batches += [] if last is None else [last]
    assert decoder.feed(b"data: {}\n\n") is None or not decoder.done
    events = [event for batch in batches for event in batch.events]
    return events, b"".join([batch.raw or b"" for batch in batches]), decoder.done


def test_a_stream() -> None:
    events, raw, done = decode([STREAM])
    figures = {"promptTokenCount": 5, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 3, "thoughtsTokenCount": 4}
    assert events == [
        Begin("g-1", "r"),
        Reasoning("hm"),
        UsageReport(Usage(5, raw={"promptTokenCount": 5})),
        Text("caf\u00e9 \u2028"),
        UsageReport(Usage(5, 1, raw={"promptTokenCount": 5, "candidatesTokenCount": 1})),
        KeepAlive(),
        Reasoning("", "c2ln"),
        ToolCallDelta(0, "gemini-call-0", "f", '{"a": 1}', "Y2FsbA=="),
        ToolCallDelta(1, "gemini-call-1", "g", "{}"),
        Opaque("inlineData"),
        Finish("tool_calls", "STOP"),
        UsageReport(Usage(7, 7, 7, None, 4, raw={**figures, "cachedContentTokenCount": 9})),
        End(),
    ]
    assert done
    assert raw == STREAM.replace(b": comment\r\n\r\n", b""), "Google's own bytes, and no comments"


@given(st.data())
def test_any_cut_gives_the_same(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(STREAM) - 1), max_size=12)))
    ends = data.draw(st.sampled_from([b"\r\n", b"\n", b"\r"]))
    stream = STREAM.replace(b"\r\n", ends) if ends != b"\r\n" else STREAM
    cuts = [cut for cut in cuts if cut < len(stream)]
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(pieces) == decode([STREAM])


def test_byte_by_byte() -> None:
    assert decode([STREAM[at : at + 1] for at in range(len(STREAM))]) == decode([STREAM])


def test_ids_go_on_from_the_conversation() -> None:
    before = (Message("assistant", None, (ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}"))),)
    decoder = PROVIDER["gemini"].decoder(make_request(messages=before, stream=True))
    events, _, _ = decode([chunk({"functionCall": {"name": "f"}}, {"functionCall": {"name": "f", "id": "own"}})], decoder)
    assert [event.call_id for event in events if isinstance(event, ToolCallDelta)] == ["gemini-call-2", "own"]


@pytest.mark.parametrize("at", [1, 50, 400])
def test_a_stream_without_its_end_is_cut(at: int) -> None:
    events, _, done = decode([STREAM[:at]])
    assert isinstance(events[-1], Failed)
    assert events[-1].error.slug == "provider_error.cut"
    assert not done


def test_a_last_event_without_its_blank_line_is_heard() -> None:
    events, raw, done = decode([STREAM[:-4]])
    assert (events, done) == (decode([STREAM])[0], True)
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "error"),
        ("LANGUAGE", "other"),
        ("SOMETHING_NEW", "other"),
    ],
)
def test_finish_reasons(said: str, reason: str) -> None:
    events, _, done = decode([chunk({"text": "a"}, finish=said)])
    assert Finish(reason, said) in events  # type: ignore[arg-type]
    assert done


def test_a_refused_prompt_is_a_whole_answer() -> None:
    document = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 4}}
    body = json.dumps(document).encode()
    for events, done in (
        decode([b"data: " + body + b"\r\n\r\n"])[::2],
        decode([body], PROVIDER["gemini"].decoder(make_request()))[::2],
    ):
        assert [Finish("content_filter", "PROHIBITED_CONTENT"), End()] == [e for e in events if isinstance(e, Finish | End)]
        assert done


ERROR = {"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    "tail",
    [
        b"data: " + json.dumps(ERROR).encode() + b"\r\n\r\n",
        json.dumps(ERROR, indent=2).encode(),
        json.dumps([ERROR], indent=2).replace("\n", "\r\n").encode() + b"\r\n",
    ],
)
def test_an_error_in_the_middle(tail: bytes) -> None:
    events, raw, done = decode([chunk({"text": "a"}), tail])
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.error.slug, done) == ("provider_error.overloaded", False)
    assert b"error" not in raw


@pytest.mark.parametrize(
    "data", [b"data: {\r\n\r\n", b"data: []\r\n\r\n", b'data: {"candidates":{}}\r\n\r\n', b'data: {"x":"\xff"}\r\n\r\n']
)
def test_broken_bytes_are_a_failure(data: bytes) -> None:
    events, _, done = decode([data, STREAM])
    assert isinstance(events[-1], Failed)
    assert (events[-1].error.slug, done) == ("provider_error.malformed", False)


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ({"promptTokenCount": -1, "candidatesTokenCount": 2}, (None, 2, None)),
        ({"promptTokenCount": 1.5, "thoughtsTokenCount": 2}, (None, 2, 2)),
        ({"promptTokenCount": 10**15, "candidatesTokenCount": "5"}, (None, None, None)),
        ({"candidatesTokenCount": 1, "thoughtsTokenCount": -5}, (None, None, None)),
        ({"candidatesTokenCount": 2**31 - 1, "thoughtsTokenCount": 2**31 - 1}, (None, None, 2**31 - 1)),
    ],
)
def test_figures_that_can_not_be(said: dict[str, Any], made: tuple[int | None, ...]) -> None:
    events, _, _ = decode([chunk({"text": "a"}, finish="STOP", usageMetadata=said)])
    [usage] = [event.usage for event in events if isinstance(event, UsageReport)]
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == made
    assert usage.raw == said


def whole(body: Any, **changes: Any) -> tuple[list[Event], bytes, bool]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode([data[:7], data[7:]], PROVIDER["gemini"].decoder(make_request(**changes)))


def test_one_document() -> None:
    body = json.loads(STREAM.split(b"\r\n\r\n")[0].removeprefix(b"data: "))
    events, raw, done = whole(body)
    assert events == [
        Begin("g-1", "r"),
        Reasoning("hm"),
        UsageReport(Usage(5, raw={"promptTokenCount": 5})),
        End(),
    ]
    assert (json.loads(raw), done) == (body, True)
    for bad, slug in ((b"{", "cut"), (b"[]", "malformed"), (b"{}", "malformed"), (ERROR, "overloaded")):
        events, _, done = whole(bad)
        assert isinstance(events[0], Failed)
        assert (events[0].error.slug, done) == (f"provider_error.{slug}", False)


def test_counts_and_vectors() -> None:
    events, _, done = whole({"totalTokens": 7, "cachedContentTokenCount": 2}, operation="count_tokens")
    assert isinstance(events[0], UsageReport)
    assert (events[0].usage.input_tokens, events[0].usage.cached_tokens, done) == (7, 2, True)
    assert isinstance(whole({}, operation="count_tokens")[0][0], Failed)
    two = {"embeddings": [{"values": [1, 0.5]}, {"values": [2]}], "usageMetadata": {"promptTokenCount": 3}}
    messages = (Message("user", "a"), Message("user", "b"))
    events, _, _ = whole(two, operation="embeddings", messages=messages)
    assert events[:2] == [Embedding(0, (1.0, 0.5)), Embedding(1, (2.0,))]
    assert isinstance(events[2], UsageReport)
    assert isinstance(whole(two, operation="embeddings")[0][0], Failed), "two vectors for one input"


WORDS = st.sampled_from(
    [
        "candidates",
        "content",
        "parts",
        "text",
        "thought",
        "functionCall",
        "args",
        "name",
        "finishReason",
        "error",
        "code",
        "usageMetadata",
        "promptTokenCount",
        "promptFeedback",
        "blockReason",
        "details",
        "embeddings",
        "values",
        "totalTokens",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=200)
@given(DOCUMENTS | st.binary(max_size=40), st.sampled_from(["chat", "count_tokens", "embeddings"]), st.booleans())
def test_whatever_comes_is_an_answer_or_an_error(said: Any, operation: Any, stream: bool) -> None:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    stream = stream and operation == "chat"
    decoder = PROVIDER["gemini"].decoder(make_request(operation=operation, stream=stream))
    batches: list[Batch | None] = [decoder.feed(b"data: " + data + b"\n\n" if stream else data), decoder.close()]
    events = [event for batch in batches if batch is not None for event in batch.events]
    assert decoder.done or isinstance(events[-1], Failed)
    fault = PROVIDER["gemini"].decode_error(400, {}, data)
    assert fault.slug in KINDS
