"""Two providers raced over real sockets: who answers, what the slow one sees, what is written down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from clawproxy.config import Duration, Hedge, ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import chat, fetch
from tests.e2e.test_claw_socket import socket


@attrs.define
class Raced:
    running: Running
    first: ScriptedProvider
    second: ScriptedProvider


@asynccontextmanager
async def raced(tmp_path: Path, first: str, second: str, after: float = 0.02) -> AsyncIterator[Raced]:
    async with ScriptedProvider.running(first) as one, ScriptedProvider.running(second) as other:
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            "one": ProviderConfig(base_url=one.base_url, api_key=key),
            "two": ProviderConfig(base_url=other.base_url, api_key=key),
        }
        model = ModelConfig((RouteConfig("one", "m-1"), RouteConfig("two", "m-2")), hedge=Hedge(Duration(after)))
        async with gateway(tmp_path, providers=providers, models={"test-model": model}) as running:
            yield Raced(running, one, other)


async def books(running: Running) -> list[tuple[str, str, str, str]]:
    with trio.fail_after(3):
        await running.at_rest()
    await running.server.gateway.app.store.flush()
    rows = sorted(await running.server.gateway.app.store.rows(), key=lambda row: row.opened.number)
    return [(r.opened.provider, r.opened.reason, r.closed.outcome, r.closed.source) for r in rows if r.closed is not None]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("slow", ["stall", "head; stall"], ids=["no head", "no content"])
async def test_the_hedge_answers(tmp_path: Path, slow: str, stream: bool) -> None:
    async with raced(tmp_path, slow, "say from two") as race:
        async with await race.running.connect() as connection:
            with trio.fail_after(3):
                reply = await chat(connection, "Hi", key=KEY, stream=stream)
        assert reply.text() == "from two" if stream else reply.json()["choices"][0]["message"]["content"] == "from two"
        assert reply.headers["x-claw-route"] == "two/m-2"
        [entry] = race.first.log.entries
        with trio.fail_after(3):
            while entry.state == "in_progress":
                await trio.sleep(0.002)
        assert entry.state == "closed_by_peer", "its connection was closed"
        assert await books(race.running) == [
            ("one", "first", "cancelled", "estimated"),
            ("two", "hedge", "complete", "measured"),
        ]
        assert race.first.log.entries[0].request_id != race.second.log.entries[0].request_id
        metrics = await admin(race.running)
        assert b'clawproxy_routes_total{provider="two",reason="hedge"} 1' in metrics
        assert b'clawproxy_hedges_total{result="begun"} 1' in metrics


async def admin(running: Running) -> bytes:
    host, port = running.admin.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as connection:
        return (await fetch(connection, "GET", "/metrics", headers={"host": f"{host}:{port}"})).body


async def test_the_start_of_an_answer_names_the_winner(tmp_path: Path) -> None:
    async with raced(tmp_path, "stall", "say from two") as race, socket(race.running) as own:
        await own.ask("Hi")
        start = next(frame for frame in await own.end() if frame["type"] == "llm_response_start")
        assert (start["provider"], start["route"]["reason"], start["route"]["attempt"]) == ("two", "hedge", 2)


async def test_the_first_may_win_after_all(tmp_path: Path) -> None:
    async with raced(tmp_path, "pause 45ms; say from one", "stall") as race, socket(race.running) as own:
        await own.ask("Hi")
        frames = await own.end()
        start = next(frame for frame in frames if frame["type"] == "llm_response_start")
        assert (start["provider"], start["route"]["attempt"]) == ("one", 1)
        assert [row[:3] for row in await books(race.running)] == [("one", "first", "complete"), ("two", "hedge", "cancelled")]
