"""The official SDK reads what this dialect writes: its own pydantic models, its stream reader, its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from clawproxy.dialects import CLIENT
from clawproxy.dialects.models import model_body, models_body
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Batch, Begin, Event, Finish, Outcome, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_exchange, make_request

EVENTS: list[Event] = [
    Begin("m-1", "x"),
    Reasoning("because"),
    Text("caf\u00e9 \u2028 "),
    Text("\U0001f600"),
    Refused("no"),
    ToolCallDelta(0, "call_1", "f", ""),
    ToolCallDelta(0, None, None, '{"a":'),
    ToolCallDelta(0, None, None, "1}"),
    UsageReport(Usage(7, 5, 2, 1, 3)),
    Finish("tool_calls"),
]


def written(stream: bool, usage: bool = True) -> bytes:
    answer = CLIENT["openai_chat"].answer(make_exchange(), make_request(stream=stream, include_usage=usage))
    body = b"".join(answer.encode(Batch([event])) for event in EVENTS)
    return body + answer.finish(Outcome("complete", finish="tool_calls"), Usage(7, 5, 2, 1, 3))


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


def strict(model: type[BaseModel], document: Any) -> Any:
    """Validated without conversions."""
    return model.model_validate(document, strict=True)


def test_chunks_are_the_sdks_chunks() -> None:
    blocks = [block.removeprefix(b"data: ") for block in written(True).split(b"\n\n")]
    assert blocks[-2:] == [b"[DONE]", b""]
    for block in blocks[:-2]:
        strict(ChatCompletionChunk, json.loads(block))


def test_a_whole_answer_is_the_sdks() -> None:
    completion = strict(ChatCompletion, json.loads(written(False)))
    message = completion.choices[0].message
    assert (message.content, message.refusal) == ("caf\u00e9 \u2028 \U0001f600", "no")
    assert message.tool_calls[0].function.arguments == '{"a":1}'
    assert completion.usage.prompt_tokens_details.cached_tokens == 2


def test_the_sdk_reads_the_stream(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    answers.append(httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=written(True)))
    with client.chat.completions.stream(
        model="m", messages=[{"role": "user", "content": "x"}], stream_options={"include_usage": True}
    ) as stream:
        stream.until_done()
        completion = stream.get_final_completion()
    message = completion.choices[0].message
    assert message.content == "caf\u00e9 \u2028 \U0001f600"
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "f", '{"a":1}')
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 12


def test_the_sdk_raises_at_an_error_event(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    answer = CLIENT["openai_chat"].answer(make_exchange(), make_request(stream=True))
    body = answer.encode(Batch([Text("a")])) + answer.fail(ClawError("provider_error.cut"))
    answers.append(httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body))
    stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    texts: list[Any] = []
    with pytest.raises(openai.APIError, match="cut off") as caught:
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "a"]
    assert caught.value.code == "provider_error.cut"


ERRORS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    429: openai.RateLimitError,
}


@pytest.mark.parametrize("slug", [slug for slug, kind in KINDS.items() if kind.status != 499])
def test_the_sdk_maps_every_error(slug: str, client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    error = ClawError(slug, param="messages[0]")
    answers.append(
        httpx2.Response(
            error.status,
            headers={"content-type": "application/json"},
            content=CLIENT["openai_chat"].error_body(error, "req-1"),
        )
    )
    default = openai.InternalServerError if error.status >= 500 else openai.APIStatusError
    with pytest.raises(ERRORS.get(error.status, default)) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    raised = caught.value
    assert (raised.code, raised.type, raised.param) == (error.kind.openai_code or slug, error.kind.openai_type, "messages[0]")
    assert error.message in raised.message
    assert "insufficient_quota" not in str(raised)  # OpenClaw puts a key out of use for it


def test_the_model_documents_are_the_sdks(client: openai.OpenAI, answers: list[httpx2.Response]) -> None:
    body = models_body([("a/b", "openai"), ("c", "vllm"), ("a/b", "azure")], created=5)
    answers.append(httpx2.Response(200, headers={"content-type": "application/json"}, content=body))
    assert [(model.id, model.owned_by, model.created) for model in client.models.list()] == [
        ("a/b", "openai", 5),
        ("c", "vllm", 5),
    ]
    strict(Model, json.loads(model_body("c", "vllm")))
    assert json.loads(models_body([])) == {"object": "list", "data": []}
