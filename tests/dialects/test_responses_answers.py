"""Responses answers as the official SDK reads them: its own models, its stream helper, its errors; and what may pass as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.openai_responses.client_answer import blocks
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Batch, Begin, Event, Finish, Outcome, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.messages import ChatRequest, Usage
from clawproxy.testing.factories import make_exchange, make_head
from tests.dialects.responses_wire import BEGIN, FULL, answer, call, message, sse

EVENTS: list[Event] = [
    Begin("m-1", "x"),
    Reasoning("be"),
    Reasoning("cause"),
    Text("caf\u00e9 \u2028 "),
    Text("\U0001f600"),
    Refused("no"),
    ToolCallDelta(0, "call_a", "f", ""),
    ToolCallDelta(0, None, None, '{"a":'),
    ToolCallDelta(1, "call_b", "apply_patch", '{"input":'),
    ToolCallDelta(0, None, None, "1}"),
    ToolCallDelta(1, None, None, '"*** Begin"}'),
    ToolCallDelta(2, "call_c", "agents__spawn", "{}"),
    UsageReport(Usage(7, 5, 2, 1, 3)),
    Finish("tool_calls"),
]
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "apply_patch", "description": "p", "format": {"type": "text"}},
    {"type": "namespace", "name": "agents", "description": "a", "tools": [
        {"type": "function", "name": "spawn", "parameters": {"type": "object"}, "strict": False}]},
]  # fmt: skip
ORDER = [
    "created", "in_progress",
    "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.delta",
    "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done", "content_part.done",
    "content_part.added", "refusal.delta", "refusal.done", "content_part.done", "output_item.done",
    "output_item.added", "function_call_arguments.delta", "output_item.added", "function_call_arguments.delta",
    "output_item.added", "function_call_arguments.delta",
    "function_call_arguments.done", "output_item.done",
    "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
    "function_call_arguments.done", "output_item.done",
    "completed",
]  # fmt: skip


def asked(**fields: Any) -> ChatRequest:
    body = json.dumps({"model": "m", "input": "x", **fields}).encode()
    return CLIENT["openai_responses"].decode_request(body, {}, make_head("/v1/responses"))


def written(request: ChatRequest, events: list[Event] = EVENTS, outcome: Outcome | None = None) -> bytes:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), request)
    body = b"".join(encoder.encode(Batch([event])) for event in events)
    return body + encoder.finish(outcome or Outcome("complete", finish="tool_calls"), Usage(7, 5, 2, 1, 3))


def strict(model: type[BaseModel], document: Any) -> Any:
    return model.model_validate(document, strict=True)


def output_of(response: Any) -> list[tuple[Any, ...]]:
    said: list[tuple[Any, ...]] = []
    for item in response.output:
        if item.type == "reasoning":
            said.append(("reasoning", item.summary[0].text))
        elif item.type == "message":
            said.append(("message", *[getattr(part, "text", None) or part.refusal for part in item.content]))
        elif item.type == "custom_tool_call":
            said.append(("custom", item.call_id, item.name, item.input))
        else:
            said.append(("call", item.call_id, item.namespace, item.name, item.arguments))
    return said


OUTPUT = [
    ("reasoning", "because"),
    ("message", "caf\u00e9 \u2028 \U0001f600", "no"),
    ("call", "call_a", None, "f", '{"a":1}'),
    ("custom", "call_b", "apply_patch", "*** Begin"),
    ("call", "call_c", "agents", "spawn", "{}"),
]


def test_stream_events_are_the_sdks_in_their_order_and_numbered() -> None:
    events = [json.loads(data) for data in blocks(written(asked(stream=True, tools=TOOLS)))]
    assert [event["type"] for event in events] == [f"response.{name}" for name in ORDER]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    adapter: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event, strict=True)
    for event in events:  # what closes an item or its part is about one that is open
        if "item_id" in event:
            opened = [
                e["item"]["id"] for e in events if e["type"].endswith("item.added") and e["output_index"] == event["output_index"]
            ]
            assert opened == [event["item_id"]]
    response = strict(Response, events[-1]["response"])
    assert output_of(response) == OUTPUT
    assert response.usage.total_tokens == 12
    assert response.usage.input_tokens_details.cache_write_tokens == 1


def test_a_whole_answer_is_the_sdks() -> None:
    document = json.loads(
        written(
            asked(
                tools=TOOLS, instructions="be good", reasoning={"effort": "low"}, metadata={"a": "b"}, text={"verbosity": "low"}
            )
        )
    )
    response = strict(Response, document)
    assert output_of(response) == OUTPUT
    assert response.status == "completed"
    assert (response.instructions, response.reasoning.effort, response.metadata) == ("be good", "low", {"a": "b"})
    assert document["tools"] == TOOLS


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [("length", "incomplete", "max_output_tokens"), ("content_filter", "incomplete", "content_filter"),
     ("budget", "incomplete", "max_output_tokens"), ("cancelled", "incomplete", None), ("stop", "completed", None)],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_ends(finish: Any, status: str, reason: str | None, stream: bool) -> None:
    body = written(asked(stream=stream), [Text("a")], Outcome("truncated", finish=finish))
    last = json.loads(blocks(body)[-1]) if stream else {"type": f"response.{status}", "response": json.loads(body)}
    assert last["type"] == f"response.{status}"
    response = strict(Response, last["response"])
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (status, reason)
    assert response.output_text == "a"


def test_an_answer_without_content_is_still_one() -> None:
    for stream in (True, False):
        body = written(asked(stream=stream), [])
        document = json.loads(blocks(body)[-1])["response"] if stream else json.loads(body)
        assert strict(Response, document).output == []


def test_reasoning_that_only_its_provider_can_read() -> None:
    """It is kept for a provider of this format, whole, and without a summary there is none; another's means nothing here."""
    event = Reasoning("", "signature", "gAAA", "rs_1")
    for dialect, kept in (("openai_responses", 1), ("anthropic", 0)):
        for stream in (True, False):
            encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=stream))
            body = encoder.encode(Batch([event, Text("a")], dialect=dialect)) + encoder.finish(Outcome("complete"), None)
            document = json.loads(blocks(body)[-1])["response"] if stream else json.loads(body)
            found = [item for item in strict(Response, document).output if item.type == "reasoning"]
            assert [(item.encrypted_content, item.summary) for item in found] == [("gAAA", [])] * kept


# --- the SDK itself --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers() -> list[httpx2.Response]:
    return []


@pytest.fixture
def client(answers: list[httpx2.Response]) -> Iterator[openai.OpenAI]:
    """The real client over a transport that hands out `answers`."""
    with (
        httpx2.Client(transport=httpx2.MockTransport(lambda request: answers.pop(0))) as http,
        openai.OpenAI(api_key="x", base_url="http://claw.test/v1", max_retries=0, http_client=http) as sdk,
    ):
        yield sdk


def streamed(content: bytes) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)


def test_the_sdks_stream_helper(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    answers.append(streamed(written(asked(stream=True, tools=TOOLS))))
    with client.responses.stream(model="m", input="x") as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert texts[-1] == "caf\u00e9 \u2028 \U0001f600"
    assert output_of(final) == OUTPUT


class Answer(BaseModel):
    city: str


def test_the_sdk_parses(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    request = asked(
        text={"format": {"type": "json_schema", "name": "Answer", "schema": Answer.model_json_schema(), "strict": True}}
    )
    body = written(request, [Text('{"city":'), Text('"Z\u00fcrich"}')])
    answers.append(httpx2.Response(200, headers={"content-type": "application/json"}, content=body))
    parsed = client.responses.parse(model="m", input="x", text_format=Answer)
    assert parsed.output_parsed == Answer(city="Z\u00fcrich")


def test_the_sdk_raises_where_an_answer_fails_on_its_way(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=True))
    body = encoder.encode(Batch([Text("a")])) + encoder.fail(ClawError("provider_error.cut"))
    assert (encoder.fail(ClawError("internal")), encoder.keepalive()) == (b"", b"")
    answers.append(streamed(body))
    stream = client.responses.create(model="m", input="x", stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="cut off") as caught:
        texts.extend(getattr(event, "delta", "") for event in stream)
    assert "".join(texts) == "a"
    assert caught.value.code == "provider_error.cut"
    last = json.loads(blocks(body)[-1])  # what Codex looks at
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert strict(Response, last["response"]).error.code == "server_error"


@pytest.mark.parametrize(
    ("slug", "code"),
    [("provider_error.rate_limited", "rate_limit_exceeded"), ("context_length_exceeded", "context_length_exceeded"),
     ("refused.sanitize", "invalid_prompt"), ("timeout.stall", "server_error"), ("internal", "server_error")],
)  # fmt: skip
def test_the_codes_of_a_failed_response(slug: str, code: str) -> None:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=True))
    last = json.loads(blocks(encoder.fail(ClawError(slug)))[-1])
    assert last["response"]["error"] == {"code": code, "message": KINDS[slug].message}
    assert last["error"]["code"] == (KINDS[slug].openai_code or slug)


def test_errors_before_an_answer(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    error = ClawError("unsupported_parameter", param="tools[1]")
    body = CLIENT["openai_responses"].error_body(error, "req-1")
    answers.append(httpx2.Response(400, headers={"content-type": "application/json"}, content=body))
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="x")
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools[1]")


# --- what passes as it is --------------------------------------------------------------------------------------------------


def batches(data: list[dict[str, Any]], each: int = 1) -> list[Batch]:
    """What the provider's decoder makes of these events, `each` to a read."""
    decoder = PROVIDER["openai_responses"].decoder(asked(stream=True))
    wires = [wire + b"\n\n" for wire in sse(*data).split(b"\n\n")[:-1]]
    found = [decoder.feed(b"".join(wires[at : at + each])) for at in range(0, len(wires), each)]
    return [batch for batch in found if batch is not None]


def passed(data: list[Batch]) -> bytes:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=True))
    body = b"".join([encoder.encode(batch) for batch in data])
    return body + encoder.finish(Outcome("complete", finish="stop"), None)


@pytest.mark.parametrize("each", [1, 2, 3, 7, 100])
def test_a_provider_of_the_same_format_passes_as_it_is(each: int) -> None:
    data = batches(FULL, each)
    assert passed(data) == b"".join(cast(bytes, batch.raw) for batch in data)


def test_a_provider_without_deltas_passes_as_it_is() -> None:
    data = batches([event for event in FULL if not event["type"].endswith(".delta")])
    assert passed(data) == b"".join(cast(bytes, batch.raw) for batch in data)


def replaced(data: list[Batch], old: str, new: str) -> list[Batch]:
    """As a policy does: batches that say `old` lose their bytes."""
    out = []
    for batch in data:
        events = [Text(event.text.replace(old, new)) if isinstance(event, Text) else event for event in batch.events]
        out.append(batch if events == list(batch.events) else batch.replaced(events))
    return out


@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_a_policy_took_out_is_in_none_of_the_repetitions(each: int, at: int) -> None:
    words = ["one ", "two ", "three "]
    words[at] = "secret "
    body = passed(replaced(batches(answer(message(0, *words), call(1, "{}")), each), "secret", "***"))
    assert b"secret" not in body
    events = [json.loads(data) for data in blocks(body)]
    final = strict(Response, events[-1]["response"])
    assert final.output_text == "".join(words).replace("secret", "***")
    assert final.output[1].arguments == "{}"
    assert final.id == "resp_1"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    adapter: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)


@pytest.mark.parametrize("held", [1, 2, 3])
def test_what_a_policy_still_holds_back_is_in_no_repetition(held: int) -> None:
    """A window holds the last pieces until the text is over; the provider's own end of the text is there before."""
    data = batches(answer(message(0, "a ", "secret", "-", "key")))
    texts = [batch for batch in data if any(isinstance(event, Text) for event in batch.events)][-held:]
    late = [Text("[cut]")]
    kept = [batch for batch in data if batch not in texts]
    end = kept.index(data[-1])
    body = passed([*kept[:end], kept[end].replaced([*late, *kept[end].events])])
    assert b"key" not in body
    final = strict(Response, json.loads(blocks(body)[-1])["response"])
    assert final.output_text == "".join(["a ", "secret", "-", "key"][: 4 - held]) + "[cut]"


@given(
    st.lists(
        st.tuples(st.sampled_from(["ab", "cd ", "\u00e9"]), st.sampled_from(["pass", "change", "hold"])), min_size=1, max_size=6
    ),
    st.integers(1, 5),
    st.sampled_from([[], [call(1, '{"a":', "1}")], [call(1, "{}"), call(2, "[]")]]),
)
def test_whatever_a_policy_does_the_client_hears_just_what_it_let_through(
    words: list[tuple[str, str]], each: int, calls: list[Any]
) -> None:
    data = batches(answer(message(0, *[f"<{number}{word}>" for number, (word, _) in enumerate(words)]), *calls), each)
    fate = {f"<{number}{word}>": what for number, (word, what) in enumerate(words)}
    held: list[Event] = []
    out: list[Batch] = []
    for batch in data:
        events: list[Event] = []
        for event in batch.events:
            what = fate.get(event.text, "pass") if isinstance(event, Text) else "pass"
            if isinstance(event, Text) and (what == "hold" or (held and what == "pass")):
                held.append(event)  # what comes after held text waits too
            elif isinstance(event, Text) and what == "change":
                events += [*held, Text("*")]
                held.clear()
            elif isinstance(event, ToolCallDelta | UsageReport | Finish):
                events += [*held, event]
                held.clear()
            else:
                events.append(event)
        out.append(batch if events == list(batch.events) else batch.replaced(events))
    body = passed(out)
    final = strict(Response, json.loads(blocks(body)[-1])["response"])
    assert final.output_text == "".join("*" if what == "change" else text for text, what in fate.items())
    assert [item.arguments for item in final.output[1:]] == [item["arguments"] for _, item in calls]
    for text, what in fate.items():
        assert what != "change" or text not in body.decode()
    events_told = [json.loads(data) for data in blocks(body)]
    deltas = [event["delta"] for event in events_told if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text
    assert [event["sequence_number"] for event in events_told] == sorted({event["sequence_number"] for event in events_told})


def test_bytes_of_another_format_never_pass() -> None:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=True))
    body = encoder.encode(Batch([Text("a")], raw=b"data: {}\n\n", dialect="openai_chat"))
    assert b"response.output_text.delta" in body
    assert b"data: {}" not in body


def test_a_failure_after_bytes_that_passed_goes_on_with_their_answer() -> None:
    encoder = CLIENT["openai_responses"].answer(make_exchange(), asked(stream=True))
    for batch in batches([*BEGIN, *message(0, "a")[0][:3]]):
        encoder.encode(batch)
    [failed] = [json.loads(data) for data in blocks(encoder.fail(ClawError("provider_error.cut")))]
    assert (failed["type"], failed["response"]["id"]) == ("response.failed", "resp_1")
    assert failed["sequence_number"] == 5
