"""A cut answer that goes on, as SDKs and the Claw WebSocket see it, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import openai
import pytest
import trio
from attrs import evolve

from clawproxy.clocks import Deadlines
from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.continuing import GO_ON
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import chat, fetch
from tests.e2e.test_claw_socket import socket

T = TypeVar("T")
PAIRS = pytest.mark.parametrize(
    "dialects",
    [(one, other) for one in ("openai_chat", "anthropic") for other in ("openai_chat", "anthropic")],
    ids="-then-".join,
)
HALVES = "usage 7 2; say Once upon; {}", 'say " a time."; usage 9 3'
PATHS = {"anthropic": "", "gemini": "/v1beta"}
PROMPT: Any = [{"role": "user", "content": "A story"}]


@asynccontextmanager
async def setup(tmp_path: Path, *dialects: str, **changes: Any) -> AsyncIterator[Running]:
    """One provider for each dialect; they share a queue of scripts."""
    names = dialects or ("openai_chat", "openai_chat")
    async with ScriptedProvider.running() as provider:
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            f"p{at}": ProviderConfig(name, provider.base_url.removesuffix("/v1") + PATHS.get(name, "/v1"), key)
            for at, name in enumerate(names)
        }
        model = ModelConfig(tuple(RouteConfig(name, "upstream-1") for name in providers), continuation=True)
        async with gateway(tmp_path, providers=providers, models={"test-model": model}, **changes) as running:
            yield evolve(running, provider=provider)


async def in_a_thread(call: Callable[[], T]) -> T:
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(call)


@PAIRS
@pytest.mark.parametrize("fault", ["cut", "reset", "error"])
async def test_openais_sdk(tmp_path: Path, dialects: tuple[str, str], fault: str) -> None:
    if fault == "error":
        error = {
            "type": "error",
            "error": {"type": "api_error" if dialects[0] == "anthropic" else "server_error", "message": "no"},
        }
        begin = "event: error\\n" if dialects[0] == "anthropic" else ""
        data = json.dumps(error).replace('"', '\\"')
        fault = f'raw "{begin}data: {data}\\n\\n"'
    async with setup(tmp_path, *dialects) as running:
        running.provider.will(HALVES[0].format(fault), HALVES[1])

        def read() -> list[Any]:
            with openai.OpenAI(api_key=KEY, base_url=running.url + "/v1", max_retries=0, timeout=10) as sdk:
                options: Any = {"include_usage": True}
                return list(sdk.chat.completions.create(model="test-model", messages=PROMPT, stream=True, stream_options=options))

        chunks = await in_a_thread(read)
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == "Once upon a time."
        assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"], "it begins once"
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
        assert len({chunk.id for chunk in chunks}) == 1
        rows = sorted(await running.server.gateway.app.store.rows(), key=lambda row: row.opened.number)
        assert [(row.opened.reason, row.closed.outcome) for row in rows if row.closed] == [
            ("first", rows[0].closed.outcome if rows[0].closed else ""),
            ("continue", "complete"),
        ]
        usage = chunks[-1].usage
        assert usage is not None
        billed = [row.closed for row in rows if row.closed is not None]
        assert usage.prompt_tokens == sum(row.input_tokens or 0 for row in billed)
        assert usage.completion_tokens == sum(row.output_tokens or 0 for row in billed) > 3
        said = running.provider.log.entries[-1].body["messages"]
        assert [message["role"] for message in said] == ["user", "assistant", "user"]
        assert GO_ON in json.dumps(said[-1])


@PAIRS
async def test_anthropics_sdk(tmp_path: Path, dialects: tuple[str, str]) -> None:
    async with setup(tmp_path, *dialects) as running:
        running.provider.will(HALVES[0].format("cut"), HALVES[1])

        def read() -> tuple[Any, list[Any]]:
            with (
                anthropic.Anthropic(base_url=running.url, api_key=KEY, max_retries=0) as sdk,
                sdk.messages.stream(model="test-model", max_tokens=100, messages=PROMPT) as stream,
            ):
                events = list(stream)
                return stream.get_final_message(), events

        message, events = await in_a_thread(read)
        assert [(block.type, block.text) for block in message.content] == [("text", "Once upon a time.")]
        assert message.stop_reason == "end_turn"
        kinds = [event.type for event in events]
        for once in ("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"):
            assert kinds.count(once) == 1, once
        assert message.usage.output_tokens > 3, "of both halves"


async def test_a_stall_goes_on_too(tmp_path: Path) -> None:
    async with setup(tmp_path, deadlines=Deadlines(stall=0.05)) as running:
        running.provider.will(HALVES[0].format("stall"), HALVES[1])
        async with await running.connect() as stream:
            reply = await chat(stream, "A story", key=KEY, stream=True)
        assert reply.text() == "Once upon a time."
        with trio.fail_after(3):
            await running.at_rest()


async def test_the_seam_is_a_comment_in_a_stream_of_events(tmp_path: Path) -> None:
    async with setup(tmp_path) as running:
        running.provider.will(HALVES[0].format("cut"), HALVES[1])
        async with await running.connect() as stream:
            reply = await chat(stream, "A story", key=KEY, stream=True)
        before, seam, after = reply.body.partition(b": continued attempt=2 provider=p1 at=9\n\n")
        assert seam
        assert b"upon" in before
        assert b"time" not in before
        assert b"time" in after
        assert before.endswith(b"\n\n")


async def test_the_claw_websocket(tmp_path: Path) -> None:
    async with setup(tmp_path) as running, socket(running) as own:
        running.provider.will(HALVES[0].format("cut"), HALVES[1])
        await own.ask("A story")
        frames = await own.end()
        kinds = [frame["type"] for frame in frames]
        assert kinds.count("llm_response_start") == 1
        assert "".join(frame["content"] for frame in frames if frame["type"] == "llm_token") == "Once upon a time."
        seam = kinds.index("llm_notice")
        assert (frames[seam]["code"], frames[seam]["details"]) == ("continued", {"attempt": 2, "provider": "p1", "at": 9})
        assert "".join(frame["content"] for frame in frames[:seam] if frame["type"] == "llm_token") == "Once upon"
        end = frames[-1]
        assert (end["type"], end["outcome"], end["finish_reason"]) == ("llm_response_end", "complete", "stop")
        assert end["usage"]["output_tokens"] > 3
        assert [frame["seq"] for frame in frames] == list(range(len(frames)))


async def test_a_model_that_takes_a_beginning_gets_one(tmp_path: Path) -> None:
    async with ScriptedProvider.running() as provider:
        base, key = provider.base_url, SecretRef("", PROVIDER_KEY)
        providers = {
            "p0": ProviderConfig("openai_chat", base, key),
            "p1": ProviderConfig("anthropic", base.removesuffix("/v1"), key, prefill=True),
        }
        model = ModelConfig(tuple(RouteConfig(name, "upstream-1") for name in providers), continuation=True)
        async with gateway(tmp_path, providers=providers, models={"test-model": model}) as running:
            provider.will(HALVES[0].format("cut"), HALVES[1])
            async with await running.connect() as stream:
                reply = await chat(stream, "A story", key=KEY, stream=True)
            assert reply.text() == "Once upon a time."
            said = provider.log.entries[-1].body["messages"]
            assert [message["role"] for message in said] == ["user", "assistant"]
            assert "Once upon" in json.dumps(said[-1])


@pytest.mark.parametrize(
    "dialects", [("openai_responses", "openai_chat"), ("openai_chat", "openai_responses")], ids="-then-".join
)
async def test_responses_of_openais_sdk(tmp_path: Path, dialects: tuple[str, str]) -> None:
    async with setup(tmp_path, *dialects) as running:
        running.provider.will(HALVES[0].format("cut"), HALVES[1])

        def read() -> list[Any]:
            with openai.OpenAI(api_key=KEY, base_url=running.url + "/v1", max_retries=0, timeout=10) as sdk:
                return list(sdk.responses.create(model="test-model", input="A story", stream=True))

        events = await in_a_thread(read)
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == "Once upon a time."
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == said
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events].count("response.output_item.added") == 1


async def test_a_gemini_client(tmp_path: Path) -> None:
    async with setup(tmp_path, "gemini", "openai_chat") as running:
        running.provider.will(HALVES[0].format("cut"), HALVES[1])
        async with await running.connect() as stream:
            target = "/v1beta/models/test-model:streamGenerateContent?alt=sse"
            body = json.dumps({"contents": [{"role": "user", "parts": [{"text": "A story"}]}]}).encode()
            reply = await fetch(
                stream, "POST", target, body=body, headers={"x-goog-api-key": KEY, "content-type": "application/json"}
            )
        chunks = [json.loads(line.removeprefix("data: ")) for line in reply.body.decode().splitlines() if line]
        assert all("candidates" in chunk for chunk in chunks), chunks
        parts = [part["text"] for chunk in chunks for part in chunk["candidates"][0].get("content", {}).get("parts", ())]
        assert "".join(parts) == "Once upon a time."
        assert b"\n:" not in reply.body, "its SDKs take no comments"
