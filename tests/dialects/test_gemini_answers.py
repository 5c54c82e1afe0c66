"""Answers to Gemini clients, made of anybody's events; google-genai's own types read them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import KINDS, ClawError
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
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_exchange, make_request

THOUGHTS = {"generationConfig.thinkingConfig.includeThoughts": True}
DONE = Outcome("complete", finish="tool_calls")
EVENTS: list[Event] = [
    Begin("m-1", "x"),
    Reasoning("because", "foreign"),
    Text("caf\u00e9 \u2028 "),
    Text("\U0001f600"),
    Refused("no"),
    ToolCallDelta(0, "call_1", "f", ""),
    ToolCallDelta(0, None, None, '{"a":'),
    ToolCallDelta(1, "gemini-call-4", "g", "", "foreign"),
    ToolCallDelta(0, None, None, "1}"),
    Finish("tool_calls"),
]


def written(batches: Sequence[Batch], outcome: Outcome = DONE, *, form: str = "sse", **changes: Any) -> bytes:
    request = make_request(**{"stream": True, "dialect": "gemini", "form": form, **changes})
    answer = CLIENT["gemini"].answer(make_exchange(), request)
    body = b"".join([answer.encode(batch) for batch in batches])
    return body + answer.finish(outcome, Usage(7, 5, 2, 1, 3))


def documents(body: bytes) -> list[Any]:
    """A stream's, in either form."""
    if body.startswith(b"["):
        made: list[Any] = json.loads(body)
        return made
    *blocks, last = body.split(b"\r\n\r\n")
    assert last == b""
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


def read(document: Any) -> types.GenerateContentResponse:
    return types.GenerateContentResponse.model_validate(document)


PARTS = [
    {"text": "because", "thought": True},
    {"text": "caf\u00e9 \u2028 "},
    {"text": "\U0001f600"},
    {"text": "no"},
    {"functionCall": {"name": "f", "args": {"a": 1}, "id": "call_1"}},
    {"functionCall": {"name": "g", "args": {}}},
]
FIGURES = {
    "promptTokenCount": 7,
    "cachedContentTokenCount": 2,
    "candidatesTokenCount": 2,
    "thoughtsTokenCount": 3,
    "totalTokenCount": 12,
}


@pytest.mark.parametrize("form", ["sse", ""])
def test_a_stream_made_of_another_formats_events(form: str) -> None:
    batches = [Batch([event], dialect="openai_chat") for event in EVENTS]
    made = documents(written(batches, form=form, extra=THOUGHTS))
    assert [part for each in made for part in each["candidates"][0]["content"]["parts"]] == PARTS, "and no foreign signature"
    assert ["finishReason" in each["candidates"][0] for each in made] == [False] * (len(made) - 1) + [True]
    assert (made[-1]["candidates"][0]["finishReason"], made[-1]["usageMetadata"]) == ("STOP", FIGURES)
    assert len({(each["modelVersion"], each["responseId"]) for each in made}) == 1
    assert made[0]["modelVersion"] == "test-model"
    assert [read(each).candidates is not None for each in made] == [True] * len(made)


def test_a_whole_answer_made_of_another_formats_events() -> None:
    [document] = [json.loads(written([Batch(EVENTS, dialect="anthropic")], stream=False, extra=THOUGHTS))]
    joined = [PARTS[0], {"text": "caf\u00e9 \u2028 \U0001f600no"}, *PARTS[4:]]
    assert document["candidates"] == [{"content": {"parts": joined, "role": "model"}, "index": 0, "finishReason": "STOP"}]
    assert document["usageMetadata"] == FIGURES
    answer = read(document)
    assert answer.function_calls is not None
    assert [(call.id, call.name, call.args) for call in answer.function_calls] == [("call_1", "f", {"a": 1}), (None, "g", {})]


def test_thoughts_are_for_who_asked() -> None:
    made = documents(written([Batch([Reasoning("hm"), Text("a")], dialect="openai_chat")]))
    assert [part for each in made for part in each["candidates"][0]["content"]["parts"]] == [{"text": "a"}]


def test_signatures_of_this_format_go_back() -> None:
    events: list[Event] = [
        Reasoning("hm", "c2ln"),
        Text("a"),
        Reasoning("", "dGV4dA=="),
        ToolCallDelta(0, None, "f", "{}", "Y2FsbA=="),
    ]
    made = documents(written([Batch(events, dialect="gemini")]))
    parts = [part for each in made for part in each["candidates"][0]["content"]["parts"]]
    assert parts == [
        {"text": "a"},
        {"text": "", "thoughtSignature": "dGV4dA=="},
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "Y2FsbA=="},
    ]
    [document] = [json.loads(written([Batch(events, dialect="gemini")], stream=False))]
    assert document["candidates"][0]["content"]["parts"][0] == {"text": "a", "thoughtSignature": "dGV4dA=="}


@pytest.mark.parametrize(
    ("arguments", "outcome", "said"),
    [
        ("{", "tool_calls", "MALFORMED_FUNCTION_CALL"),
        ("[1]", "tool_calls", "MALFORMED_FUNCTION_CALL"),
        ('{"a', "length", "MAX_TOKENS"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_is_no_object_is_left_out(arguments: str, outcome: Any, said: str, stream: bool) -> None:
    body = written([Batch([ToolCallDelta(0, "c", "f", arguments)])], Outcome("complete", finish=outcome), stream=stream)
    [document] = documents(body) if stream else [json.loads(body)]
    [candidate] = document["candidates"]
    assert (candidate["content"]["parts"], candidate["finishReason"]) == ([], said)


def google(*texts: str) -> bytes:
    parts = [{"candidates": [{"content": {"parts": [{"text": text}]}}], "modelVersion": "g", "responseId": "r"} for text in texts]
    return b"".join([b"data: " + json.dumps(part).encode() + b"\r\n\r\n" for part in parts])


def test_googles_own_bytes_pass_as_they_are() -> None:
    raw = google("a", "b")
    events: list[Event] = [Begin("g", "r"), Text("a"), Text("b"), Finish("stop", "STOP"), UsageReport(Usage(1, 1))]
    batch = Batch(events, raw=raw, dialect="gemini")
    assert written([batch, Batch([End()], raw=b"", dialect="gemini")]) == raw, "nothing is missing, so nothing is added"
    assert documents(written([batch], form="")) == documents(raw)
    several = b'data: {"a":\r\ndata: 1}\r\n\r\n'
    assert documents(written([Batch([Finish("stop")], raw=several, dialect="gemini")], form="")) == [{"a": 1}]


def test_what_was_changed_goes_on_under_the_same_name() -> None:
    passed = Batch([Begin("g", "r"), Text("a")], raw=google("a"), dialect="gemini")
    made = documents(written([passed, Batch([Text("b")], dialect="gemini")], Outcome("complete", finish="stop")))
    assert [(each["modelVersion"], each["responseId"]) for each in made] == [("g", "r")] * 3
    assert made[-1]["candidates"][0]["finishReason"] == "STOP"


def test_a_whole_document_passes_untouched() -> None:
    raw = b'{\n  "candidates": []\n}'
    assert written([Batch([End()], raw=raw, dialect="gemini")], stream=False) == raw


def test_several_candidates_only_in_googles_own_bytes() -> None:
    several = {"generationConfig.candidateCount": 2}
    passed = Batch([Text("a"), Finish("stop")], raw=google("a"), dialect="gemini")
    assert written([passed], extra=several) == google("a")
    for stream in (True, False):
        with pytest.raises(ClawError) as caught:
            written([Batch([Text("a")])], extra=several, stream=stream)
        assert caught.value.details.param == "generationConfig.candidateCount"


def test_an_error_in_a_stream_ends_it() -> None:
    for form, around in (("sse", (b"data: ", b"\r\n\r\n")), ("", (b",\r\n", b"]"))):
        answer = CLIENT["gemini"].answer(make_exchange(), make_request(stream=True, form=form, dialect="gemini"))
        before = answer.encode(Batch([Text("a")]))
        after = answer.fail(ClawError("provider_error.cut"))
        assert after.startswith(around[0] + b'{"error":{"code":502,')
        assert after.endswith(around[1])
        assert len(documents(before + after)) == 2
        assert answer.fail(ClawError("internal")) == answer.finish(DONE, None) == answer.keepalive() == b""


def test_an_array_that_nobody_filled() -> None:
    answer = CLIENT["gemini"].answer(make_exchange(), make_request(stream=True, dialect="gemini"))
    assert json.loads(answer.keepalive() + answer.fail(ClawError("internal")))[0]["error"]["status"] == "INTERNAL"
    answer = CLIENT["gemini"].answer(make_exchange(), make_request(stream=True, dialect="gemini", form="sse"))
    assert answer.keepalive() == b"", "google-genai would take a comment for broken JSON"


def test_counts_and_vectors() -> None:
    report = Batch([UsageReport(Usage(9, None, 2))], dialect="anthropic")
    assert json.loads(written([report], stream=False, operation="count_tokens")) == {
        "totalTokens": 7,
        "cachedContentTokenCount": 2,
    }
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1)).decode()
    vectors = Batch([Embedding(1, packed), Embedding(0, (1.0, 2.0))], dialect="openai_chat")
    both = json.loads(written([vectors], stream=False, operation="embeddings", form="batchEmbedContents"))
    assert both == {"embeddings": [{"values": [1.0, 2.0]}, {"values": [0.5, -1.0]}]}
    one = json.loads(written([vectors], stream=False, operation="embeddings", form="embedContent"))
    assert one == {"embedding": {"values": [1.0, 2.0]}}
    for broken in ([], [Batch([Embedding(0, "%%%")])]):
        with pytest.raises(ClawError):
            written(broken, stream=False, operation="embeddings", form="embedContent")


@pytest.mark.parametrize("slug", [slug for slug, kind in KINDS.items() if kind.status != 499])
def test_every_error_in_googles_words(slug: str) -> None:
    error = ClawError(slug, param="contents[0]", retry_after_ms=1250)
    [made] = json.loads(CLIENT["gemini"].error_body(error, "req-1")).values()
    assert (made["code"], made["message"]) == (error.status, error.message)
    assert made["status"].isupper()
    info, request, retry, ident = made["details"]
    assert (info["reason"], request["fieldViolations"][0]["field"]) == (slug, "contents[0]")
    assert (retry["retryDelay"], ident["requestId"]) == ("1.250s", "req-1")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
CALLS = st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9) | TEXTS, max_size=2)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.lists(CALLS, max_size=3), st.sampled_from(["sse", "", "whole"]))
def test_what_is_written_reads_back(texts: list[str], calls: list[dict[str, Any]], form: str) -> None:
    """Our own answer, read as a provider's, says the same again."""
    events: list[Event] = [Text(text) for text in texts]
    events += [ToolCallDelta(n, f"c{n}", "f", json.dumps(args)) for n, args in enumerate(calls)]
    body = written([Batch([event]) for event in events], form=form, stream=form != "whole")
    if form == "":
        body = b"".join([b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents(body)])
    decoder = PROVIDER["gemini"].decoder(make_request(stream=form != "whole"))
    said = [event for batch in (decoder.feed(body), decoder.close()) if batch is not None for event in batch.events]
    assert "".join([event.text for event in said if isinstance(event, Text)]) == "".join(texts)
    back = [event for event in said if isinstance(event, ToolCallDelta)]
    assert [(event.call_id, json.loads(event.arguments)) for event in back] == [(f"c{n}", args) for n, args in enumerate(calls)]
    assert [event.reason for event in said if isinstance(event, Finish)] == ["tool_calls" if calls else "stop"]
    [usage] = [event.usage for event in said if isinstance(event, UsageReport)]
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) == (7, 5, 2, 3)
