"""The Claw format: the frames that go out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.clocks import expired
from clawproxy.dialects import claw
from clawproxy.dialects.claw_frames import dollars, grouped, mend
from clawproxy.errors import ClawError
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Finish,
    KeepAlive,
    Notice,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Principal, Usage
from clawproxy.testing.factories import make_attempt, make_exchange, make_route


def frames(*batches: list[Event]) -> list[dict[str, Any]]:
    answer = claw.Answer("a", "r-1")
    return [json.loads(payload) for batch in batches for payload in answer.content(Batch(batch))]


def test_text_that_arrived_together_is_one_frame() -> None:
    got = frames([Begin("m"), Text("a"), Text("b"), KeepAlive()], [Text("c")], [UsageReport(Usage(1, 1)), Finish("stop"), End()])
    assert got == [
        {"type": "llm_token", "id": "a", "request_id": "r-1", "seq": 0, "content": "ab"},
        {"type": "llm_token", "id": "a", "request_id": "r-1", "seq": 1, "content": "c"},
    ]


def test_kinds_keep_their_order() -> None:
    got = frames(
        [
            Reasoning("hm"),
            Reasoning("m"),
            Text("a"),
            ToolCallDelta(0, "c1", "f", '{"a"'),
            ToolCallDelta(0, None, None, ":1}"),
            Text("b"),
            Refused("no"),
            Reasoning("x"),
        ]
    )
    assert [(f["type"], f.get("content", f.get("arguments"))) for f in got] == [
        ("llm_reasoning", "hmm"),
        ("llm_token", "a"),
        ("llm_tool_call", '{"a"'),
        ("llm_tool_call", ":1}"),
        ("llm_token", "bno"),
        ("llm_reasoning", "x"),
    ]
    assert (got[2]["index"], got[2]["call_id"], got[2]["name"]) == (0, "c1", "f")
    assert [f["seq"] for f in got] == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=()), max_size=6).map(Text), max_size=5), max_size=5))
def test_text_survives_whatever_it_holds(batches: list[list[Text]]) -> None:
    """W-18: lone surrogates become U+FFFD; everything else is equal."""
    got = frames(*[list[Event](batch) for batch in batches])
    expected = "".join(mend("".join(text.text for text in batch)) for batch in batches)
    assert "".join(f["content"] for f in got) == expected


@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=20))
def test_every_frame_is_utf8_json_whatever_the_id_and_the_words(text: str) -> None:
    answer = claw.Answer(text, "r")
    exchange = make_exchange(route=make_route(model=text), requested_model=text)
    payloads = [
        answer.start(exchange, [Begin(text)]),
        answer.notice(Notice("redacted", text, {text: [text]})),
        *answer.content(Batch([ToolCallDelta(0, text, text, text)])),
        answer.error(ClawError("internal", text, param=text)),
        claw.pong(text),
    ]
    for payload in payloads:
        assert json.loads(payload.decode("utf-8"))["type"]
        assert msgspec.json.decode(payload)


def test_start_names_the_route() -> None:
    exchange = make_exchange(route=make_route(model="up", reason="failover"), requested_model="asked")
    exchange.attempts += [make_attempt(), make_attempt(number=2, route=exchange.route)]
    start = json.loads(claw.Answer("a", "r").start(exchange, []))
    assert start["model"] == "up"
    assert start["route"] == {"strategy": "priority", "reason": "failover", "attempt": 2}
    assert json.loads(claw.Answer("a", "r").start(make_exchange(requested_model="asked"), []))["model"] == "asked"


def test_end_tells_usage_cost_and_timing() -> None:
    exchange = make_exchange(cost_nano=1)
    exchange.timing.queue = 0.001
    exchange.timing.total = 0.002
    end = json.loads(claw.Answer("a", "r").end(exchange, Outcome("truncated"), Usage(1, None, source="estimated")))
    assert (end["outcome"], end["finish_reason"]) == ("truncated", "length")
    assert end["usage"] == {
        "input_tokens": 1,
        "output_tokens": None,  # missing is not zero
        "cached_tokens": None,
        "reasoning_tokens": None,
        "total_tokens": 1,
        "source": "estimated",
    }
    assert end["cost"] == {"usd": 1e-9, "source": "estimated"}
    assert end["timing_ms"]["queue"] == 1.0
    assert end["timing_ms"]["total"] == 2.0
    assert "cost" not in json.loads(claw.Answer("a", "r").end(make_exchange(), Outcome("complete"), None))


@given(st.integers(-(10**18), 10**18))
def test_dollars_are_exact(nano: int) -> None:
    from decimal import Decimal

    assert Decimal(dollars(nano).decode()) == Decimal(nano) / 10**9


def test_errors_carry_all_their_fields() -> None:
    error = json.loads(claw.Answer("a", "r").error(expired("first_token", 120.0)))
    assert error["type"] == "error"
    assert (error["code"], error["error"], error["retryable"]) == (504, "timeout.first_token", True)
    assert (error["clock"], error["limit_ms"], error["setting"]) == ("first_token", 120_000, "deadlines.first_token")
    assert (error["id"], error["request_id"], error["seq"]) == ("a", "r", 0)
    connection = json.loads(claw.error(ClawError("auth.throttled", retry_after_ms=900, extra={"a": 1}), "ref"))
    assert (connection["retry_after_ms"], connection["details"], connection["ref"]) == (900, {"a": 1}, "ref")
    assert "id" not in connection


def test_auth_ok() -> None:
    principal = Principal("k", user="u", expires=12.0)
    frame = json.loads(claw.auth_ok("s", principal, "t", {"frame": 1}, {"name": "clawproxy"}))
    assert frame["principal"] == {"key": "k", "user": "u"}
    assert frame["expires_at"] == 12.0


def test_a_whole_answer_is_one_batch() -> None:
    whole = claw.Whole()
    whole.add(Batch([Begin("m"), Text("a"), ToolCallDelta(1, "c", "g", "{"), Reasoning("x")]))
    whole.add(Batch([Text("b"), ToolCallDelta(0, "b", "f", "1"), ToolCallDelta(1, arguments="}"), Reasoning("y"), End()]))
    assert list(whole.batch().events) == [
        Begin("m"),
        Reasoning("xy"),
        Text("ab"),
        ToolCallDelta(0, "b", "f", "1"),
        ToolCallDelta(1, "c", "g", "{}"),
    ]


def test_signed_reasoning_says_whose_it_is_and_ends_its_message() -> None:
    answer = claw.Answer("a", "r")
    block: list[Event] = [Reasoning("x"), Reasoning("y", "sig")]
    events: list[Event] = [*block, Reasoning("", None, "hidden", "rs_1"), Reasoning("z"), Text("t")]
    got = [json.loads(payload) for payload in answer.content(Batch(events, dialect="anthropic"))]
    assert [(f["type"], f["content"], f.get("signature"), f.get("data")) for f in got] == [
        ("llm_reasoning", "xy", "sig", None),
        ("llm_reasoning", "", None, "hidden"),
        ("llm_reasoning", "z", None, None),
        ("llm_token", "t", None, None),
    ]
    assert [f.get("dialect") for f in got] == ["anthropic", "anthropic", None, None]
    assert got[1]["reasoning_id"] == "rs_1"
    sent_back = claw.decode_request({"model": "m", "messages": [{"role": "assistant", "content": "t", "thinking": got[:3]}]})
    [message] = sent_back.messages
    assert [(t.text, t.signature, t.data, t.id, t.dialect) for t in message.thinking] == [
        ("xy", "sig", None, None, "anthropic"),
        ("", None, "hidden", "rs_1", "anthropic"),
    ]
    assert message.reasoning == "z"


def test_each_piece_of_a_call_says_which_call_it_is() -> None:
    got = frames([ToolCallDelta(0, "c1", "f", "{"), ToolCallDelta(1, "c2", "g")], [ToolCallDelta(0, None, None, "}", "sig")])
    assert [(f["index"], f["call_id"], f.get("name"), f["arguments"], f.get("signature")) for f in got] == [
        (0, "c1", "f", "{", None),
        (1, "c2", "g", "", None),
        (0, "c1", None, "}", "sig"),
    ]


def test_a_whole_answer_keeps_blocks_of_reasoning_apart() -> None:
    whole = claw.Whole()
    whole.add(Batch([Reasoning("a"), Reasoning("b", "s1"), ToolCallDelta(0, "c", "f", "{}", "s3")], dialect="gemini"))
    whole.add(Batch([Reasoning("", None, "d"), Reasoning("e"), Reasoning("f"), Text("t")], dialect="gemini"))
    batch = whole.batch()
    assert batch.dialect == "gemini"
    assert list(batch.events) == [
        Reasoning("ab", "s1"),
        Reasoning("", None, "d"),
        Reasoning("ef"),
        Text("t"),
        ToolCallDelta(0, "c", "f", "{}", "s3"),
    ]


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.text(max_size=3).map(Text),
    st.text(max_size=3).map(Refused),
    st.builds(Reasoning, st.text(max_size=3), st.none() | st.just("s")),
    st.builds(ToolCallDelta, st.integers(0, 1), st.just("c"), st.none(), st.text(max_size=2)),
    st.just(KeepAlive()),
)


@given(st.lists(EVENTS, max_size=12))
def test_message_by_message_is_the_same_as_all_at_once(events: list[Event]) -> None:
    """As flow control sends them."""
    together, apart = claw.Answer("a", "r"), claw.Answer("a", "r")
    batch = Batch(events, dialect="d")
    singly = [apart.content(batch.replaced(group)) for group in grouped(events)]
    assert all(len(frames) == 1 for frames in singly)
    assert together.content(batch) == [frame for frames in singly for frame in frames]
    said = [event.text for event in events if isinstance(event, Text | Refused)]
    calls = sorted({event.index for event in events if isinstance(event, ToolCallDelta)})
    assert together.said() == apart.said() == ("".join(said), calls)


def test_what_was_said_is_told_once_and_the_next_calls_have_other_indexes() -> None:
    answer = claw.Answer("a", "r")
    for number in range(1500):
        answer.content(Batch([Text(f"{number},")]))
    answer.content(Batch([Reasoning("hm"), ToolCallDelta(0, "c0", "f"), ToolCallDelta(2, "c2", "g")]))
    assert answer.said() == ("".join(f"{number}," for number in range(1500)), [0, 2])
    assert answer.said() == ("", [])
    [frame] = answer.content(Batch([ToolCallDelta(0, "c3", "h")]))
    assert json.loads(frame)["index"] == 3
    assert answer.said().calls == [3]
    whole = claw.Whole()
    whole.add(Batch([Text("a"), ToolCallDelta(0, "c0", "f")]))
    assert whole.said() == ("a", ())
    whole.add(Batch([Text("b"), ToolCallDelta(0, "c1", "g")]))
    assert whole.said() == ("b", ())
    whole.add(Batch([ToolCallDelta(0, "c2", "h")]))
    assert list(whole.batch().events) == [Text("ab"), ToolCallDelta(0, "c2", "h")]
