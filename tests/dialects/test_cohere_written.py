"""Cohere's answers for its clients, made or passed on; and what is written, read again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import ClawError
from clawproxy.events import (
    Batch,
    Begin,
    Embedding,
    End,
    Event,
    Finish,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Message, Usage
from clawproxy.testing.factories import make_exchange, make_request
from tests.dialects.test_cohere_answers import CALL, LAST, SPENT, START, STREAM, WHOLE, content, event, stream

COMPLETE = Outcome("complete", finish="stop")


def written(events: list[Event], request: ChatRequest = STREAM) -> list[Any]:
    """What a client is sent: the data of each event, which is named by its type."""
    answer = CLIENT["cohere"].answer(make_exchange(request_id="r-1"), request)
    body = b"".join(answer.encode(Batch([each])) for each in events) + answer.finish(COMPLETE, None)
    documents = []
    for block in body.split(b"\n\n")[:-1]:
        name, _, data = block.partition(b"\n")
        documents.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + documents[-1]["type"].encode()
    return documents


def short(document: Any) -> Any:
    """A document, without what all of them have."""
    delta = document.get("delta", {})
    said = delta.get("message", delta)
    said = said.get("content") or said.get("tool_calls") or said
    return document["type"], document.get("index"), said


def test_a_stream_for_a_client() -> None:
    events: list[Event] = [
        Begin("x", "foreign"),
        Reasoning("hm"),
        Reasoning("", signature="s"),
        Text("a"),
        Refused("no"),
        ToolCallDelta(0, "c1", "f", ""),
        ToolCallDelta(0, None, None, "{}"),
        ToolCallDelta(2, None, "g", '{"a":1}'),
        Text("b"),
        UsageReport(Usage(7, 5, 2)),
        Finish("tool_calls"),
        End(),
    ]
    documents = written(events)
    assert [short(each) for each in documents[1:-1]] == [
        ("content-start", 0, {"type": "thinking", "thinking": ""}),
        ("content-delta", 0, {"thinking": "hm"}),
        ("content-end", 0, {}),
        ("content-start", 1, {"type": "text", "text": ""}),
        ("content-delta", 1, {"text": "a"}),
        ("content-delta", 1, {"text": "no"}),
        ("content-end", 1, {}),
        ("tool-call-start", 0, CALL),
        ("tool-call-delta", 0, {"function": {"arguments": "{}"}}),
        ("tool-call-end", 0, {}),
        ("tool-call-start", 2, {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"a":1}'}}),
        ("tool-call-end", 2, {}),
        ("content-start", 2, {"type": "text", "text": ""}),
        ("content-delta", 2, {"text": "b"}),
        ("content-end", 2, {}),
    ]
    assert documents[0]["id"] == documents[-1]["id"] == "r-1"
    figures = {"input_tokens": 7, "output_tokens": 5}
    assert documents[-1]["delta"] == {
        "finish_reason": "COMPLETE",
        "usage": {"billed_units": figures, "tokens": figures, "cached_tokens": 2},
    }
    assert [each["type"] for each in written([])] == ["message-start", "message-end"]


def test_a_failure() -> None:
    for slug, reason in (("provider_error.cut", "ERROR"), ("timeout.stall", "TIMEOUT")):
        answer = CLIENT["cohere"].answer(make_exchange(), STREAM)
        assert answer.keepalive().startswith(b":")
        data = json.loads(answer.fail(ClawError(slug)).split(b"data: ")[1])
        assert data["delta"]["finish_reason"] == reason
        assert data["delta"]["error"].startswith("The provider")
        assert answer.fail(ClawError("internal")) == answer.finish(COMPLETE, None) == answer.keepalive() == b""


def test_passed_and_made_bytes_may_follow_one_another() -> None:
    """A policy may change any batch: what is open, and how many blocks there were, is known all the same."""
    answer = CLIENT["cohere"].answer(make_exchange(request_id="r-1"), STREAM)
    decoder = PROVIDER["cohere"].decoder(STREAM)
    thinking = event("content-start", {"content": {"type": "thinking", "thinking": ""}}, index=0) + content(thinking="hm")
    body = b""
    for data, change in (
        (START + thinking, False),
        (content(1, text="x"), True),
        (event("content-end", index=1), False),
        (LAST, True),
    ):
        batch = decoder.feed(data)
        assert batch is not None
        body += answer.encode(batch.replaced(batch.events) if change else batch)
    body += answer.finish(COMPLETE, None)
    found = [json.loads(block.split(b"data: ")[1]) for block in body.split(b"\n\n")[:-1]]
    assert [(each["type"], each.get("index")) for each in found] == [
        ("message-start", None),
        ("content-start", 0),
        ("content-delta", 0),
        ("content-end", 0),
        ("content-start", 1),
        ("content-delta", 1),
        ("content-end", 1),
        ("message-end", None),
    ]
    assert found[-1]["id"] == "i-1"
    assert found[-1]["delta"]["usage"]["billed_units"] == SPENT["billed_units"]


def test_whole_answers_for_a_client() -> None:
    events: list[Event] = [
        Reasoning("hm"),
        Text("a"),
        Text("b"),
        ToolCallDelta(0, "c1", "f", "{"),
        ToolCallDelta(0, arguments="}"),
        UsageReport(Usage(7, 5)),
    ]
    answer = CLIENT["cohere"].answer(make_exchange(request_id="r-1"), WHOLE)
    for each in events:
        assert answer.encode(Batch([each])) == b""
    figures = {"input_tokens": 7, "output_tokens": 5}
    assert json.loads(answer.finish(Outcome("complete", finish="tool_calls"), None)) == {
        "id": "r-1",
        "finish_reason": "TOOL_CALL",
        "message": {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ab"}],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        "usage": {"billed_units": figures, "tokens": figures},
    }
    empty = CLIENT["cohere"].answer(make_exchange(), WHOLE)
    assert json.loads(empty.finish(COMPLETE, None))["message"]["content"] == [{"type": "text", "text": ""}]


def test_vectors_for_a_client() -> None:
    request = make_request("one two", operation="embeddings", dialect="cohere")
    for values, kind in (((1.0, 2.0), "float"), ("AA==", "base64")):
        answer = CLIENT["cohere_embed"].answer(make_exchange(request_id="r-1"), request)
        answer.encode(Batch([Embedding(0, values), UsageReport(Usage(7))]))
        document = json.loads(answer.finish(COMPLETE, None))
        assert document["embeddings"] == {kind: [list(values) if isinstance(values, tuple) else values]}
        assert (document["texts"], document["meta"]["billed_units"]) == (["one two"], {"input_tokens": 7})


# --- there and back --------------------------------------------------------------------------------------------------------

WORDS = st.text(min_size=1, max_size=6)
EVENTS = st.lists(
    st.builds(Text, WORDS) | st.builds(Reasoning, WORDS) | st.tuples(st.sampled_from(["f", "g"]), WORDS), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.data())
def test_there_and_back(said: list[Any], data: st.DataObject) -> None:
    """What is written for a client is what is read from a provider, however it is cut."""
    events: list[Event] = []
    for each in said:
        calls = sum(isinstance(event, ToolCallDelta) for event in events)
        events.append(ToolCallDelta(calls, f"c{calls}", *each) if isinstance(each, tuple) else each)
    answer = CLIENT["cohere"].answer(make_exchange(), STREAM)
    body = b"".join(answer.encode(Batch([each])) for each in events) + answer.finish(COMPLETE, Usage(7, 5))
    place = data.draw(st.integers(0, len(body)))
    read = stream([body[:place], body[place:]])
    assert read == stream([body]) == stream([body[at : at + 1] for at in range(len(body))])
    assert [each for each in read if isinstance(each, Text | Reasoning | ToolCallDelta)] == events
    assert isinstance(read[-1], End)


def test_a_prompt_of_another_kind_is_not_repeated() -> None:
    request = make_request(operation="embeddings", dialect="cohere", messages=(Message("user", None),))
    answer = CLIENT["cohere_embed"].answer(make_exchange(), request)
    assert json.loads(answer.finish(COMPLETE, None))["texts"] == []
