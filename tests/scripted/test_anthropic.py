"""The scripted provider in Anthropic's format: what it writes, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from clawproxy.scripted.anthropic import Anthropic
from clawproxy.scripted.formats import BadRequest
from clawproxy.scripted.script import parse
from clawproxy.scripted.walk import plan

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 9, "system": "be brief", "messages": [{"role": "user", "content": "say hi"}]}


def answer(script: str, target: str = "/v1/messages", **changes: Any) -> bytes:
    format_ = Anthropic()
    asked = format_.read({**ASKED, **changes}, target)
    return b"".join(move for move in plan(parse(script), asked, format_.encoder(asked, 1)).moves if isinstance(move, bytes))


def events(written: bytes) -> list[Any]:
    made = []
    for block in written.split(b"\n\n"):
        if block:
            name, data = block.split(b"\n")
            made.append(json.loads(data[6:]))
            assert name == b"event: " + made[-1]["type"].encode()
    return made


def test_a_stream() -> None:
    said = events(answer('reasoning hm; say Hi you; tool f {"a": 1}; tool g {}; usage 7 2 cached 3', stream=True))
    for event in said:
        EVENT.validate_python(event, strict=True)
    blocks = [event["content_block"]["type"] for event in said if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "text", "tool_use", "tool_use"]
    assert [event["index"] for event in said if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert said[0]["message"]["usage"]["input_tokens"] == 4
    assert said[-2]["delta"]["stop_reason"] == "tool_use"
    assert said[-2]["usage"]["input_tokens"] == 4
    assert said[-2]["usage"]["cache_read_input_tokens"] == 3
    signatures = [event["delta"]["signature"] for event in said if event.get("delta", {}).get("type") == "signature_delta"]
    assert len(signatures) == 1


def test_a_stream_without_figures_or_end() -> None:
    said = events(answer("say Hi; usage missing", stream=True))
    assert "usage" not in said[-2]
    assert said[-1]["type"] == "message_stop"
    assert "message_stop" not in answer("say Hi; no done", stream=True).decode()


def test_a_whole_message() -> None:
    document = json.loads(answer('reasoning hm; say Hi you; tool f {"a": 1}'))
    Message.model_validate(document, strict=True)
    assert [block["type"] for block in document["content"]] == ["thinking", "text", "tool_use"]
    assert document["stop_reason"] == "tool_use"


def test_errors_and_counts() -> None:
    assert events(answer('error type overloaded_error "busy"', stream=True))[-1]["error"] == {
        "type": "overloaded_error",
        "message": "busy",
    }
    assert json.loads(answer("say x", "/v1/messages/count_tokens")) == {"input_tokens": 4}
    assert json.loads(Anthropic().error_body(529))["error"]["type"] == "overloaded_error"
    assert [model["id"] for model in json.loads(Anthropic().models(["a"]))["data"]] == ["a"]


@pytest.mark.parametrize("changes", [{"max_tokens": None}, {"messages": []}, {"model": ""}, {"messages": [{"role": "tool"}]}])
def test_what_it_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        answer("say x", **changes)
