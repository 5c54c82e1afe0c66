"""Ollama's answers: read from its servers however they are cut, written for its clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.context import Timing
from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import ClawError
from clawproxy.events import (
    Batch,
    Begin,
    Embedding,
    End,
    Event,
    Failed,
    Finish,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Message, ToolCall, Usage
from clawproxy.testing.factories import make_exchange, make_request
from tests.dialects.native import cuts, decoded

STREAM = make_request(stream=True, dialect="ollama")
WHOLE = make_request(dialect="ollama")
COMPLETE = Outcome("complete", finish="stop")


def line(message: dict[str, Any] | None = None, *, end: bytes = b"\n", **fields: Any) -> bytes:
    content = {"role": "assistant", "content": "", **(message or {})}
    document = {"model": "m-1", "created_at": "2026-11-01T00:00:00Z", "message": content, "done": False, **fields}
    return json.dumps(document, ensure_ascii=False).encode() + end


FIGURES: dict[str, Any] = {"prompt_eval_count": 7, "eval_count": 5, "total_duration": 99}
REPORT = UsageReport(Usage(7, 5, raw=FIGURES))
HI = line({"content": "h\u00e9\U0001f600"})
SAYS = Text("h\u00e9\U0001f600")
LAST = line(done=True, done_reason="stop", **FIGURES)
BEGIN = Begin("m-1")
CALLS = [
    {"function": {"name": "f", "arguments": {"a": [1, {"b": "}"}]}}},
    {"id": "own", "function": {"index": 1, "name": "g", "arguments": {}}},
]


def stream(pieces: list[bytes], request: ChatRequest = STREAM) -> list[Event]:
    return decoded(PROVIDER["ollama"].decoder(request), pieces)[0]


def slugs(events: list[Event]) -> list[str]:
    return [event.error.slug for event in events if isinstance(event, Failed)]


STREAMS: list[tuple[str, bytes, list[Event]]] = [
    ("text", HI + LAST, [BEGIN, SAYS, REPORT, Finish("stop", "stop"), End()]),
    ("crlf", HI.replace(b"\n", b"\r\n") + b"\r\n" + LAST, [BEGIN, SAYS, REPORT, Finish("stop", "stop"), End()]),
    ("no last line end", HI + LAST.strip(), [BEGIN, SAYS, REPORT, Finish("stop", "stop"), End()]),
    ("thinking", line({"thinking": "hm"}) + LAST, [BEGIN, Reasoning("hm"), REPORT, Finish("stop", "stop"), End()]),
    ("all in one", line({"content": "a"}, done=True), [BEGIN, Text("a"), Finish("stop", "stop"), End()]),
    ("length", line(done=True, done_reason="length"), [BEGIN, Finish("length", "length"), End()]),
    ("load", line(done=True, done_reason="load"), [BEGIN, Finish("other", "load"), End()]),
    ("after the end", HI + LAST + HI, [BEGIN, SAYS, REPORT, Finish("stop", "stop"), End()]),
    (
        "calls",
        line({"tool_calls": CALLS[:1]}) + line({"tool_calls": CALLS[1:]}) + line(done=True, done_reason="stop"),
        [
            BEGIN,
            ToolCallDelta(0, "call_0", "f", '{"a": [1, {"b": "}"}]}'),
            ToolCallDelta(1, "own", "g", "{}"),
            Finish("tool_calls", "stop"),
            End(),
        ],
    ),
    ("unknown lines", b'{"scripted":1}\n' + LAST, [Begin(None), REPORT, Finish("stop", "stop"), End()]),
]


@pytest.mark.parametrize(("data", "events"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS])
def test_streams(data: bytes, events: list[Event]) -> None:
    for pieces in cuts(data):
        assert stream(pieces) == events


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "cut"),
        (HI, "cut"),
        (HI + LAST[:-5], "cut"),
        (HI + LAST.strip()[:-1], "cut"),
        (HI + b"oops\n" + LAST, "malformed"),
        (HI + line({"content": 5}) + LAST, "malformed"),
        (HI + b'{"message":{"content":"\xff"}}\n', "malformed"),
        (HI + b'{"unknown":"\xff"}\n', "malformed"),
        (HI + line(done="yes"), "malformed"),
        (HI + b'{"error":"llama runner process has terminated"}\n', "server"),
        (HI + b'{"error":"you exceeded your current quota"}', "quota"),
        (HI + b"[" * 5000 + b"\n", "malformed"),
    ],
)
def test_streams_that_fail(data: bytes, slug: str) -> None:
    pieces = [[data]] if len(data) > 1000 else cuts(data)
    for each in pieces:
        events = stream(each)
        assert slugs(events) == [f"provider_error.{slug}"]
        assert isinstance(events[-1], Failed)
        assert events[:-1] == ([BEGIN, SAYS] if data else [])


def test_a_context_that_is_too_small_is_the_clients_error() -> None:
    [event] = stream([b'{"error":"the input length exceeds the context length"}\n'])
    assert isinstance(event, Failed)
    assert event.error.slug == "context_length_exceeded"


def test_ids_count_on_from_the_conversation() -> None:
    before = Message("assistant", None, (ToolCall("x", "f", "{}"), ToolCall("y", "f", "{}")))
    request = make_request(stream=True, messages=(Message("user", "a"), before))
    calls = [event for event in stream([line({"tool_calls": CALLS[:1]})], request) if isinstance(event, ToolCallDelta)]
    assert [call.call_id for call in calls] == ["call_2"]


@pytest.mark.parametrize(
    ("figures", "usage"),
    [
        ({"prompt_eval_count": -1, "eval_count": 2.5}, Usage(None, None, raw={"prompt_eval_count": -1, "eval_count": 2.5})),
        ({"eval_count": 10**12}, Usage(None, None, raw={"eval_count": 10**12})),
        ({"eval_count": "many"}, Usage(None, None, raw={"eval_count": "many"})),
        ({"eval_count": 3}, Usage(None, 3, raw={"eval_count": 3})),
    ],
)
def test_figures_that_can_not_be(figures: dict[str, Any], usage: Usage) -> None:
    assert [event.usage for event in stream([line(done=True, **figures)]) if isinstance(event, UsageReport)] == [usage]


def test_a_batch_keeps_what_a_client_may_see() -> None:
    data = HI.replace(b"\n", b"\r\n") + b"\n" + LAST.strip()
    assert decoded(PROVIDER["ollama"].decoder(STREAM), [data])[1] == HI + LAST
    assert decoded(PROVIDER["ollama"].decoder(STREAM), [HI + b'{"error":"secret"}\n'])[1] == HI


def test_whole_answers() -> None:
    body = line({"content": "a", "thinking": "hm", "tool_calls": CALLS[1:]}, done=True, done_reason="stop", **FIGURES, end=b"")
    for pieces in cuts(body):
        events, raw = decoded(PROVIDER["ollama"].decoder(WHOLE), pieces)
        assert events == [
            BEGIN,
            Reasoning("hm"),
            Text("a"),
            ToolCallDelta(0, "own", "g", "{}"),
            REPORT,
            Finish("tool_calls", "stop"),
            End(),
        ]
        assert raw == body
    for broken, slug in (
        (body[:-9], "cut"),
        (b"[]", "malformed"),
        (b'{"error":"x"}', "server"),
        (HI, "malformed"),
        (b'{"a":"\xff"}', "malformed"),
    ):
        assert slugs(decoded(PROVIDER["ollama"].decoder(WHOLE), [broken])[0]) == [f"provider_error.{slug}"]


def test_vectors() -> None:
    request = make_request(operation="embeddings", dialect="ollama")
    body = b'{"model":"m-1","embeddings":[[1,2.5],[3,4]],"prompt_eval_count":7}'
    events, raw = decoded(PROVIDER["ollama"].decoder(request), [body])
    report = UsageReport(Usage(7, raw={"prompt_eval_count": 7}))
    assert events == [BEGIN, Embedding(0, (1.0, 2.5)), Embedding(1, (3.0, 4.0)), report, Finish("stop"), End()]
    assert raw == body
    for broken in (b"{}", b'{"embeddings":[["x"]]}', b'{"embeddings":5}'):
        assert slugs(decoded(PROVIDER["ollama"].decoder(request), [broken])[0]) == ["provider_error.malformed"]


# --- for clients -----------------------------------------------------------------------------------------------------------


def written(events: list[Event], request: ChatRequest = STREAM, kind: str = "ollama", **exchange: Any) -> list[Any]:
    """What a client is sent: the documents."""
    answer = CLIENT[kind].answer(make_exchange(**exchange), request)
    body = b"".join(answer.encode(Batch([event])) for event in events) + answer.finish(COMPLETE, None)
    assert answer.keepalive() == b""
    return [json.loads(each) for each in body.split(b"\n") if each]


def test_a_stream_for_a_client() -> None:
    timing = Timing(connect=0.5, first_token=1.0, upstream=3.0, total=4.0)
    events: list[Event] = [
        Begin("x"),
        Reasoning("hm"),
        Reasoning("", signature="s"),
        Text("a"),
        Refused("no"),
        ToolCallDelta(3, "id1", "f", '{"a":'),
        ToolCallDelta(3, None, None, " 1}"),
        ToolCallDelta(4, None, "g", ""),
        UsageReport(Usage(7, 5)),
        Finish("tool_calls"),
        End(),
    ]
    documents = written(events, timing=timing, started_unix=0.0, requested_model="asked")
    head = {"model": "asked", "created_at": "1970-01-01T00:00:00.000000Z"}
    calls = [
        {"id": "id1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
        {"id": "call_1", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    assert documents == [
        {**head, "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {**head, "message": {"role": "assistant", "content": "a"}, "done": False},
        {**head, "message": {"role": "assistant", "content": "no"}, "done": False},
        {**head, "message": {"role": "assistant", "content": "", "tool_calls": calls}, "done": False},
        {
            **head,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "total_duration": 4_000_000_000,
            "load_duration": 500_000_000,
            "prompt_eval_duration": 1_000_000_000,
            "eval_duration": 2_000_000_000,
            "prompt_eval_count": 7,
            "eval_count": 5,
        },
    ]


def test_what_is_not_known_is_left_out() -> None:
    [last] = written([])
    assert set(last) == {"model", "created_at", "message", "done", "done_reason"}


def test_a_line_holds_no_other_line_end() -> None:
    """httpx, and so the SDK, splits where `str.splitlines` does."""
    odd = "a\u0085b\u2028c\u2029d\u000be\r\nf"
    for kind in ("ollama", "ollama_generate"):
        answer = CLIENT[kind].answer(make_exchange(requested_model=odd), STREAM)
        call = ToolCallDelta(0, "x", "f", json.dumps({"a": odd}))
        body = b"".join(answer.encode(Batch([each])) for each in (Text(odd), Reasoning(odd), call)) + answer.finish(
            COMPLETE, None
        )
        assert len(body.decode().splitlines()) == 4
        assert json.loads(body.split(b"\n")[0])["model"] == odd


@pytest.mark.parametrize("arguments", ["{oops", "[1]", "5", '{"a":1}{'])
def test_arguments_that_are_no_object_end_the_answer(arguments: str) -> None:
    for request in (STREAM, WHOLE):
        answer = CLIENT["ollama"].answer(make_exchange(), request)
        answer.encode(Batch([ToolCallDelta(0, "x", "f", arguments)]))
        with pytest.raises(ClawError, match="no JSON object"):
            answer.finish(COMPLETE, None)


def test_a_failure() -> None:
    answer = CLIENT["ollama"].answer(make_exchange(), STREAM)
    assert json.loads(answer.fail(ClawError("provider_error.cut"))) == {"error": "The provider's answer was cut off."}
    assert answer.fail(ClawError("internal")) == answer.finish(COMPLETE, None) == answer.encode(Batch([Text("a")])) == b""


def test_the_providers_bytes_pass() -> None:
    for kind, passes in (("ollama", True), ("ollama_generate", False)):
        answer = CLIENT[kind].answer(make_exchange(), STREAM)
        decoder = PROVIDER["ollama"].decoder(STREAM)
        batch = decoder.feed(HI + LAST)
        assert batch is not None
        body = answer.encode(batch) + answer.finish(COMPLETE, None)
        assert (body == HI + LAST) is passes
        assert json.loads(body.split(b"\n")[1])["done"] is True


def test_bytes_pass_behind_a_call_that_a_policy_changed() -> None:
    answer = CLIENT["ollama"].answer(make_exchange(), STREAM)
    assert answer.encode(Batch([ToolCallDelta(0, "x", "f", "{}")])) == b""
    out = answer.encode(Batch([SAYS], raw=HI, dialect="ollama"))
    assert out.endswith(HI)
    assert json.loads(out.split(b"\n")[0])["message"]["tool_calls"][0]["id"] == "x"


def test_whole_answers_for_a_client() -> None:
    events: list[Event] = [
        Reasoning("hm"),
        Text("a"),
        Text("b"),
        ToolCallDelta(0, "x", "f", "{}"),
        UsageReport(Usage(7, 5)),
        Finish("length"),
    ]
    [document] = written(events, WHOLE)
    call = {"id": "x", "function": {"index": 0, "name": "f", "arguments": {}}}
    assert document["message"] == {"role": "assistant", "content": "ab", "thinking": "hm", "tool_calls": [call]}
    assert (document["done"], document["prompt_eval_count"], document["eval_count"]) == (True, 7, 5)
    [document] = written(events, WHOLE, "ollama_generate")
    assert (document["response"], document["thinking"]) == ("ab", "hm")


def test_vectors_for_a_client() -> None:
    request = make_request(operation="embeddings", dialect="ollama")
    events: list[Event] = [Embedding(1, "AACAPwAAAEA="), Embedding(0, (3.0, 4.0)), UsageReport(Usage(7))]
    [document] = written(events, request, "ollama_embed", requested_model="asked")
    assert document == {"model": "asked", "embeddings": [[3.0, 4.0], [1.0, 2.0]], "prompt_eval_count": 7}
    assert written(events[1:], request, "ollama_embeddings") == [{"embedding": [3.0, 4.0]}]
    with pytest.raises(ClawError, match="could not be understood"):
        written([Embedding(0, "AAAA")], request, "ollama_embed")


# --- there and back --------------------------------------------------------------------------------------------------------

WORDS = st.text(min_size=1, max_size=6)
EVENTS = st.lists(
    st.builds(Text, WORDS)
    | st.builds(Reasoning, WORDS)
    | st.builds(lambda name, key: (name, json.dumps({key: key})), st.sampled_from(["f", "g"]), WORDS),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.data())
def test_there_and_back(said: list[Any], data: st.DataObject) -> None:
    """What is written for a client is what is read from a provider, however it is cut."""
    events: list[Event] = []
    for each in said:
        calls = sum(isinstance(event, ToolCallDelta) for event in events)
        events.append(ToolCallDelta(calls, f"call_{calls}", *each) if isinstance(each, tuple) else each)
    answer = CLIENT["ollama"].answer(make_exchange(), STREAM)
    body = b"".join(answer.encode(Batch([event])) for event in events) + answer.finish(COMPLETE, Usage(7, 5))
    place = data.draw(st.integers(0, len(body)))
    read = stream([body[:place], body[place:]])
    assert read == stream([body]) == stream([body[at : at + 1] for at in range(len(body))])
    found = [event for event in read if isinstance(event, Text | Reasoning | ToolCallDelta)]
    assert [_spaceless(event) for event in found] == [_spaceless(event) for event in events]
    assert isinstance(read[-1], End)


def _spaceless(event: Event) -> Any:
    if isinstance(event, ToolCallDelta):
        return event.index, event.call_id, event.name, json.loads(event.arguments)
    return event
