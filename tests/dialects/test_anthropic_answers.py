"""Messages answers for clients: from events, from a provider's bytes, and from both where a policy changed some."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from anthropic.types import Message as SDKMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.errors import KINDS, ClawError, ProviderFault
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Finish,
    FinishReason,
    Opaque,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_exchange, make_request
from tests.dialects.test_anthropic_streams import CITED, DONE, HEAD, PING, SEARCH, SEARCH_DELTA, TAIL, delta, sse, start, stop

COMPLETE = Outcome("complete")
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def encoder(stream: bool = True, **request: Any) -> AnswerEncoder:
    return CLIENT["anthropic"].answer(make_exchange(), make_request(stream=stream, **request))


def documents(written: bytes) -> list[Any]:
    """Each event's JSON, checked against its name."""
    made = []
    for block in written.split(b"\n\n"):
        if block:
            name, data = block.split(b"\n")
            made.append(json.loads(data.removeprefix(b"data: ")))
            assert name == b"event: " + made[-1]["type"].encode()
    return made


def assembled(events: Sequence[Any]) -> dict[str, Any]:
    """The message an SDK puts together; fails where the order of events is not the format's."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    message: dict[str, Any] = {"content": [], "usage": dict(events[0]["message"]["usage"])}
    open_blocks: set[int] = set()
    for event in events[1:]:
        kind, index = event["type"], event.get("index")
        if kind == "content_block_start":
            assert index == len(message["content"])
            open_blocks.add(index)
            message["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta":
            assert index in open_blocks
            _grow(message["content"][index], event["delta"])
        elif kind == "content_block_stop":
            open_blocks.remove(index)
        elif kind == "message_delta":
            assert not open_blocks
            assert "stop_reason" not in message
            message["stop_reason"] = event["delta"]["stop_reason"]
            message["usage"].update(event["usage"])
    assert "stop_reason" in message
    return message


def _grow(block: dict[str, Any], change: dict[str, Any]) -> None:
    for name in ("text", "thinking", "partial_json"):
        if name in change:
            block[name] = block.get(name, "") + change[name]
    if "signature" in change:
        block["signature"] = change["signature"]
    if "citation" in change:
        block.setdefault("citations", []).append(change["citation"])


def stream(*events: Event, usage: Usage | None = None, outcome: Outcome = COMPLETE, dialect: str = "") -> list[Any]:
    answer = encoder()
    written = b"".join(answer.encode(Batch([event], dialect=dialect)) for event in events)
    return documents(written + answer.finish(outcome, usage))


SAID: list[Event] = [
    Begin("gpt", "chatcmpl-1"),
    Reasoning("because"),
    Text("caf\u00e9 \u2028 "),
    Text("\U0001f600"),
    ToolCallDelta(0, "call_1", "f", ""),
    ToolCallDelta(0, None, None, '{"a":'),
    ToolCallDelta(1, "call_2", "g", "{}"),
    ToolCallDelta(0, None, None, "1}"),
    UsageReport(Usage(7, 5, 2, 1, 3)),
    Finish("tool_calls", "tool_calls"),
    End(),
]


def test_a_stream_of_another_vendor() -> None:
    events = stream(*SAID)
    for event in events:
        EVENT.validate_python(event, strict=True)
    message = assembled(events)
    assert message["content"] == [
        {"type": "thinking", "thinking": "because", "signature": ""},
        {"type": "text", "text": "caf\u00e9 \u2028 \U0001f600"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {}, "partial_json": '{"a":1}'},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}, "partial_json": "{}"},
    ]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 1,
        "cache_read_input_tokens": 2,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    assert events[0]["message"]["id"].startswith("msg_"), "the id of another format does not go on"
    assert events[0]["message"]["model"] == "test-model"


def test_the_same_whole() -> None:
    answer = encoder(stream=False)
    for event in SAID:
        assert answer.encode(Batch([event])) == b""
    document = json.loads(answer.finish(COMPLETE, None))
    SDKMessage.model_validate(document, strict=True)
    assert [block["type"] for block in document["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert document["content"][2]["input"] == {"a": 1}
    assert (document["stop_reason"], document["usage"]["input_tokens"]) == ("tool_use", 4)


def test_known_figures_stand_at_the_beginning_too() -> None:
    first = stream(Begin(), UsageReport(Usage(9)), Text("a"), usage=Usage(9, 2))[0]
    assert first["message"]["usage"] == {"input_tokens": 9, "output_tokens": 0}
    assert stream(Text("a"))[0]["message"]["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_signatures_go_only_where_anthropic_made_them() -> None:
    thought: list[Event] = [Reasoning("a"), Reasoning("", "c2ln"), Reasoning("", None, "eA=="), Reasoning("b", "dHdv"), Text("c")]
    own = assembled(stream(*thought, dialect="anthropic"))["content"]
    assert own == [
        {"type": "thinking", "thinking": "a", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eA=="},
        {"type": "thinking", "thinking": "b", "signature": "dHdv"},
        {"type": "text", "text": "c"},
    ]
    other = assembled(stream(*thought, dialect="gemini"))["content"]
    assert other == [{"type": "thinking", "thinking": "ab", "signature": ""}, {"type": "text", "text": "c"}]
    for dialect, expected in (("anthropic", own), ("gemini", other)):
        answer = encoder(stream=False)
        answer.encode(Batch(thought, dialect=dialect))
        assert json.loads(answer.finish(COMPLETE, None))["content"] == expected


ENDINGS: list[tuple[Finish | None, FinishReason | None, Event, str]] = [
    (None, None, Text("x"), "end_turn"),
    (Finish("stop", "stop"), None, Text("x"), "end_turn"),
    (Finish("stop", "stop"), None, ToolCallDelta(0, "c", "f"), "tool_use"),
    (None, None, ToolCallDelta(0, "c", "f"), "tool_use"),
    (Finish("stop", "stop", "END"), None, Text("x"), "stop_sequence"),
    (Finish("stop", "stop"), None, Refused("no"), "refusal"),
    (Finish("length", "length"), None, Text("x"), "max_tokens"),
    (Finish("content_filter", "SAFETY"), None, Text("x"), "refusal"),
    (Finish("other", "pause_turn"), None, Text("x"), "pause_turn"),
    (Finish("length", "model_context_window_exceeded"), "length", Text("x"), "model_context_window_exceeded"),
    (Finish("stop", "end_turn"), "budget", Text("x"), "max_tokens"),
    (Finish("other", "strange"), None, Text("x"), "end_turn"),
]


@pytest.mark.parametrize(("finish", "outcome", "event", "reason"), ENDINGS)
def test_stop_reasons(finish: Finish | None, outcome: FinishReason | None, event: Event, reason: str) -> None:
    said = [event] if finish is None else [event, finish]
    ends = stream(*said, outcome=Outcome("complete", finish=outcome))
    assert ends[-2]["delta"]["stop_reason"] == reason
    EVENT.validate_python(ends[-2], strict=True)


def test_arguments_that_are_no_json() -> None:
    answer = encoder(stream=False)
    answer.encode(Batch([ToolCallDelta(0, None, "f", '{"a": '), ToolCallDelta(1, None, "g")]))
    cut, none = json.loads(answer.finish(COMPLETE, None))["content"]
    assert (cut["input"], none["input"]) == ({"INVALID_JSON": '{"a": '}, {})


def test_an_answer_ends_once() -> None:
    answer = encoder()
    assert answer.keepalive() == b'event: ping\ndata: {"type": "ping"}\n\n'
    answer.encode(Batch([Text("a")]))
    failed = documents(answer.fail(ClawError("provider_error.overloaded", param="x")))
    [error] = failed
    assert error["error"] == {
        "type": "overloaded_error",
        "message": "The provider is overloaded.",
        "details": {"error_code": "provider_error.overloaded", "param": "x"},
    }
    assert error["request_id"]
    assert answer.encode(Batch([Text("b")])) == answer.finish(COMPLETE, None) == answer.keepalive() == b""
    assert answer.fail(ClawError("internal")) == b""


@pytest.mark.parametrize("slug", KINDS)
def test_every_error_has_a_word_of_anthropics(slug: str) -> None:
    document = json.loads(CLIENT["anthropic"].error_body(ClawError(slug), "req-1"))
    assert (document["type"], document["request_id"]) == ("error", "req-1")
    assert document["error"]["type"] in {
        *("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large"),
        *("rate_limit_error", "api_error", "overloaded_error", "timeout_error", "conflict_error"),
    }
    assert document["error"]["details"]["error_code"] == slug


def test_a_count_of_tokens() -> None:
    answer = encoder(stream=False, operation="count_tokens")
    answer.encode(Batch([UsageReport(Usage(25)), End()]))
    assert answer.finish(COMPLETE, None) == b'{"input_tokens":25}'
    silent = encoder(stream=False, operation="count_tokens")
    with pytest.raises(ProviderFault):
        silent.finish(COMPLETE, Usage(7, source="estimated"))


# --- a provider's bytes, and policies ----------------------------------------------------------------------------------------

THOUGHT = (
    start(0, type="thinking", thinking="", signature="")
    + delta(0, type="thinking_delta", thinking="hm")
    + delta(0, type="thinking_delta", thinking=" so")
    + delta(0, type="signature_delta", signature="c2ln")
    + b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0          }\n\n'
)


def _at(wire: bytes, index: int) -> bytes:
    return wire.replace(b'"index": 0', b'"index": %d' % index)


LONG = b"".join(
    [
        HEAD,
        THOUGHT,
        PING,
        *[start(1, type="text", text="", new=1), delta(1, type="text_delta", text="one"), _at(CITED, 1)],
        *[delta(1, type="text_delta", text=" two"), stop(1)],
        *[_at(SEARCH, 2), _at(SEARCH_DELTA, 2), stop(2)],
        *[start(3, type="web_search_tool_result", tool_use_id="s", content=[]), stop(3)],
        *[start(4, type="text", text=""), delta(4, type="text_delta", text="three"), stop(4)],
        sse("novel", what=1),
        *[start(5, type="tool_use", id="t", name="f", input={}), delta(5, type="input_json_delta", partial_json='{"a":')],
        *[delta(5, type="input_json_delta", partial_json="1}"), stop(5)],
        *[start(6, type="tool_use", id="u", name="g", input={}), delta(6, type="input_json_delta", partial_json="{}"), stop(6)],
        TAIL,
        DONE,
    ]
)


def passed(batches: Sequence[Batch]) -> bytes:
    answer = encoder()
    return b"".join(answer.encode(batch) for batch in batches) + answer.finish(COMPLETE, None)


def batches_of(data: bytes, places: Sequence[int]) -> list[Batch]:
    decoder = PROVIDER["anthropic"].decoder(make_request(stream=True))
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    fed = [decoder.feed(data[one:two]) for one, two in itertools.pairwise(edges)]
    return [batch for batch in [*fed, decoder.close()] if batch is not None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(LONG)), max_size=12))
def test_untouched_bytes_go_out_as_they_came(places: list[int]) -> None:
    assert passed(batches_of(LONG, places)) == LONG


def told(message: dict[str, Any]) -> list[Any]:
    """What a reader learns, whether or not a text was cut in two blocks or two made one."""
    out: list[Any] = []
    for block in message["content"]:
        if block["type"] == "text":
            block = {"type": "text", "text": block["text"], "citations": block.get("citations", [])}
            if out and out[-1]["type"] == "text":
                out[-1]["text"] += block["text"]
                out[-1]["citations"] += block["citations"]
                continue
        out.append(block)
    return out


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(LONG)), max_size=25), st.lists(st.booleans(), min_size=1, max_size=12))
def test_whatever_batches_a_policy_rewrote_the_answer_is_the_same(places: list[int], rewritten: list[bool]) -> None:
    batches = batches_of(LONG, places)
    mixed = [batch.replaced(batch.events) if rewritten[place % len(rewritten)] else batch for place, batch in enumerate(batches)]
    message = assembled([event for event in documents(passed(mixed)) if event["type"] not in ("ping", "novel")])
    assert told(message) == told(assembled([event for event in documents(LONG) if event["type"] not in ("ping", "novel")]))
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["output_tokens"] == 15


def test_text_held_back_by_a_policy_goes_into_its_own_block() -> None:
    data = [
        HEAD + start(0, type="text", text="") + delta(0, type="text_delta", text="one "),
        delta(0, type="text_delta", text="s"),
        stop(0),
        start(1, type="tool_use", id="t", name="f", input={}),
        delta(1, type="input_json_delta", partial_json="{}") + stop(1) + TAIL,
        DONE,
    ]
    decoder = PROVIDER["anthropic"].decoder(make_request(stream=True))
    first, held, end, call, rest, done = [batch for batch in map(decoder.feed, data) if batch is not None]
    mixed = [first, held.replaced([]), end, call.replaced([Text("s"), *call.events]), rest, done]
    assert assembled(documents(passed(mixed)))["content"] == [
        {"type": "text", "text": "one s"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {}, "partial_json": "{}"},
    ]


def test_what_another_format_can_not_show_is_left_out() -> None:
    assert assembled(stream(Text("a"), Opaque("image", b"{}")))["content"] == [{"type": "text", "text": "a"}]


def test_a_whole_document_goes_out_as_it_came_unless_it_was_changed() -> None:
    document = {"id": "m", "model": "x", "content": [{"type": "text", "text": "key"}, {"type": "novel", "x": 1}], "new": 1}
    body = json.dumps({**document, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2}}).encode()
    decoder = PROVIDER["anthropic"].decoder(make_request(stream=False))
    assert decoder.feed(body) is None
    batch = decoder.close()
    assert batch is not None
    answer = encoder(stream=False)
    answer.encode(batch)
    assert answer.finish(COMPLETE, None) == body
    answer = encoder(stream=False)
    answer.encode(batch.replaced([Text("***") if isinstance(event, Text) else event for event in batch.events]))
    changed = json.loads(answer.finish(COMPLETE, None))
    assert changed["content"] == [{"type": "text", "text": "***"}, {"type": "novel", "x": 1}]
    assert (changed["id"], changed["model"], changed["usage"]) == ("m", "x", {"input_tokens": 1, "output_tokens": 2})
