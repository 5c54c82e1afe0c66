"""`on_cancel = "drain"` over real sockets: the client has left, the provider is read on for its figures, the books are closed
once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import (
    BudgetConfig,
    Duration,
    Hedge,
    ModelConfig,
    PipelineConfig,
    PoolConfig,
    Price,
    PriceConfig,
    ProviderConfig,
    RouteConfig,
    SecretRef,
)
from clawproxy.config.schema import Size
from clawproxy.context import Attempt
from clawproxy.hookspecs import hookimpl
from clawproxy.scripted import ScriptedProvider, parse
from clawproxy.stores.base import LedgerRow
from clawproxy.stores.sqlite import SqliteStore
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import chat, chat_body
from tests.e2e.test_claw_socket import socket, text

MODELS = {
    "test-model": ModelConfig((RouteConfig("drained", "scripted-1"),), price=PriceConfig(Price(1_000_000), Price(2_000_000)))
}
BUDGETS = {"day": BudgetConfig("global", "$1", "day")}
REST = "say one two three; pause 60ms; say four; usage 11 7; end"


class Drained:
    """A gateway whose provider is drained; the provider outlives it."""

    def __init__(self, folder: Path, time: float = 30.0, size: int = 1024 * 1024, **changes: Any) -> None:
        self._folder = folder
        self._time = time
        self._size = size
        self._changes = changes

    async def __aenter__(self) -> Running:
        self._stack = contextlib.AsyncExitStack()
        provider = await self._stack.enter_async_context(ScriptedProvider.running())
        self.provider = provider
        drained = ProviderConfig(
            base_url=provider.base_url,
            api_key=SecretRef("", PROVIDER_KEY),
            pool=PoolConfig(max=8),
            on_cancel="drain",
            drain_time=Duration(self._time),
            drain_bytes=Size(self._size),
        )
        running = await self._stack.enter_async_context(
            gateway(self._folder, providers={"drained": drained}, models=MODELS, budgets=BUDGETS, **self._changes)
        )
        running.provider = provider
        return running

    async def __aexit__(self, *args: Any) -> None:
        await self._stack.__aexit__(*args)


async def leave(running: Running, script: str, *, heard: bytes = b"one") -> None:
    """Ask over HTTP, and go once `heard` came."""
    body = chat_body(f"script: {script}", stream=True, max_tokens=100)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
    async with await running.connect() as stream:
        await stream.send_all(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        data = b""
        with trio.fail_after(10):
            while heard not in data:
                data += await stream.receive_some()


async def settled(running: Running) -> LedgerRow:
    store = running.server.gateway.app.store
    with trio.fail_after(10):
        await running.at_rest()
        while await store.holding():
            await trio.sleep(0.002)
    [row] = await store.rows()
    return row


async def test_the_figures_are_the_providers(tmp_path: Path) -> None:
    async with Drained(tmp_path) as running:
        await leave(running, REST)
        with trio.fail_after(5):
            while running.server.gateway.in_flight:
                await trio.sleep(0.002)
        assert await running.server.gateway.app.store.holding() == 1, "what it may use is held until it is known"
        row = await settled(running)
        assert row.closed is not None
        figures = (row.closed.outcome, row.closed.source, row.closed.input_tokens, row.closed.output_tokens)
        assert figures == ("client_gone", "measured", 11, 7)
        assert row.closed.cost_nano == 11 * 1000 + 7 * 2000
        [total] = await running.server.gateway.app.store.totals()
        assert (total.used, total.overrun) == (row.closed.cost_nano, 0)
        [entry] = running.provider.log.entries
        assert entry.state == "finished"
        pool = running.server.gateway.current.upstream.statistics()["drained"]  # type: ignore[attr-defined]
        assert (pool.active, pool.idle) == (0, 1), "a whole answer gives its connection back"


class Clumsy:
    """Its part of settling fails, for each attempt."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    @contextlib.asynccontextmanager
    async def open_attempt(self, attempt: Attempt) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if attempt.rest is not None:
                attempt.rest.then(self.settle)

    async def settle(self) -> None:
        self.asked += 1
        raise ValueError("what was said")


@pytest.mark.parametrize("first", [True, False])
async def test_a_plugin_that_fails_at_it_ends_nothing_else(tmp_path: Path, first: bool) -> None:
    order = PipelineConfig().order
    clumsy = Clumsy()
    pipeline = PipelineConfig(("clumsy", *order) if first else (*order, "clumsy"))
    async with Drained(tmp_path, plugins={"clumsy": clumsy}, pipeline=pipeline) as running:
        await leave(running, REST)
        row = await settled(running)
        assert row.closed is not None
        assert (row.closed.source, row.closed.output_tokens) == ("measured", 7)
        assert clumsy.asked == 1
        async with await running.connect() as connection:
            assert (await chat(connection, "hello", key=KEY)).status == 200


async def test_a_receipt_says_that_more_may_come(tmp_path: Path) -> None:
    async with Drained(tmp_path) as running, socket(running) as ws:
        await ws.ask(f"script: {REST}")
        while "three" not in text(await ws.hear("llm_token")):
            pass
        await ws.say({"type": "llm_cancel", "id": "a"})
        heard = await ws.end()
        assert [frame["code"] for frame in heard if frame["type"] == "llm_notice"] == ["draining"]
        receipt = heard[-1]["receipt"]
        assert receipt["draining"]
        assert receipt["upstream_closed_at"] is None
        billed = receipt["billed"]
        assert (billed["source"], billed["output_tokens"]) == ("estimated", 4)
        row = await settled(running)
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source, row.closed.output_tokens) == ("cancelled", "measured", 7)


@pytest.mark.parametrize(
    ("time", "size", "rest"), [(0.03, 1000, "stall"), (30.0, 20, "tokens 999 every 1ms")], ids=["time", "bytes"]
)
async def test_it_is_bounded(tmp_path: Path, time: float, size: int, rest: str) -> None:
    """Then it is estimated by all that came, whoever heard it."""
    async with Drained(tmp_path, time, size) as running:
        await leave(running, f"say one two three; pause 20ms; say four; {rest}")
        row = await settled(running)
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source) == ("client_gone", "estimated")
        assert 5 <= (row.closed.output_tokens or 0) <= 40, "eighteen bytes, and in the second case a few more than twenty"
        with trio.fail_after(5):
            await running.provider.log.wait_for(lambda log: not log.in_progress)
        assert running.provider.log.entries[0].state == "closed_by_peer"


async def test_a_provider_that_breaks_off_meanwhile(tmp_path: Path) -> None:
    async with Drained(tmp_path) as running:
        await leave(running, "say one two three; pause 30ms; cut")
        row = await settled(running)
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source, row.closed.output_tokens) == ("client_gone", "estimated", 4)


async def test_the_end_of_the_service_is_the_end_of_it(tmp_path: Path) -> None:
    with trio.fail_after(8):
        async with Drained(tmp_path) as running:
            await leave(running, "say one two three; stall")
            with trio.fail_after(5):
                while running.server.gateway.in_flight:
                    await trio.sleep(0.002)
    store = SqliteStore.open(tmp_path / "state", "next")
    [row] = await store.rows()
    await store.aclose()
    assert row.closed is not None
    assert (row.closed.outcome, row.closed.source) == ("client_gone", "estimated"), "closed at the end, and no orphan"


async def test_what_is_not_the_clients_doing_is_not_read_on(tmp_path: Path) -> None:
    async with Drained(tmp_path) as running:
        await leave(running, "say one two; cut", heard=b"provider_error.cut")
        row = await settled(running)
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source) == ("provider_error.cut", "estimated")


async def test_whoever_lost_a_race_is_not_read_on(tmp_path: Path) -> None:
    """Its client hears the winner. It is cancelled at once, whatever its provider bills for that."""
    async with ScriptedProvider.running() as provider:
        provider.queue.extend([parse("head; stall"), parse("say hello; end")])
        providers = {
            name: ProviderConfig(base_url=provider.base_url, api_key=SecretRef("", PROVIDER_KEY), on_cancel="drain")
            for name in ("one", "two")
        }
        routes = (RouteConfig("one", "scripted-1"), RouteConfig("two", "scripted-1"))
        models = {"test-model": ModelConfig(routes, hedge=Hedge(Duration(0.01)))}
        sections = {"router": {"hedge_share": 1.0}}
        async with gateway(tmp_path, providers=providers, models=models, sections=sections) as running:
            with trio.fail_after(10):
                async with await running.connect() as connection:
                    assert (await chat(connection, "hello", key=KEY)).status == 200
                await running.at_rest()
                await provider.log.wait_for(lambda log: not log.in_progress)
            assert sorted(entry.state for entry in provider.log.entries) == ["closed_by_peer", "finished"]
            rows = await running.server.gateway.app.store.rows()
            assert sorted(row.closed.outcome for row in rows if row.closed) == ["cancelled", "complete"]
