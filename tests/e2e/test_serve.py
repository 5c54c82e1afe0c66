"""`clawproxy serve --config FILE --ready-file F`: the sample client unchanged in Node and Chromium, the SDK, signals."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import openai
import pytest
import trio

from clawproxy.scripted import ScriptedProvider, parse
from tests.e2e.http_client import chat
from tests.e2e.process import Served, served, settings
from tests.transport_websocket.test_node_and_browser import CHROMIUM, NODE, SAMPLE, browse, page, run, websocket_flags

CLIENT_KEY = "sk-client-canary-0918273645abcdef"
PROVIDER_KEY = "sk-provider-canary-5a6b7c8d9e0f1122"
SECRETS = {"TEST_CLIENT_KEY": CLIENT_KEY, "TEST_PROVIDER_KEY": PROVIDER_KEY}


@attrs.define
class World:
    served: Served
    provider: ScriptedProvider


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        ScriptedProvider.running() as provider,
        served(tmp_path, settings(tmp_path, provider.base_url), **SECRETS) as running,
    ):
        yield World(running, provider)


async def test_it_says_where_it_listens_and_stops_when_told(world: World) -> None:
    assert world.served.stdout.read_text() == f"clawproxy listening on {world.served.url}\n"
    assert world.served.ready.keys() == {"listen", "admin", "pid"}
    assert world.served.ready["pid"] == world.served.process.pid
    async with await trio.open_tcp_stream(*world.served.address) as stream:
        assert (await chat(stream, "hello", key=CLIENT_KEY, model="gpt-4-turbo")).status == 200
    assert await world.served.stop() == 0
    events = [line["event"] for line in world.served.log()]
    assert events[0] == "server.listening"
    assert "exchange.closed" in events
    assert events[-1] == "server.stopped"
    text = world.served.stderr.read_text() + world.served.stdout.read_text()
    assert not [secret for secret in SECRETS.values() if secret[4:16] in text]


async def test_sigterm_waits_for_a_stream_and_a_second_one_does_not(world: World) -> None:
    async with trio.open_nursery() as nursery:
        replies: list[Any] = []

        async def ask() -> None:
            async with await trio.open_tcp_stream(*world.served.address) as stream:
                replies.append(await chat(stream, "script: say one; stall", key=CLIENT_KEY, model="gpt-4-turbo", stream=True))

        nursery.start_soon(ask)
        with trio.fail_after(5):
            await world.provider.log.wait_for(lambda log: log.counts["in_progress"] == 1)
        world.served.process.send_signal(signal.SIGTERM)
        await trio.sleep(0.3)
        assert world.served.process.returncode is None, "it waits for the stream"
        began = trio.current_time()
        assert await world.served.stop() == 0
        assert trio.current_time() - began < 3
    assert json.loads(list(replies[0].events())[-1])["error"]["code"] == "shutting_down"


async def test_kill_9_loses_no_id_the_provider_saw(world: World, tmp_path: Path) -> None:
    """First form: one kill in the middle of streams. The ledger, read by the next start, has every id."""
    async with trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            async with await trio.open_tcp_stream(*world.served.address) as stream:
                script = f"{number}\nscript: tokens 100 every 10ms"
                await chat(stream, script, key=CLIENT_KEY, model="gpt-4-turbo", stream=True)

        for number in range(20):
            nursery.start_soon(ask, number)
        with trio.fail_after(5):
            await world.provider.log.wait_for(lambda log: log.counts["in_progress"] == 20)
        world.served.process.kill()
        await world.served.process.wait()
    seen = {entry.request_id for entry in world.provider.log.entries}
    assert len(seen) == 20
    from clawproxy.stores.sqlite import SqliteStore

    store = SqliteStore.open_tool(tmp_path / "state")
    rows = await store.rows()
    await store.aclose()
    assert seen <= {row.opened.id for row in rows}


def _sdk(url: str) -> list[str]:
    """What the official SDK makes of us: streaming and not, tools, errors as it types them."""
    facts: list[str] = []
    with openai.OpenAI(api_key=CLIENT_KEY, base_url=f"{url}/v1", max_retries=0) as client:
        whole = client.chat.completions.create(model="gpt-4-turbo", messages=[{"role": "user", "content": "hello"}])
        assert whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0
        facts.append("whole")

        prompt: Any = [{"role": "user", "content": "script: tokens 30 every 1ms; usage 7 30"}]
        chunks = list(
            client.chat.completions.create(
                model="gpt-4-turbo", messages=prompt, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.split() == [f"tok{number}" for number in range(30)]
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 30)
        facts.append("stream")

        chunks = list(client.chat.completions.create(model="gpt-4-turbo", messages=prompt, stream=True))
        assert not [chunk for chunk in chunks if chunk.usage is not None], "usage only where it was asked for"
        facts.append("no usage")

        tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        ask: Any = [{"role": "user", "content": 'script: tool weather {"city": "Kyiv"}; finish tool_calls'}]
        called = client.chat.completions.create(model="gpt-4-turbo", messages=ask, tools=tools)
        [call] = called.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Kyiv"})
        assert called.choices[0].finish_reason == "tool_calls"
        parts = [
            delta.function.arguments or ""
            for chunk in client.chat.completions.create(model="gpt-4-turbo", messages=ask, tools=tools, stream=True)
            for choice in chunk.choices
            for delta in choice.delta.tool_calls or []
            if delta.function is not None
        ]
        assert json.loads("".join(parts)) == {"city": "Kyiv"}
        result: Any = [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        assert client.chat.completions.create(model="gpt-4-turbo", messages=result, tools=tools).choices
        facts.append("tools")

        cut: Any = [{"role": "user", "content": "script: say one; cut"}]
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="gpt-4-turbo", messages=cut, stream=True))
        for script, error in [
            ("status 500", openai.InternalServerError),
            ("status 401", openai.InternalServerError),
            ("status 429 retry-after 2", openai.RateLimitError),  # last: from then on the credential rests
        ]:
            bad: Any = [{"role": "user", "content": f"script: {script}"}]
            with pytest.raises(error) as caught:
                client.chat.completions.create(model="gpt-4-turbo", messages=bad)
            assert caught.value.request_id
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="no-such-model", messages=prompt)
        assert missing.value.code == "model_not_found"
        facts.append("errors")
        assert [model.id for model in client.models.list()] == ["gpt-4-turbo"]
    with openai.OpenAI(api_key="wrong", base_url=f"{url}/openai/v1", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        facts.append("auth")
    return facts


async def test_the_official_openai_sdk(world: World) -> None:
    with trio.fail_after(30):
        facts = await trio.to_thread.run_sync(_sdk, world.served.url)
    assert facts == ["whole", "stream", "no usage", "tools", "errors", "auth"]
    bodies = [entry.body for entry in world.provider.log.entries]
    assert {body["model"] for body in bodies} == {"gpt-4-turbo-upstream"}
    assert all(body["stream_options"]["include_usage"] for body in bodies if body.get("stream"))


@pytest.mark.node
@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
async def test_the_sample_client_in_node(world: World) -> None:
    assert NODE is not None
    world.provider.default = parse("say Hello, wörld 😀")
    url = world.served.url.replace("http", "ws", 1) + "/websocket"
    script = f"{SAMPLE}\nsample('{url}', '{CLIENT_KEY}', (text) => console.log(text));"
    flags = await websocket_flags(NODE)
    with trio.fail_after(30):
        out = await run(NODE, *flags, "-e", script)
    assert out.decode().strip().startswith("Hello, wörld 😀|400 ")
    assert out.decode().strip().endswith("|1000 clean")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
async def test_the_sample_client_in_chromium(tmp_path: Path) -> None:
    """In a page of an origin that is listed."""
    async with ScriptedProvider.running("say Hello, wörld 😀") as provider, page("") as origin_holder:
        extra = f'origins = ["{origin_holder.origin}"]\n'
        config = settings(tmp_path, provider.base_url, extra=extra)
        async with served(tmp_path, config, **SECRETS) as running, trio.open_nursery() as nursery:
            url = running.url.replace("http", "ws", 1) + "/websocket"
            report = "(text) => fetch('/', { method: 'POST', body: text + '|END' })"
            script = f"{SAMPLE}\nsample('{url}', '{CLIENT_KEY}', {report});"
            origin_holder.body = f"<!doctype html><meta charset=utf-8><body><script>{script}</script>"
            nursery.start_soon(browse, f"{origin_holder.origin}/", tmp_path / "profile")
            with trio.fail_after(60):
                while origin_holder.report is None:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert origin_holder.report.startswith("Hello, wörld 😀|400 ")
    assert origin_holder.report.endswith("|1000 clean")
