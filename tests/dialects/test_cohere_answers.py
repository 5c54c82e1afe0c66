"""Cohere's answers: read from its servers however they are cut, written for its clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.cohere.provider_answer import read_usage
from clawproxy.events import (
    Begin,
    Embedding,
    End,
    Event,
    Failed,
    Finish,
    KeepAlive,
    Opaque,
    Outcome,
    Reasoning,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_request
from tests.dialects.native import cuts, decoded

STREAM = make_request(stream=True, dialect="cohere")
WHOLE = make_request(dialect="cohere")
COMPLETE = Outcome("complete", finish="stop")


def event(kind: str, message: dict[str, Any] | None = None, **fields: Any) -> bytes:
    delta = {} if message is None else {"delta": {"message": message}}
    data = json.dumps({"type": kind, **delta, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def content(index: int = 0, **said: str) -> bytes:
    return event("content-delta", {"content": said}, index=index)


def end(reason: str = "COMPLETE", **delta: Any) -> bytes:
    return event("message-end", id="i-1", delta={"finish_reason": reason, **delta})


SPENT = {
    "billed_units": {"input_tokens": 7, "output_tokens": 5},
    "tokens": {"input_tokens": 67, "output_tokens": 5},
    "cached_tokens": 2,
}
REPORT = UsageReport(Usage(7, 5, 2, raw=SPENT))
START = event("message-start", {"role": "assistant", "content": [], "tool_calls": []}, id="i-1")
OPEN = event("content-start", {"content": {"type": "text", "text": ""}}, index=0)
HI = content(text="h\u00e9\u2028\U0001f600")
SAYS = Text("h\u00e9\u2028\U0001f600")
CLOSE = event("content-end", index=0)
LAST = end(usage=SPENT)
BEGIN = Begin(None, "i-1")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
STOP: list[Event] = [REPORT, Finish("stop", "COMPLETE"), End()]


def stream(pieces: list[bytes]) -> list[Event]:
    return decoded(PROVIDER["cohere"].decoder(STREAM), pieces)[0]


def slugs(events: Sequence[Event]) -> list[str]:
    return [each.error.slug for each in events if isinstance(each, Failed)]


STREAMS: list[tuple[str, bytes, list[Event]]] = [
    ("text", START + OPEN + HI + CLOSE + LAST, [BEGIN, SAYS, *STOP]),
    ("crlf", (START + HI + LAST).replace(b"\n", b"\r\n"), [BEGIN, SAYS, *STOP]),
    ("no blank line at the end", START + HI + LAST.rstrip(), [BEGIN, SAYS, *STOP]),
    ("after the end", START + HI + LAST + HI, [BEGIN, SAYS, *STOP]),
    (
        "a start that says something",
        event("content-start", {"content": {"type": "text", "text": "a"}}) + LAST,
        [Text("a"), *STOP],
    ),
    ("comments", b": hello\n\n" + START + HI + LAST, [KeepAlive(), BEGIN, SAYS, *STOP]),
    ("thinking", START + content(thinking="hm") + LAST, [BEGIN, Reasoning("hm"), *STOP]),
    (
        "a plan and a call",
        START
        + event("tool-plan-delta", {"tool_plan": "I will."})
        + event("tool-call-start", {"tool_calls": CALL}, index=0)
        + event("tool-call-delta", {"tool_calls": {"function": {"arguments": '{"a":'}}}, index=0)
        + event("tool-call-delta", {"tool_calls": {"function": {"arguments": "1}"}}}, index=0)
        + event("tool-call-end", index=0)
        + end("TOOL_CALL"),
        [
            BEGIN,
            Reasoning("I will."),
            ToolCallDelta(0, "c1", "f", ""),
            ToolCallDelta(0, None, None, '{"a":'),
            ToolCallDelta(0, None, None, "1}"),
            Finish("tool_calls", "TOOL_CALL"),
            End(),
        ],
    ),
    (
        "citations",
        START
        + HI
        + event("citation-start", {"citations": {"start": 0, "end": 2}}, index=0)
        + event("citation-end", index=0)
        + LAST,
        [BEGIN, SAYS, Opaque("citation"), *STOP],
    ),
    ("unknown", START + event("debug", prompt="x") + event("new-thing", {"content": 5}) + LAST, [BEGIN, *STOP]),
    ("length", end("MAX_TOKENS"), [Finish("length", "MAX_TOKENS"), End()]),
    ("sequence", end("STOP_SEQUENCE"), [Finish("stop", "STOP_SEQUENCE"), End()]),
    ("other", end("NEW"), [Finish("other", "NEW"), End()]),
]


@pytest.mark.parametrize(("data", "events"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS])
def test_streams(data: bytes, events: list[Event]) -> None:
    for pieces in cuts(data):
        assert stream(pieces) == events


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "cut"),
        (b": ping\n\n", "cut"),
        (HI, "cut"),
        (HI + b"data: [DONE]\n\n", "cut"),
        (HI + LAST[:-9], "cut"),
        (HI + b"data: oops\n\n", "malformed"),
        (HI + b"data: 5\n\n", "malformed"),
        (HI + event("content-delta", {"content": {"text": 5}}) + LAST, "malformed"),
        (HI + event("content-delta", {"content": "x"}) + LAST, "malformed"),
        (HI + event("tool-call-start", {"tool_calls": []}) + LAST, "malformed"),
        (HI + b'data: {"type":"new","x":"\xff"}\n\n', "malformed"),
        (HI + end("ERROR", error="boom"), "server"),
        (HI + end("TIMEOUT"), "server"),
        (HI + end("COMPLETE", error="boom"), "server"),
    ],
)
def test_streams_that_fail(data: bytes, slug: str) -> None:
    for pieces in cuts(data):
        events = [each for each in stream(pieces) if not isinstance(each, KeepAlive)]
        assert slugs(events) == [f"provider_error.{slug}"]
        assert events[:-1] == ([SAYS] if HI in data else [])


def test_what_was_used_counts_though_it_failed() -> None:
    events = stream([HI + end("ERROR", usage=SPENT)])
    assert events[1] == REPORT
    assert slugs(events) == ["provider_error.server"]


def test_a_batch_keeps_what_a_client_may_see() -> None:
    decoder = PROVIDER["cohere"].decoder(STREAM)
    data = b": secret\n\n" + START + OPEN + HI + CLOSE
    assert decoded(decoder, [data + end("ERROR", error="secret")])[1] == START + OPEN + HI + CLOSE


def test_whole_answers() -> None:
    message = {
        "role": "assistant",
        "tool_plan": "I will.",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{}"}}],
        "citations": [{"start": 0}],
    }
    document = {"id": "i-1", "finish_reason": "TOOL_CALL", "message": message, "usage": SPENT}
    body = json.dumps(document).encode()
    for pieces in cuts(body):
        events, raw = decoded(PROVIDER["cohere"].decoder(WHOLE), pieces)
        assert events == [
            BEGIN,
            Reasoning("I will."),
            Reasoning("hm"),
            Text("a"),
            ToolCallDelta(0, "c1", "f", "{}"),
            Opaque("citation"),
            REPORT,
            Finish("tool_calls", "TOOL_CALL"),
            End(),
        ]
        assert raw == body
    for broken, slug in (
        (body[:-9], "cut"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (b'{"message":"internal"}', "server"),
        (b'{"finish_reason":"TIMEOUT","message":{}}', "server"),
        (b'{"message":{"content":5}}', "malformed"),
    ):
        assert slugs(decoded(PROVIDER["cohere"].decoder(WHOLE), [broken])[0]) == [f"provider_error.{slug}"]


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (SPENT, Usage(7, 5, 2, raw=SPENT)),
        ({"tokens": {"input_tokens": 3.0, "output_tokens": 2}}, (3, 2, None)),
        ({"billed_units": {"output_tokens": 2}, "tokens": {"input_tokens": 9, "output_tokens": 8}}, (9, 2, None)),
        ({"billed_units": {"input_tokens": -1, "output_tokens": 2.5}}, (None, None, None)),
        ({"billed_units": {"input_tokens": 1e300, "output_tokens": "x"}}, (None, None, None)),
        ({"billed_units": {"input_tokens": 3}, "cached_tokens": 9}, (3, None, 3)),
        ({"billed_units": 5, "tokens": []}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_usage(said: Any, usage: Any) -> None:
    found = read_usage(said)
    if isinstance(usage, tuple):
        assert found is not None
        assert (found.input_tokens, found.output_tokens, found.cached_tokens) == usage
    else:
        assert found == usage


def test_vectors() -> None:
    request = make_request(operation="embeddings", dialect="cohere")

    def read(embeddings: Any) -> list[Event]:
        document = {"id": "i-1", "embeddings": embeddings, "meta": {"billed_units": {"input_tokens": 7}}}
        return decoded(PROVIDER["cohere"].decoder(request), [json.dumps(document).encode()])[0]

    rest = [UsageReport(Usage(7, raw={"billed_units": {"input_tokens": 7}})), Finish("stop"), End()]
    assert read({"float": [[1, 2]], "int8": None}) == [BEGIN, Embedding(0, (1.0, 2.0)), *rest]
    assert read([[1, 2]]) == [BEGIN, Embedding(0, (1.0, 2.0)), *rest]
    assert read({"base64": ["AA=="], "int8": [[1]]}) == [BEGIN, Embedding(0, "AA=="), Opaque("embedding"), *rest]
    for broken in (5, {"float": 5}, {"float": [["x"]]}, None):
        assert slugs(read(broken)) == ["provider_error.malformed"]


@pytest.mark.parametrize(
    ("status", "words", "slug"),
    [
        (400, "invalid request: temperature", "provider_error.rejected"),
        (401, "invalid api token", "provider_error.auth"),
        (404, "model not found", "provider_error.not_found"),
        (422, "unprocessable", "provider_error.rejected"),
        (429, "too many requests", "provider_error.rate_limited"),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month.", "provider_error.quota"),
        (429, "Trial keys are limited to 20 API calls / minute.", "provider_error.rate_limited"),
        (498, "invalid token", "provider_error.auth"),
        (499, "client closed request", "provider_error.overloaded"),
        (500, "internal", "provider_error.server"),
        (503, "unavailable", "provider_error.overloaded"),
        (400, "too many tokens: the prompt is too long", "context_length_exceeded"),
    ],
)
def test_errors(status: int, words: str, slug: str) -> None:
    fault = PROVIDER["cohere"].decode_error(status, {"retry-after": "3"}, json.dumps({"message": words}).encode())
    assert fault.slug == slug
    assert ("temperature" in fault.message) is (status == 400 and "temperature" in words)
    assert PROVIDER["cohere"].decode_error(500, {}, b"[5]").slug == "provider_error.server"
