"""Routing over real sockets: what clients are told of it, in headers and frames, and what is written down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from clawproxy.config import KeyConfig, ModelConfig, RouteConfig, SecretRef
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.plugins.routing import price

EUROPE = "sk-europe-0123456789abcdefghijklmn"
WAYS = (
    RouteConfig("scripted", "dear", 1000, price=price("5", "5"), quality=3, region="us", capabilities=("tools", "own")),
    RouteConfig("scripted", "cheap", price=price("1", "1"), quality=1, region="eu"),
)


@asynccontextmanager
async def routing(tmp_path: Path) -> AsyncIterator[Running]:
    models = {
        "plain": ModelConfig(WAYS),
        "cheapest": ModelConfig(WAYS, "cost"),
        "fastest": ModelConfig(WAYS, "latency"),
        "any": ModelConfig((RouteConfig(model="cheapest"), RouteConfig(model="plain", weight=0)), "weighted"),
    }
    keys = {"test": KeyConfig(SecretRef("", KEY)), "europe": KeyConfig(SecretRef("", EUROPE), tags=("region:eu",))}
    async with gateway(tmp_path, models=models, keys=keys) as running:
        yield running


async def ask(running: Running, model: str, key: str = KEY, **headers: str) -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            named = {f"x-claw-{name}": value for name, value in headers.items()}
            return await chat(connection, "hello", key=key, headers=named, model=model)


async def test_the_route_is_told_in_a_header(tmp_path: Path) -> None:
    async with routing(tmp_path) as running:
        models = ("fastest", "fastest", "plain", "cheapest", "any")
        assert [(await ask(running, model)).headers["x-claw-route"] for model in models] == [
            "scripted/dear; strategy=latency; reason=explore",
            "scripted/cheap; strategy=latency; reason=explore",
            "scripted/dear",
            "scripted/cheap; strategy=cost; reason=cheapest",
            "scripted/cheap; strategy=cost; reason=cheapest",
        ]
        assert "; reason=fastest" in (await ask(running, "fastest")).headers["x-claw-route"]


async def test_a_client_may_ask_for_more_in_headers(tmp_path: Path) -> None:
    async with routing(tmp_path) as running:
        for asked in ({"quality": "2"}, {"capabilities": "own, tools"}):
            reply = await ask(running, "cheapest", **asked)
            assert reply.headers["x-claw-route"].startswith("scripted/dear;"), asked
        refused = await ask(running, "cheapest", quality="best")
        assert (refused.status, json.loads(refused.body)["error"]["param"]) == (400, "x-claw-quality")
        assert (await ask(running, "cheapest", quality="9")).status == 400
        assert (await ask(running, "cheapest", EUROPE, quality="2")).status == 503
        assert (await ask(running, "cheapest", EUROPE)).status == 200
        assert (await ask(running, "plain", quality="9")).status == 200, "priority looks at nothing"


async def test_frames_log_metric_and_audit_say_why(tmp_path: Path) -> None:
    async with routing(tmp_path) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                frames = Frames(connection, await open_raw(connection, KEY))
                frame: dict[str, Any] = {"type": "llm_request", "id": "r", "model": "cheapest", "prompt": "hello"}
                frame["metadata"] = {"region": "us", "quality": 1}
                await connection.send_all(masked(json.dumps(frame).encode()))
                while (start := await frames.next())["type"] != "llm_response_start":
                    pass
                while (await frames.next())["type"] != "llm_response_end":
                    pass
        assert start["route"] == {"strategy": "cost", "reason": "cheapest", "attempt": 1}
        with trio.fail_after(5):
            await running.at_rest()
            async with await trio.open_tcp_stream("127.0.0.1", int(running.admin.rsplit(":", 1)[1])) as connection:
                metrics = await fetch(connection, "GET", "/metrics", headers={"host": "127.0.0.1"})
        assert b'clawproxy_route_decisions_total{strategy="cost",why="cheapest"} 1.0' in metrics.body
        [file] = (tmp_path / "state" / "audit").glob("*.jsonl")
        for _ in range(100):
            if b"considered" in (text := file.read_bytes()):
                break
            await trio.sleep(0.01)
        considered = json.loads(text.splitlines()[-1])["considered"]
        assert [(each["model"], each["why"]) for each in considered] == [("cheap", "cheapest"), ("dear", "")]
        assert 0 < considered[0]["score"] < considered[1]["score"]
