"""The WebSocket mode of Responses without a socket: its messages, its lanes, and what a connection keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.openai_responses import socket
from clawproxy.dialects.openai_responses.socket import Create, History, Kept, SocketAnswer, error_event, read_create
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Batch, Outcome, Text
from clawproxy.testing.factories import make_exchange, make_request
from clawproxy.transport.responses_ws.lanes import ACTIVE, LANES, WAITING, Lanes
from tests.dialects.responses_wire import FULL, sse

ADAPTER: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)


def create(**fields: Any) -> Create:
    return read_create({"type": "response.create", "model": "m", **fields}, 100)


def test_a_create_is_a_request_in_an_envelope() -> None:
    made = create(stream_id="a", generate=False, stream=True, input="x", previous_response_id="resp_1")
    assert (made.lane, made.generate, made.previous) == ("a", False, "resp_1")
    assert made.fields == {"model": "m", "input": "x", "previous_response_id": "resp_1"}
    for wrong in ({"stream_id": 5}, {"stream_id": ""}, {"stream_id": "a\n"}, {"stream_id": "a" * 129}, {"generate": "no"}):
        with pytest.raises(ClawError) as caught:
            create(**wrong)
        assert caught.value.details.param in wrong


@pytest.mark.parametrize("slug", [slug for slug, kind in KINDS.items() if kind.status != 499])
@pytest.mark.parametrize("lane", [None, "a"])
def test_errors_are_the_sdks(slug: str, lane: str | None) -> None:
    event = ADAPTER.validate_json(error_event(ClawError(slug, param="x", retry_after_ms=5), lane))
    assert (event.type, event.stream_id, event.status) == ("error", lane, KINDS[slug].status)
    assert event.error.code == (KINDS[slug].openai_code or slug)
    assert event.error.headers == {"retry-after-ms": "5"}


@pytest.mark.parametrize("lane", [None, 'la"ne'])
@pytest.mark.parametrize("passing", [True, False])
def test_events_carry_their_lane(lane: str | None, passing: bool) -> None:
    answer = SocketAnswer(make_exchange(), make_request(dialect="openai_responses", stream=True), create(stream_id=lane))
    batch: Batch | None = Batch([Text("hi")])
    if passing:
        batch = PROVIDER["openai_responses"].decoder(make_request(stream=True)).feed(sse(*FULL))
    assert batch is not None
    payloads = [*answer.content(batch), *answer.finish(Outcome("complete"), None)]
    events = [json.loads(payload) for payload in payloads]
    assert {event.get("stream_id") for event in events} == {lane}
    assert events[-1]["type"] == "response.completed"
    for payload in payloads:
        ADAPTER.validate_json(payload)
    if passing:
        assert [{k: v for k, v in event.items() if k != "stream_id"} for event in events] == [
            {**event, "sequence_number": number} for number, event in enumerate(FULL)
        ]
        assert answer.response["output"] == FULL[-1]["response"]["output"]


# --- what is kept ----------------------------------------------------------------------------------------------------------


def texts(history: History, **fields: Any) -> list[str]:
    request, _ = history.request(create(**fields), 1000)
    assert request.stream
    assert "previous_response_id" not in request.extra
    return [message.text() for message in request.messages]


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **more}


def test_a_conversation_is_put_together_from_what_was_kept() -> None:
    history = History()
    request, kept = history.request(create(input="one", instructions="be good"), 1000)
    history.keep("r1", kept, [said("two")])
    assert [message.role for message in request.messages] == ["system", "user"]
    _, kept = history.request(create(input=[{"role": "user", "content": "three"}], previous_response_id="r1"), 1000)
    history.keep("r2", kept, [said("four")])
    assert texts(history, input="five", previous_response_id="r2") == ["one", "two", "three", "four", "five"]
    assert texts(history, previous_response_id="r1") == ["one", "two"]  # it branches, and instructions are not carried over
    with pytest.raises(ClawError, match="previous_response_not_found"):
        texts(history, input="x", previous_response_id="r3")
    with pytest.raises(ClawError, match="input"):
        texts(history)


def test_reasoning_that_nobody_could_read_again_is_not_kept() -> None:
    history = History()
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "gAAA"},
        {"type": "reasoning", "id": "rs_claw3", "summary": []},
    ]
    history.keep("r", Kept((), 0), items)
    request, _ = history.request(create(input="x", previous_response_id="r"), 1000)
    assert [thought.id for message in request.messages for thought in message.thinking] == ["rs_2", "rs_claw3"]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "KEPT", 3)
    history = History()
    for number in range(5):
        history.keep(f"r{number}", Kept((), 10), [said("x")])
    assert len(history) == 3
    with pytest.raises(ClawError):
        texts(history, previous_response_id="r1")
    assert texts(history, previous_response_id="r2") == ["x"]
    monkeypatch.setattr(socket, "KEPT_BYTES", 200)
    history.keep("big", Kept((), 1000), [said("y")])
    assert len(history) == 1
    assert texts(history, previous_response_id="big") == ["y"]


def test_the_limit_on_messages_counts_what_was_kept() -> None:
    history = History()
    history.keep("r", Kept([said("x")] * 5, 0), [])
    with pytest.raises(ClawError) as caught:
        history.request(create(input="x", previous_response_id="r"), 5)
    assert caught.value.details.param == "input"


# --- lanes -----------------------------------------------------------------------------------------------------------------


def test_a_lane_is_a_queue_and_lanes_are_side_by_side() -> None:
    lanes: Lanes[str] = Lanes()
    assert lanes.add("a", 1, "a1") == ["a1"]
    assert lanes.add("a", 1, "a2") == []
    assert lanes.add(None, 1, "n1") == ["n1"]
    assert lanes.add("b", 1, "b1") == ["b1"]
    assert lanes.add("a", 1, "a3") == []
    assert lanes.done("b") == []
    assert lanes.done("a") == ["a2"]
    assert lanes.done("a") == ["a3"]
    assert len(lanes) == 2


def test_the_limits_of_a_connection() -> None:
    lanes: Lanes[int] = Lanes()
    started = [job for number in range(LANES) for job in lanes.add(str(number), 1, number)]
    assert started == list(range(ACTIVE))
    with pytest.raises(ClawError, match="lanes"):
        lanes.add("one more", 1, 99)
    for number in range(WAITING - (LANES - ACTIVE)):
        assert lanes.add("0", 1, 100 + number) == []
    with pytest.raises(ClawError, match="wait"):
        lanes.add("0", 1, 999)
    assert len(lanes) == ACTIVE + WAITING
    assert lanes.done("1") == [ACTIVE]
    assert lanes.add("0", 1, 1000) == []
    lanes.clear()
    with pytest.raises(ClawError, match="wait"):
        lanes.add("0", 9 * 1024 * 1024, 1)


def test_the_operator_may_allow_less() -> None:
    lanes: Lanes[int] = Lanes(2)
    assert [job for number in range(5) for job in lanes.add(str(number), 1, number)] == [0, 1]
    assert lanes.done("0") == [2]


@given(st.lists(st.tuples(st.sampled_from(["add", "done"]), st.integers(0, 40)), max_size=200))
def test_whatever_comes_lanes_keep_their_order_and_their_limits(steps: list[tuple[str, int]]) -> None:
    lanes: Lanes[tuple[int, int]] = Lanes()
    active: dict[int, int] = {}
    asked: dict[int, list[int]] = {}
    begun: dict[int, list[int]] = {}
    for serial, (what, lane) in enumerate(steps):
        jobs: list[tuple[int, int]] = []
        if what == "add":
            try:
                jobs = lanes.add(str(lane), 1, (lane, serial))
            except ClawError:
                continue
            asked.setdefault(lane, []).append(serial)
        elif lane in active:
            del active[lane]
            jobs = lanes.done(str(lane))
        for of, job in jobs:
            assert of not in active
            active[of] = job
            begun.setdefault(of, []).append(job)
        assert len(active) <= ACTIVE
    for lane, jobs_begun in begun.items():
        assert jobs_begun == asked[lane][: len(jobs_begun)]
    while active:  # nothing is forgotten
        lane, _ = active.popitem()
        for of, job in lanes.done(str(lane)):
            active[of] = job
            begun.setdefault(of, []).append(job)
    assert begun == asked
    assert len(lanes) == 0
