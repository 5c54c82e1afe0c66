"""The official Ollama SDK against a running gateway, whatever its providers speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ollama
import pytest
import trio

from clawproxy.config import KeyConfig, SecretRef
from tests.dialects.native import MODELS, native
from tests.e2e.harness import KEY
from tests.e2e.http_client import fetch

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def client(url: str, key: str = KEY) -> ollama.Client:
    return ollama.Client(host=url, headers={"authorization": f"Bearer {key}"})


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("model", MODELS)
async def test_chats(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                script = "script: reasoning hm; say caf\u00e9 \u2028 there; usage 7 5"
                whole = sdk.chat(model=model, messages=user(script))
                assert whole.message.content == "caf\u00e9 \u2028 there"
                assert whole.message.thinking == "hm"
                assert (whole.done, whole.done_reason, whole.prompt_eval_count, whole.eval_count) == (True, "stop", 7, 5)
                assert whole.total_duration
                parts = list(sdk.chat(model=model, messages=user(script), stream=True))
                assert "".join(part.message.content or "" for part in parts) == "caf\u00e9 \u2028 there"
                assert "".join(part.message.thinking or "" for part in parts) == "hm"
                assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
                last = parts[-1]
                assert (last.done_reason, last.prompt_eval_count, last.eval_count) == ("stop", 7, 5)
                assert last.total_duration
                assert last.eval_duration is not None

        await world.in_thread(conversation)
        assert [body["stream"] for body in world.bodies() if "stream" in body][-1] is True


@pytest.mark.parametrize("model", MODELS)
async def test_tools_there_and_back(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                script = 'script: tool add {"a": 1, "b": [true, null]}; tool add {}; usage 3 2'
                parts = list(sdk.chat(model=model, messages=user(script), tools=[TOOL], stream=True))
                calls = [call for part in parts for call in part.message.tool_calls or ()]
                assert [(call.function.name, call.function.arguments) for call in calls] == [
                    ("add", {"a": 1, "b": [True, None]}),
                    ("add", {}),
                ]
                assert parts[-1].done_reason == "stop"
                whole = sdk.chat(model=model, messages=user(script), tools=[TOOL])
                assert whole.message.tool_calls == calls
                messages = [
                    *user("x"),
                    whole.message,
                    {"role": "tool", "tool_name": "add", "content": "2"},
                    {"role": "tool", "tool_name": "add", "content": "0"},
                    *user("script: say done"),
                ]
                assert sdk.chat(model=model, messages=messages, tools=[TOOL]).message.content == "done"

        await world.in_thread(conversation)
        sent = world.bodies()[-1]
        assert sent["tools"][0]["function"]["name"] == "add"
        made = sent["messages"][1]["tool_calls"]
        assert [call["id"] for call in made] == [result["tool_call_id"] for result in sent["messages"][2:4]]
        if model == "ollama":
            assert made[0]["function"]["arguments"] == {"a": 1, "b": [True, None]}
            assert [result["tool_name"] for result in sent["messages"][2:4]] == ["add", "add"]
        else:
            assert made[0]["function"]["arguments"] == '{"a":1,"b":[true,null]}'


@pytest.mark.parametrize("model", MODELS)
async def test_errors(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                said: list[str | None] = []
                with pytest.raises(ollama.ResponseError, match="provider failed"):
                    said.extend(part.message.content for part in sdk.chat(model, user("script: say a; error boom"), stream=True))
                assert said == ["a"]
                with pytest.raises(ollama.ResponseError) as caught:
                    sdk.chat(model=model, messages=user("script: status 429"))
                assert (caught.value.status_code, caught.value.error) == (429, "The provider is limiting requests.")
                with pytest.raises(ollama.ResponseError, match="cut off"):
                    list(sdk.chat(model, user("script: say a; cut"), stream=True))
                with pytest.raises(ollama.ResponseError) as caught:
                    sdk.chat(model="unknown", messages=user("x"))
                assert caught.value.status_code == 404
            with client(world.url, "wrong") as sdk, pytest.raises(ollama.ResponseError) as caught:
                sdk.chat(model=model, messages=user("x"))
            assert (caught.value.status_code, caught.value.error) == (401, "The credential is not accepted.")

        await world.in_thread(conversation)


async def test_what_can_not_be_said_elsewhere_is_named(tmp_path: Path) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                options = {"mirostat": 1, "num_ctx": 4096, "temperature": 0.5}
                assert sdk.chat("ollama", user("script: say ok"), options=options, keep_alive="5m").message.content == "ok"
                with pytest.raises(ollama.ResponseError, match=r"options\.mirostat") as caught:
                    sdk.chat("cohere", user("x"), options=options)
                assert caught.value.status_code == 400

        await world.in_thread(conversation)
        [body] = world.bodies()
        assert body["options"] == {"mirostat": 1, "num_ctx": 4096, "temperature": 0.5}
        assert body["keep_alive"] == "5m"


async def test_generate(tmp_path: Path) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                for model in MODELS:
                    script = "script: reasoning hm; say a b; usage 3 2"
                    whole = sdk.generate(model, script, system="Be brief.")
                    assert (whole.response, whole.thinking, whole.eval_count) == ("a b", "hm", 2)
                    parts = list(sdk.generate(model, script, stream=True))
                    assert "".join(part.response or "" for part in parts) == "a b"
                    assert (parts[-1].done, parts[-1].prompt_eval_count) == (True, 3)
                with pytest.raises(ollama.ResponseError, match="`raw`"):
                    sdk.generate("ollama", "x", raw=True)

        await world.in_thread(conversation)
        assert world.bodies()[0]["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("model", ["ollama", "cohere"])
async def test_embeddings(tmp_path: Path, model: str) -> None:
    async with native(tmp_path) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                answer = sdk.embed(model=model, input=["one two", "x"])
                assert answer.embeddings == [[7.0, 2.0, 0.5], [1.0, 1.0, 0.5]]
                assert answer.prompt_eval_count == 3
                assert sdk.embed(model=model, input="x").embeddings == [[1.0, 1.0, 0.5]]
                assert sdk.embeddings(model=model, prompt="x").embedding == [1.0, 1.0, 0.5]

        await world.in_thread(conversation)


async def test_pages(tmp_path: Path) -> None:
    keys = {"test": KeyConfig(SecretRef("", KEY), models=("o*",))}
    async with native(tmp_path, keys=keys) as world:

        def conversation() -> None:
            with client(world.url) as sdk:
                assert [model.model for model in sdk.list().models] == ["ollama", "openai"]
                shown = sdk.show("ollama").modelinfo
                assert shown
                assert shown["gateway.context_length"] == 8192
                with pytest.raises(ollama.ResponseError) as caught:
                    sdk.show("cohere")
                assert caught.value.status_code == 404
            with client(world.url, "wrong") as sdk, pytest.raises(ollama.ResponseError) as caught:
                sdk.list()
            assert (caught.value.status_code, caught.value.error) == (401, "The credential is not accepted.")

        await world.in_thread(conversation)
        for method, path, body, status, words in (
            ("GET", "/api/version", None, 200, '{"version":'),
            ("POST", "/api/show", b"[]", 400, '{"error":"`model` must be a string."}'),
            ("GET", "/api/pull", None, 404, '{"error":"This endpoint is not served here."}'),
            ("POST", "/api/tags", b"{}", 405, '{"error":"This method is not allowed here."}'),
            ("GET", "/v2/chat", None, 405, '"message":"This method is not allowed here."}'),
        ):
            with trio.fail_after(5):
                async with await world.running.connect() as connection:  # one each: an error may close it
                    reply = await fetch(connection, method, path, headers={"authorization": f"Bearer {KEY}"}, body=body)
            assert reply.status == status, path
            assert words in reply.body.decode(), path
            if path == "/api/tags":
                assert reply.headers["allow"] == "GET, HEAD, OPTIONS"
