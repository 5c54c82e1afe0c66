"""What the WebSocket mode adds on the provider side: the message that asks, the errors, and messages as events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects.base import OutboundRequest
from clawproxy.dialects.openai_responses.provider import OpenAIResponsesProvider
from clawproxy.dialects.openai_responses.provider_socket import SocketDecoder, create_message, read_refusal
from clawproxy.events import Begin, End, Event, Failed, Finish, KeepAlive, Text
from clawproxy.testing.factories import make_request

DIALECT = OpenAIResponsesProvider()
RESPONSE: dict[str, Any] = {"id": "resp_1", "model": "m", "status": "completed", "output": [], "usage": None}
SAID: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}, "sequence_number": 0},
    {
        "type": "response.output_text.delta",
        "output_index": 0,
        "content_index": 0,
        "delta": "Hi\\n\\r\\u2028",
        "sequence_number": 1,
    },
    {"type": "response.completed", "response": RESPONSE, "sequence_number": 2},
]


def decoder(*, streams: bool = True) -> SocketDecoder:
    return SocketDecoder(DIALECT.decoder(make_request("hi", stream=streams)), streams=streams)


def created(**fields: Any) -> dict[str, Any] | None:
    message = create_message(OutboundRequest("/responses", json.dumps(fields).encode()))
    return None if message is None else json.loads(message)


def test_the_message_is_the_body_less_what_belongs_to_http() -> None:
    said = {"model": "m", "input": [{"a": "ü\u2028"}], "stream_options": {"include_obfuscation": False}}
    assert created(**said, stream=True, background=False, type="x") == {"type": "response.create", **said}


@pytest.mark.parametrize("fields", [{"background": True}, {"background": "yes"}, {"background_options": {}}])
def test_what_only_http_can_do_makes_no_message(fields: dict[str, Any]) -> None:
    assert created(model="m", **fields) is None
    assert create_message(OutboundRequest("/responses/compact", b"{}")) is None
    assert create_message(OutboundRequest("/responses", b"", method="GET")) is None


def test_an_error_is_read_as_a_status_would_be() -> None:
    error = {"type": "t", "code": "rate_limit_exceeded", "message": "m", "headers": {"Retry-After": 3, "x": None}}
    found = read_refusal(json.dumps({"type": "error", "status": 429, "error": error}).encode())
    assert found is not None
    assert (found.status, found.code, found.headers, found.limit_reached) == (429, error["code"], {"retry-after": "3"}, False)
    assert json.loads(found.body) == {"error": error}


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b'{"type":"response.created"}', b'{"type":7}', b"\xff"])
def test_what_is_no_error(message: bytes) -> None:
    assert read_refusal(message) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_an_error_may_hold_anything(anything: Any) -> None:
    message = json.dumps({"type": "error", "status": anything, "error": anything, "code": anything}).encode()
    assert read_refusal(message) is not None
    for streams in (False, True):
        batch = decoder(streams=streams).feed([message])
        assert batch is not None
        assert type(batch.events[-1]) is Failed


@given(st.sets(st.integers(1, len(SAID) - 1)), st.sampled_from([None, 1]))
def test_messages_are_the_events_of_the_stream_however_they_come(cuts: set[int], indent: int | None) -> None:
    messages = [json.dumps(each, indent=indent).replace("\n", "\r\n").encode() for each in SAID]
    found: list[Event] = []
    raw = b""
    reads = decoder()
    places = [0, *sorted(cuts), len(messages)]
    for start, end in pairwise(places):
        batch = reads.feed(messages[start:end])
        if batch is not None:
            found += batch.events
            raw += batch.raw or b""
    assert [type(event) for event in found] == [Begin, Text, Finish, End]
    assert found[1] == Text(SAID[1]["delta"])
    assert reads.over
    assert reads.done
    assert reads.feed(messages) is None
    names = [line for line in raw.split(b"\n") if line.startswith(b"event: ")]
    assert names == [b"event: " + each["type"].encode() for each in SAID]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("message", [b"", b"{", b"\xff\xfe", b"nonsense", b'{"type":"response.completed","response":7}'])
def test_a_broken_message_fails_the_answer(message: bytes, streams: bool) -> None:
    reads = decoder(streams=streams)
    batch = reads.feed([message])
    if message == b"" and streams:
        assert batch is not None
        assert batch.events == [KeepAlive()]
        return
    assert batch is not None
    assert type(batch.events[-1]) is Failed or (streams and reads.done)
    assert reads.over


def test_a_whole_answer_is_what_the_terminal_event_holds() -> None:
    reads = decoder(streams=False)
    messages = [json.dumps(each).encode() for each in SAID]
    assert reads.feed(messages[:2]) is None
    batch = reads.feed(messages[2:])
    assert batch is not None
    assert json.loads(batch.raw or b"") == RESPONSE
    assert reads.done
    reads = decoder(streams=False)
    failed = {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": {"code": "server_error"}}}
    batch = reads.feed([json.dumps(failed).encode()])
    assert batch is not None
    assert type(batch.events[-1]) is Failed
    assert reads.over
    assert not reads.done
