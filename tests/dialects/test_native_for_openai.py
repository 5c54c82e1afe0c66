"""Clients that speak OpenAI's format (and the WebSocket's) to providers that speak Ollama's and Cohere's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import open_websocket_url

from tests.dialects.native import Native, native
from tests.e2e.harness import KEY
from tests.e2e.http_client import Reply, chat

MODELS = pytest.mark.parametrize("model", ["ollama", "cohere"])
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


async def ask(world: Native, model: str, prompt: str, **fields: Any) -> Reply:
    with trio.fail_after(5):
        async with await world.running.connect() as connection:
            return await chat(connection, prompt, key=KEY, model=model, **fields)


@MODELS
async def test_a_stream(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:
        script = 'script: reasoning hm; say caf\u00e9 there; tool add {"a":1}; tool add {"a":2}; usage 7 5'
        reply = await ask(world, model, script, stream=True, stream_options={"include_usage": True}, tools=[TOOL], max_tokens=9)
        chunks = [json.loads(data) for data in reply.events() if data != "[DONE]"]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert reply.text() == "caf\u00e9 there"
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "hm"
        calls: dict[int, dict[str, Any]] = {}
        for each in [call for delta in deltas for call in delta.get("tool_calls") or ()]:
            known = calls.setdefault(each["index"], {"id": each.get("id"), "name": each["function"].get("name"), "arguments": ""})
            known["arguments"] += each["function"]["arguments"]
        assert [(call["name"], call["arguments"]) for call in calls.values()] == [("add", '{"a":1}'), ("add", '{"a":2}')]
        assert len({call["id"] for call in calls.values()}) == 2
        assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "tool_calls"
        assert (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["completion_tokens"]) == (7, 5)
        assert list(reply.events())[-1] == "[DONE]"
        [body] = world.bodies()
        assert body.get("options") == {"num_predict": 9} if model == "ollama" else body["max_tokens"] == 9


@MODELS
async def test_a_whole_answer_and_errors(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:
        answer = (await ask(world, model, "script: say a; finish length; usage 7 5")).json()
        assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("a", "length")
        assert answer["usage"]["total_tokens"] == 12
        for script, status, code in (
            ("script: status 429", 429, "rate_limit_exceeded"),
            ("script: status 401", 502, "provider_error.auth"),
            ("script: say a; cut", 502, "provider_error.cut"),
            ("script: say a; bad json", 502, "provider_error.cut"),
            ("script: error boom", 502, "provider_error.server"),
        ):
            reply = await ask(world, model, script)
            assert (reply.status, reply.json()["error"]["code"]) == (status, code), script
        reply = await ask(world, model, "x", tools=[TOOL], parallel_tool_calls=False)
        assert (reply.status, reply.json()["error"]["param"]) == (400, "parallel_tool_calls")
        reply = await ask(world, model, "script: say a; error boom", stream=True)
        assert (reply.text(), reply.whole) == ("a", True)
        assert json.loads(list(reply.events())[-1])["error"]["code"] == "provider_error.server"


@MODELS
async def test_over_the_websocket(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        with trio.fail_after(5):
            async with open_websocket_url(world.running.websocket, extra_headers=headers) as ws:
                assert json.loads(await ws.get_message())["type"] == "auth_ok"
                prompt = "script: say a b c; usage 7 5"
                await ws.send_message(json.dumps({"type": "llm_request", "id": "r", "model": model, "prompt": prompt}))
                while (frame := json.loads(await ws.get_message()))["type"] != "llm_response_end":
                    pass
        assert (frame["outcome"], frame["usage"]["source"]) == ("complete", "measured")
        assert (frame["usage"]["input_tokens"], frame["usage"]["output_tokens"]) == (7, 5)
