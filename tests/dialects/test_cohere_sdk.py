"""The official Cohere SDK against a running gateway, whatever its providers speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cohere
import pytest
from cohere.core.api_error import ApiError

from tests.dialects.native import MODELS, Native, native
from tests.e2e.harness import KEY

TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def client(world: Native, key: str = KEY) -> cohere.ClientV2:
    return cohere.ClientV2(api_key=key, base_url=world.url, max_retries=0, log_warning_experimental_features=False)


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def by_type(events: list[Any], *kinds: str) -> list[Any]:
    return [event for event in events if event.type in kinds]


@pytest.mark.parametrize("model", MODELS)
async def test_chats(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world) as sdk:
                script = "script: reasoning hm; say caf\u00e9 \u2028 there; usage 7 5 cached 3"
                whole = sdk.chat(model=model, messages=user(script), temperature=0.3, seed=7)
                assert whole.message.content
                assert [(item.type, getattr(item, item.type)) for item in whole.message.content] == [
                    ("thinking", "hm"),
                    ("text", "caf\u00e9 \u2028 there"),
                ]
                assert whole.finish_reason == "COMPLETE"
                assert whole.usage
                assert whole.usage.billed_units
                assert (whole.usage.billed_units.input_tokens, whole.usage.billed_units.output_tokens) == (7, 5)
                events: list[Any] = list(sdk.chat_stream(model=model, messages=user(script), max_tokens=9))
                assert [
                    event.type for event in by_type(events, "message-start", "content-start", "content-end", "message-end")
                ] == [
                    "message-start",
                    "content-start",
                    "content-end",
                    "content-start",
                    "content-end",
                    "message-end",
                ]
                deltas = [event.delta.message.content for event in by_type(events, "content-delta")]
                assert "".join(delta.text or "" for delta in deltas) == "caf\u00e9 \u2028 there"
                assert "".join(delta.thinking or "" for delta in deltas) == "hm"
                end = events[-1].delta
                assert (end.finish_reason, end.usage.billed_units.input_tokens) == ("COMPLETE", 7)
                assert events[0].id
                assert events[-1].id == events[0].id

        await world.in_thread(conversation)


@pytest.mark.parametrize("model", MODELS)
async def test_tools_there_and_back(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world) as sdk:
                script = 'script: reasoning plan: add; tool add {"a": 1, "b": [true, null]}; tool add {}; usage 3 2'
                events: list[Any] = list(sdk.chat_stream(model=model, messages=user(script), tools=[TOOL]))
                started = [event.delta.message.tool_calls for event in by_type(events, "tool-call-start")]
                assert [call.function.name for call in started] == ["add", "add"]
                assert len(by_type(events, "tool-call-end")) == 2
                arguments = {event.index: "" for event in by_type(events, "tool-call-start")}
                for event in by_type(events, "tool-call-start", "tool-call-delta"):
                    arguments[event.index] += event.delta.message.tool_calls.function.arguments
                assert [text.replace(" ", "") for text in arguments.values()] == ['{"a":1,"b":[true,null]}', "{}"]
                assert events[-1].delta.finish_reason == "TOOL_CALL"
                whole = sdk.chat(model=model, messages=user(script), tools=[TOOL])
                assert whole.finish_reason == "TOOL_CALL"
                calls = whole.message.tool_calls
                assert calls
                assert [call.id for call in calls] == [call.id for call in started]
                results: Any = [
                    {"role": "tool", "tool_call_id": call.id, "content": [{"type": "document", "document": {"data": {"n": 2}}}]}
                    for call in calls
                ]
                messages = [*user("x"), whole.message, *results, *user("script: say done")]
                answer = sdk.chat(model=model, messages=messages, tools=[TOOL])
                assert answer.message.content
                assert answer.message.content[0].type == "text"
                assert answer.message.content[0].text == "done"

        await world.in_thread(conversation)
        sent = world.bodies()[-1]["messages"]
        assert [call["id"] for call in sent[1]["tool_calls"]] == [result["tool_call_id"] for result in sent[2:4]]
        if model == "cohere":
            assert sent[1]["tool_plan"].startswith("plan:")
            assert sent[2]["content"] == [{"type": "document", "document": {"data": {"n": 2}}}]
        else:
            assert "document" not in str(sent[2])


@pytest.mark.parametrize("model", MODELS)
async def test_errors(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world) as sdk:
                events: list[Any] = list(sdk.chat_stream(model=model, messages=user("script: say a; error boom")))
                assert [event.delta.message.content.text for event in by_type(events, "content-delta")] == ["a"]
                assert (events[-1].type, events[-1].delta.finish_reason) == ("message-end", "ERROR")
                assert events[-1].delta.error == "The provider failed."
                for script, kind in (
                    ("script: status 429", cohere.TooManyRequestsError),
                    ("script: status 503", cohere.ServiceUnavailableError),
                    ("script: say a; cut", ApiError),
                ):
                    with pytest.raises(kind) as caught:
                        sdk.chat(model=model, messages=user(script))
                    assert isinstance(caught.value.body, dict)
                    assert caught.value.body["message"].startswith("The provider")
                    assert caught.value.body["id"]
                with pytest.raises(cohere.NotFoundError):
                    sdk.chat(model="unknown", messages=user("x"))
                with pytest.raises(cohere.BadRequestError, match="tool_choice"):
                    sdk.chat(model=model, messages=user("x"), tool_choice="SOME")
            with client(world, "wrong") as sdk, pytest.raises(cohere.UnauthorizedError):
                sdk.chat(model=model, messages=user("x"))

        await world.in_thread(conversation)


async def test_what_only_cohere_can_do(tmp_path: Path) -> None:
    documents: Any = [{"data": {"text": "The moon is far."}, "id": "d1"}]
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world) as sdk:
                sdk.chat(model="cohere", messages=user("script: say ok"), documents=documents, safety_mode="STRICT", priority=3)
                with pytest.raises(cohere.BadRequestError, match="`documents`"):
                    sdk.chat(model="ollama", messages=user("x"), documents=documents)

        await world.in_thread(conversation)
        [body] = world.bodies()
        assert (body["documents"], body["safety_mode"], body["priority"]) == (documents, "STRICT", 3)
        assert body["model"] == "scripted-1"


@pytest.mark.parametrize("model", ["ollama", "cohere"])
async def test_embeddings(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world) as sdk:
                answer = sdk.embed(model=model, input_type="search_query", texts=["one two", "x"], embedding_types=["float"])
                assert answer.embeddings.float_ == [[7.0, 2.0, 0.5], [1.0, 1.0, 0.5]]
                assert answer.texts == ["one two", "x"]
                assert answer.meta
                assert answer.meta.billed_units
                assert answer.meta.billed_units.input_tokens == 3
                kinds = ["float", "int8"]
                if model == "cohere":
                    both = sdk.embed(model=model, input_type="search_query", texts=["x"], embedding_types=kinds)
                    assert both.embeddings.int8 == [[1, 1, 0]]
                else:
                    with pytest.raises(cohere.BadRequestError, match="`embedding_types`"):
                        sdk.embed(model=model, input_type="search_query", texts=["x"], embedding_types=kinds)

        await world.in_thread(conversation)
