"""The sweep of `test_sweep_sockets` over pairs of formats, streamed and whole, and over Responses' WebSocket mode."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from clawproxy.config import ModelConfig, PipelineConfig, RouteConfig
from tests.e2e import test_sweep_sockets as sockets
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import fetch
from tests.e2e.test_sweep_sockets import LEFT, ORDER, Client, Counting
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import BASE, PROVIDERS

pytestmark = pytest.mark.slow

PAIRS = [
    ("anthropic", "anthropic", True),
    ("anthropic", "gemini", True),
    ("gemini", "openai_responses", True),
    ("openai_responses", "cohere", True),
    ("cohere", "ollama", True),
    ("ollama", "anthropic", True),
    ("openai_responses", "openai_responses", False),
    ("gemini", "cohere", False),
]
Scenario = Callable[[Client], Awaitable[None]]


@asynccontextmanager
async def every_dialect(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    models = {f"via-{name}": ModelConfig((RouteConfig(name, "scripted-1"),)) for name in PROVIDERS}
    models["test-model"] = ModelConfig((RouteConfig("openai_chat", "scripted-1"),))
    pipeline = PipelineConfig(("counting", *ORDER))
    async with gateway(tmp_path, plugins={"counting": counting}, pipeline=pipeline, models=models, dialects=BASE) as running:
        yield running


def pair(client_format: str, provider: str, stream: bool) -> Scenario:
    async def run(client: Client) -> None:
        script = 'script: reasoning Hm.; say one; tool f {"a":1}; say two' if stream else "script: pause 2ms; say all of it"
        question = asking.HTTP[client_format](Ask(script, stream=stream), f"via-{provider}")
        connection = await client.connect()
        headers = {"authorization": f"Bearer {KEY}", **question.headers}
        with contextlib.suppress(*LEFT):
            await fetch(connection, "POST", question.path, headers=headers, body=question.body)

    return run


async def responses_websocket(client: Client) -> None:
    """Two lanes at once, one of them with a second response behind the first."""
    connection = await client.connect()
    with contextlib.suppress(*LEFT):
        frames = Frames(connection, await open_raw(connection, KEY, path="/v1/responses"))
        for lane in ("a", "b", "a"):
            create = {"type": "response.create", "model": "via-anthropic", "input": "script: tokens 3", "stream_id": lane}
            await connection.send_all(masked(json.dumps({**create, "store": False}).encode()))
        ends = 0
        while ends < 3:
            kind = (await frames.next())["type"]
            ends += kind in {"response.completed", "response.failed", "response.incomplete", "error"}


@pytest.mark.parametrize("end", ["client_gone", "RST"])
@pytest.mark.parametrize(("client", "provider", "stream"), PAIRS)
async def test_pairs_of_formats(tmp_path: Path, client: str, provider: str, stream: bool, end: str) -> None:
    scenario = pair(client, provider, stream)
    await sockets.test_the_invariants_hold_wherever_it_ends(tmp_path, f"{client}-{provider}", every_dialect, scenario, 1, end)


@pytest.mark.parametrize("end", ["client_gone", "FIN", "RST"])
async def test_the_websocket_mode_of_responses(tmp_path: Path, end: str) -> None:
    await trio.lowlevel.checkpoint()
    await sockets.test_the_invariants_hold_wherever_it_ends(tmp_path, "responses", every_dialect, responses_websocket, 3, end)
