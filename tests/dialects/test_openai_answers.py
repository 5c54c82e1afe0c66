"""Chat Completions answers for a client, from events or from the provider's own bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Finish,
    FinishReason,
    KeepAlive,
    Outcome,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_exchange, make_request

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


def encoder(**request: Any) -> AnswerEncoder:
    exchange = make_exchange(request_id="0199-aa", started_unix=99.5, requested_model="asked-for")
    return CLIENT["openai_chat"].answer(exchange, make_request(**{"stream": True, **request}))


def documents(stream: bytes) -> list[Any]:
    """What an SSE client reads: JSON documents, and `[DONE]` as it is."""
    assert stream == b"" or stream.endswith(b"\n\n")
    blocks = [block.removeprefix(b"data: ") for block in stream.split(b"\n\n")[:-1]]
    return ["[DONE]" if block == b"[DONE]" else json.loads(block) for block in blocks]


def passed(stream: bytes, **request: Any) -> bytes:
    decoder = PROVIDER["openai_chat"].decoder(make_request(**{"stream": True, **request}))
    answer = encoder(**request)
    written = [answer.encode(batch) for piece in (stream[:30], stream[30:]) if (batch := decoder.feed(piece)) is not None]
    last = decoder.close()
    return b"".join(
        [*written, answer.encode(last) if last else b"", answer.finish(COMPLETE, REPORT), answer.finish(COMPLETE, REPORT)]
    )


def test_untouched_batches_are_the_providers_own_bytes() -> None:
    stream = ROLE + HI + STOP + COUNT + DONE
    assert passed(stream, include_usage=True) == stream
    assert passed(stream) == ROLE + HI + STOP + DONE


def test_what_the_provider_left_out_is_added_once() -> None:
    assert passed(HI + STOP) == HI + STOP + DONE
    added = documents(passed(HI + DONE))
    assert (added[1]["id"], added[1]["model"], added[1]["choices"][0]["finish_reason"]) == ("chatcmpl-7", "m-1", "stop")
    assert added[2:] == ["[DONE]"]
    asked = documents(passed(HI + STOP + DONE, include_usage=True))
    assert (asked[2]["choices"], asked[2]["usage"]["total_tokens"], asked[3:]) == ([], 12, ["[DONE]"])


def test_changed_and_untouched_batches_carry_one_id() -> None:
    answer = encoder()
    held = Batch([BEGIN, Text("secret")], raw=ROLE + HI, dialect="openai_chat")
    stream = answer.encode(held.replaced([BEGIN, Text("***")])) + answer.encode(Batch([Text("b")], raw=HI, dialect="openai_chat"))
    stream += answer.finish(COMPLETE, None)
    assert {(c["id"], c["model"]) for c in documents(stream)[:-1]} == {("chatcmpl-7", "m-1")}
    assert b"secret" not in stream


def test_made_chunks() -> None:
    answer = encoder()
    stream = b"".join(
        answer.encode(Batch([event]))
        for event in (Begin("other", "x"), Text("a"), Reasoning("r"), Refused("n"), ToolCallDelta(0, "c", "f", "{"),
                      ToolCallDelta(0, None, None, "}"), UsageReport(REPORT), KeepAlive(), Finish("tool_calls"), End())
    ) + answer.finish(COMPLETE, None)  # fmt: skip
    *chunks, done = documents(stream)
    assert done == "[DONE]"
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in chunks} == {
        ("chatcmpl-0199aa", "chat.completion.chunk", 99, "asked-for")
    }
    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "a"},
        {"reasoning_content": "r"},
        {"refusal": "n"},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 6 + ["tool_calls"]
    assert all("usage" not in c for c in chunks)


@pytest.mark.parametrize(
    ("usage", "seen", "right"),
    [
        (None, None, None),
        (None, Usage(1, 2), {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
        (Usage(4, 2), Usage(1, 2), {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}),
        (Usage(None, 2), None, {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}),
        (Usage(), None, None),
    ],
)
def test_usage_is_told_if_asked_for_and_known(usage: Usage | None, seen: Usage | None, right: Any) -> None:
    answer = encoder(include_usage=True)
    events: list[Event] = [Text("a"), Finish("stop")]
    stream = answer.encode(Batch([*events, UsageReport(seen)] if seen else events)) + answer.finish(COMPLETE, usage)
    *chunks, done = documents(stream)
    assert done == "[DONE]"
    assert all(c["usage"] is None for c in chunks[:3])
    assert [(c["choices"], c["usage"]) for c in chunks[3:]] == ([([], right)] if right else [])
    quiet = encoder()
    assert b"usage" not in quiet.encode(Batch([*events, UsageReport(Usage(1, 2))])) + quiet.finish(COMPLETE, usage)


@pytest.mark.parametrize(
    ("reason", "word"), [("budget", "length"), ("length", "length"), ("other", "stop"), ("content_filter", "content_filter")]
)
def test_finish_reasons_are_the_formats_own(reason: FinishReason, word: str) -> None:
    answer = encoder()
    stream = answer.encode(Batch([Text("a")])) + answer.finish(Outcome("truncated", finish=reason), None)
    assert documents(stream)[-2]["choices"][0]["finish_reason"] == word


def test_an_empty_answer_is_still_one() -> None:
    role, stop, done = documents(encoder().finish(COMPLETE, None))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert (stop["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


def test_a_failure_ends_the_stream_without_done() -> None:
    answer = encoder()
    answer.encode(Batch([Text("a")]))
    failed = answer.fail(ClawError("provider_error.cut"))
    assert documents(failed) == [
        {
            "error": {
                "message": "The provider's answer was cut off.",
                "type": "api_error",
                "param": None,
                "code": "provider_error.cut",
            }
        }
    ]
    assert answer.fail(ClawError("internal")) == answer.finish(COMPLETE, None) == answer.keepalive() == b""
    assert answer.encode(Batch([Text("late")])) == b""


def test_after_done_nothing_follows() -> None:
    answer = encoder()
    answer.encode(Batch([BEGIN, Finish("stop"), End()], raw=STOP + DONE, dialect="openai_chat"))
    assert answer.fail(ClawError("internal")) == answer.finish(COMPLETE, None) == b""


def test_keepalive_is_a_comment() -> None:
    assert encoder().keepalive() == b": keep-alive\n\n"
    assert encoder(stream=False).keepalive() == b""


def test_bytes_of_another_dialect_are_not_passed() -> None:
    stream = encoder().encode(Batch([Text("a")], raw=b"event: x\n\n", dialect="anthropic"))
    assert documents(stream)[1]["choices"][0]["delta"] == {"content": "a"}


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_i07_no_text_can_end_an_event(texts: list[str]) -> None:
    """Whatever a model writes, the client's reader sees one event with equal text."""
    answer = encoder()
    stream = b"".join(answer.encode(Batch([Text(text)])) for text in texts)
    assert b"\r" not in stream
    assert [c["choices"][0]["delta"]["content"] for c in documents(stream)] == ["", *texts]
    batch = PROVIDER["openai_chat"].decoder(make_request(stream=True)).feed(stream)
    assert batch is not None
    assert [event.text for event in batch.events if isinstance(event, Text)] == texts
    assert batch.raw == stream


@pytest.mark.parametrize("text", ["\n\ndata: [DONE]\n\n", "\r", "\u2028", "\u0085", "\x1c", "\0", "\r\n\r\n", "</script>"])
def test_i07_the_catalogues_texts(text: str) -> None:
    stream = encoder().encode(Batch([Text(text)]))
    assert stream.count(b"\n") == 4
    assert documents(stream)[1]["choices"][0]["delta"]["content"] == text


@pytest.mark.parametrize("stream", [True, False])
def test_several_choices_pass_untouched_and_are_never_mixed_up(stream: bool) -> None:
    answer = encoder(stream=stream, extra={"n": 2})
    raw = HI if stream else json.dumps(ANSWER).encode()
    batch = Batch([BEGIN, Text("a"), Text("b")], raw=raw, dialect="openai_chat")
    with pytest.raises(ClawError) as caught:
        answer.encode(batch.replaced([Text("***")])) or answer.finish(COMPLETE, None)
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", "n")
    answer = encoder(stream=stream, extra={"n": 2})
    assert (answer.encode(batch) or answer.finish(COMPLETE, None)) == raw


def test_a_whole_answer_passes_untouched() -> None:
    body = json.dumps(ANSWER).encode()
    answer = encoder(stream=False)
    assert answer.encode(Batch(EVENTS, raw=body, dialect="openai_chat")) == b""
    assert answer.finish(COMPLETE, None) == body


def test_a_whole_answer_made_from_events() -> None:
    answer = encoder(stream=False)
    answer.encode(Batch(EVENTS[:3], dialect="openai_chat"))
    answer.encode(Batch(EVENTS[3:], dialect="openai_chat"))
    document = json.loads(answer.finish(Outcome("complete", finish="tool_calls"), None))
    assert (document["id"], document["model"], document["created"]) == ("chatcmpl-0199aa", "asked-for", 99)
    message = ANSWER["choices"][0]["message"]  # type: ignore[index]
    assert document["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}]
    assert document["usage"] == USAGE
    assert answer.fail(ClawError("internal")) == b""


def test_content_is_null_where_there_are_only_tool_calls() -> None:
    answer = encoder(stream=False)
    answer.encode(Batch([ToolCallDelta(0, "c", "f", "{"), ToolCallDelta(0, None, None, "}"), ToolCallDelta(1, "d", "g")]))
    document = json.loads(answer.finish(Outcome("complete"), None))
    message = document["choices"][0]["message"]
    assert (message["content"], message["refusal"], document["usage"]) == (None, None, None)
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": ""},
    ]
    assert document["choices"][0]["finish_reason"] == "tool_calls"


def test_error_bodies_have_all_four_keys() -> None:
    fault = ProviderFault("provider_error.rate_limited", retry_after_ms=3000)
    assert json.loads(CLIENT["openai_chat"].error_body(fault, "req-1")) == {
        "error": {
            "message": "The provider is limiting requests.",
            "type": "api_error",
            "param": None,
            "code": "rate_limit_exceeded",
        },
        "request_id": "req-1",
    }
