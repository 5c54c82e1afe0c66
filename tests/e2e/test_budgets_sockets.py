"""Budgets over real sockets, on HTTP and on the Claw WebSocket: each action, soft and hard, the cut in the stream, the reload."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import BudgetConfig, KeyConfig, ModelConfig, Price, PriceConfig, RouteConfig, SecretRef
from clawproxy.stores.base import LedgerRow
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, chat_body
from tests.e2e.test_claw_socket import socket, text
from tests.e2e.test_reload_inside import world

PRICE = PriceConfig(Price(1_000_000), Price(2_000_000))
MODELS = {name: ModelConfig((RouteConfig("scripted", f"{name}-1"),), price=PRICE) for name in ("test-model", "small")}


@asynccontextmanager
async def budgeted(
    tmp_path: Path, budgets: Mapping[str, BudgetConfig] | None = None, queue: float = 10.0, **more: BudgetConfig
) -> AsyncIterator[Running]:
    async with gateway(tmp_path, budgets={**(budgets or {}), **more}, models=MODELS, deadlines=Deadlines(queue=queue)) as running:
        yield running


async def ask(running: Running, prompt: str = "script: say hello", **changes: Any) -> Reply:
    async with await running.connect() as connection:
        with trio.fail_after(10):
            return await chat(connection, prompt, key=KEY, **changes)


async def ask_claw(running: Running, prompt: str = "script: say hello", **changes: Any) -> list[dict[str, Any]]:
    async with socket(running) as ws:
        await ws.ask(prompt, **changes)
        return await ws.end()


async def rows(running: Running) -> list[LedgerRow]:
    await running.at_rest()
    return list(await running.server.gateway.app.store.rows())


async def test_block(tmp_path: Path) -> None:
    async with budgeted(tmp_path, day=BudgetConfig("key:test", "2 requests", "day", soft="100%")) as running:
        assert (await ask(running)).status == 200
        told = await ask(running, stream=True)
        assert told.headers["x-claw-notice"] == "budget_soft_limit"
        refused = await ask(running)
        assert refused.status == 429
        assert refused.headers["x-should-retry"] == "false"
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("budget.exhausted", "rate_limit_error")
        assert b"quota" not in refused.body
        assert b"billing" not in refused.body
        [frame] = await ask_claw(running)
        assert (frame["type"], frame["code"], frame["error"], frame["policy"]) == ("error", 429, "budget.exhausted", "day")
        assert frame["retry_after_ms"] > 0
        assert not frame["retryable"]
        assert len(running.provider.log.entries) == 2


async def test_a_soft_limit_on_the_websocket(tmp_path: Path) -> None:
    async with budgeted(tmp_path, day=BudgetConfig("global", "4 requests", "day", soft="50%")) as running:
        assert [frame["type"] for frame in await ask_claw(running)] == ["llm_response_start", "llm_token", "llm_response_end"]
        [notice] = [frame for frame in await ask_claw(running) if frame["type"] == "llm_notice"]
        assert notice["code"] == "budget_soft_limit"
        assert notice["details"]["used"] == 2
        assert not [frame for frame in await ask_claw(running) if frame["type"] == "llm_notice"]


async def test_fallback(tmp_path: Path) -> None:
    dear = BudgetConfig("model:test-model", "1 requests", "day", action="fallback:small")
    async with budgeted(tmp_path, dear=dear) as running:
        assert (await ask(running)).json()["model"] == "test-model-1"
        other = await ask(running)
        assert other.status == 200
        assert other.headers["x-claw-notice"] == "fallback"
        assert other.headers["x-claw-route"].startswith("scripted/small-1")
        start, notice, *_ = sorted(await ask_claw(running), key=lambda frame: frame["type"] != "llm_response_start")
        assert start["model"] == "small-1"
        assert (notice["code"], notice["details"]["model"]) == ("fallback", "small")
        assert [entry.model for entry in running.provider.log.entries] == ["test-model-1", "small-1", "small-1"]


async def test_throttle(tmp_path: Path) -> None:
    async with budgeted(tmp_path, one=BudgetConfig("global", "1 concurrent", action="throttle")) as running:
        replies: list[Reply] = []

        async def one() -> None:
            replies.append(await ask(running, "script: pause 20ms; say hello"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
            nursery.start_soon(ask_claw, running)
        assert [reply.status for reply in replies] == [200] * 4
        spans = sorted((entry.received_at, entry.closed_at or 0.0) for entry in running.provider.log.entries)
        assert all(ended <= began + 0.002 for (_, ended), (began, _) in pairwise(spans))


async def test_throttled_too_long(tmp_path: Path) -> None:
    async with budgeted(tmp_path, queue=0.05, one=BudgetConfig("global", "1 concurrent", action="throttle")) as running:
        async with socket(running) as ws:
            await ws.ask("script: say a; stall")
            await ws.hear("llm_token")
            late = await ask(running)
            assert late.status == 503
            assert late.json()["error"]["code"] == "timeout.queue"
            assert late.headers["retry-after"] == "1"
            [frame] = await ask_claw(running)
            assert frame["error"] == "timeout.queue"
            await ws.say({"type": "llm_cancel", "id": "a"})
            await ws.end()
        assert (await ask(running)).status == 200


async def test_notify(tmp_path: Path) -> None:
    async with budgeted(tmp_path, seen=BudgetConfig("global", "1 requests", "day", action="notify")) as running:
        assert "x-claw-notice" not in (await ask(running)).headers
        assert (await ask(running)).headers["x-claw-notice"] == "budget_limit"
        assert [frame["type"] for frame in await ask_claw(running)][-1] == "llm_response_end"


async def test_a_stream_is_cut_at_the_edge(tmp_path: Path) -> None:
    prompt = "script: pace 2ms; tokens 10000"
    async with budgeted(tmp_path, day=BudgetConfig("global", "60 output_tokens", "day")) as running:
        reply = await ask(running, prompt, stream=True, max_tokens=1000, stream_options={"include_usage": True})
        assert reply.status == 200
        assert reply.whole
        assert 50 < len(reply.text()) <= 60
        events = list(reply.events())
        assert events[-1] == "[DONE]"
        assert '"finish_reason":"length"' in reply.body.decode().replace(" ", "")
        [entry] = running.provider.log.entries
        assert entry.body["max_tokens"] == 60
        [row] = await rows(running)
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source) == ("truncated", "estimated")
        assert 0 < (row.closed.output_tokens or 0) <= 20
        assert entry.state == "closed_by_peer"
        assert entry.closed_at is not None
        assert row.closed.closed - 0.001 < entry.closed_at < row.closed.closed + 0.02

        frames = await ask_claw(running, prompt, parameters={"max_tokens": 1000})
        end = frames[-1]
        assert (end["outcome"], end["finish_reason"]) == ("truncated", "budget")
        assert [frame["code"] for frame in frames if frame["type"] == "llm_notice"] == ["budget_capped", "budget_cut"]
        assert 30 < len(text(frames)) <= 60 - (row.closed.output_tokens or 0)


async def test_a_provider_that_sends_more_than_it_was_asked_for_at_once(tmp_path: Path) -> None:
    """B-08: charged is what was held, the rest is an overrun."""
    async with budgeted(tmp_path, day=BudgetConfig("global", "50 output_tokens", "day")) as running:
        reply = await ask(running, f"script: say* {'x' * 300}; usage 5 300; end", max_tokens=50)
        assert reply.status == 200
        choice = reply.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("x" * 50, "length")
        [row] = await rows(running)
        assert row.closed is not None
        assert row.closed.output_tokens == 300
        [total] = await running.server.gateway.app.store.totals()
        assert (total.used, total.overrun) == (50, 250)
        assert (await ask(running)).status == 429


async def test_a_barrier(tmp_path: Path) -> None:
    """B-01. Ten requests' room in four accounts at once, and two hundred requests."""
    budgets = {
        "key": BudgetConfig("key:test", "10 requests", "day"),
        "model": BudgetConfig("model:*", f"{10 * 20} output_tokens", "hour"),
        "all": BudgetConfig("global", f"${10 * (1000 * 44 + 2000 * 20 + 1) / 1e9:.9f}", "month"),
        "provider": BudgetConfig("provider:scripted", f"{10 * 64} tokens", "total"),
    }
    prompt = "script: say hello; pause 300ms; end"
    assert len(prompt) + 8 <= 44
    async with budgeted(tmp_path, budgets) as running:
        statuses: list[int] = []

        async def one() -> None:
            reply = await ask(running, prompt.ljust(36), max_tokens=20)
            statuses.append(reply.status)

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        assert sorted(statuses) == [200] * 10 + [429] * 190
        assert len(running.provider.log.entries) == 10
        await running.at_rest()
        assert await running.server.gateway.app.store.holding() == 0


async def test_disconnects_at_random_bytes(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with budgeted(tmp_path, day=BudgetConfig("global", "100000 tokens", "day")) as running:

        async def leave(number: int) -> None:
            stream = await running.connect()
            body = chat_body(f"number {number}\nscript: pace 1ms; tokens 60", stream=True, max_tokens=500)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
            await stream.send_all(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            left = chance.randrange(0, 8000)
            with trio.fail_after(10):
                while left > 0 and (data := await stream.receive_some(min(left, 512))):
                    left -= len(data)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(leave, number)
        with trio.fail_after(5):
            while running.provider.log.counts["in_progress"]:
                await trio.sleep(0.002)
        store = running.server.gateway.app.store
        known = {row.opened.id: row for row in await rows(running)}
        assert await store.holding() == 0
        charged = 0
        for entry in running.provider.log.entries:
            row = known[entry.header("x-request-id") or ""]
            assert row.closed is not None
            tokens = row.closed.output_tokens or 0
            charged += tokens + (row.closed.input_tokens or 0)
            if row.closed.source == "estimated":
                # ` tokN` has 5 or 6 bytes and counts as a token there; what is on its way when the client leaves is lost
                sent = max(0, entry.events_sent - 1)
                assert tokens <= sent * 6 / 4 + 1
                assert entry.state != "finished" or tokens >= sent - 20
            assert tokens > 0 or entry.events_sent < 30
        [total] = await store.totals()
        assert (total.used, total.overrun) == (charged, 0)


async def test_a_cancel_has_a_receipt(tmp_path: Path) -> None:
    async with budgeted(tmp_path, day=BudgetConfig("global", "$1", "day")) as running, socket(running) as ws:
        prompt = "script: say one two three; stall"
        await ws.ask(prompt)
        while text(heard := await ws.hear("llm_token")) and "three" not in heard[-1]["content"]:
            pass
        await ws.say({"type": "llm_cancel", "id": "a"})
        [end] = await ws.end()
        receipt = end["receipt"]
        assert receipt["cancelled_at"] <= receipt["upstream_closed_at"] <= time.time()
        assert receipt["delivered_tokens"] == 4  # thirteen bytes
        billed = receipt["billed"]
        given = (len(prompt) + 8 + 3) // 4
        assert (billed["input_tokens"], billed["output_tokens"], billed["source"]) == (given, 4, "estimated")
        assert round(billed["usd"] * 1e9) == given * 1000 + 4 * 2000
        [total] = await running.server.gateway.app.store.totals()
        assert total.used == given * 1000 + 4 * 2000


async def test_a_reload_loses_nothing_that_is_held(tmp_path: Path) -> None:
    def budget(limit: str) -> str:
        return f'[budgets.day]\nscope = "global"\nlimit = "{limit}"\nwindow = "day"\n'

    async with world(tmp_path) as it:
        it.write(extra=budget("2 requests"))
        assert await it.reload()
        async with socket(it.running) as ws:
            await ws.ask("script: say a; stall")
            await ws.hear("llm_token")
            it.write(extra=budget("1 requests"))
            assert await it.reload()
            assert (await it.ask()).status == 429
            it.write(extra=budget("3 requests").replace("day]", "other]"))
            assert await it.reload()
            assert (await it.ask()).status == 200
            await ws.say({"type": "llm_cancel", "id": "a"})
            await ws.end()
        assert (await it.ask()).status == 200
        assert (await it.ask()).status == 429
        it.write(extra=budget("ten requests"))
        assert not await it.reload()
        assert "budgets.day.limit" in it.problems
        await it.running.at_rest()
        assert await it.running.server.gateway.app.store.holding() == 0


@pytest.mark.parametrize("unit", ["requests", "input_tokens"])
async def test_what_does_not_count_the_answer_leaves_its_bytes_alone(tmp_path: Path, unit: str) -> None:
    async with budgeted(tmp_path, day=BudgetConfig("global", f"10000 {unit}", "day")) as running:
        assert (await ask(running, stream=True)).text() == "hello"
        assert "max_tokens" not in running.provider.log.entries[0].body


async def test_the_socket_and_its_steering_come_under_budgets_too(tmp_path: Path) -> None:
    async with budgeted(tmp_path, day=BudgetConfig("global", "1 requests", "day")) as running, socket(running) as ws:
        await ws.ask("script: say a; stall")
        await ws.hear("llm_token")
        await ws.append("and more\nscript: say b")
        end = (await ws.end())[-1]
        assert end["type"] == "llm_response_end"  # it is one request, however often it is steered
        assert len(running.provider.log.entries) == 2


async def test_b02_the_first_requests_of_somebody_unknown(tmp_path: Path) -> None:
    """Eight at once from each of several users that no account was ever made for, with room for one: one gets in."""
    prompt = "script: say hello; pause 100ms; end"
    keys = {"test": KeyConfig(SecretRef("", KEY), may_assert=True)}
    each = BudgetConfig("user:*", "1 requests", "day")
    async with gateway(tmp_path, budgets={"each": each}, models=MODELS, keys=keys) as running:
        statuses: dict[str, list[int]] = {user: [] for user in ("ann", "bob", "cas")}

        async def one(user: str) -> None:
            statuses[user].append((await ask(running, prompt, user=user)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                for user in statuses:
                    nursery.start_soon(one, user)
        assert [sorted(each) for each in statuses.values()] == [[200] + [429] * 7] * 3
        assert len(running.provider.log.entries) == 3


async def test_b07_a_request_that_was_read_is_not_sent_again(tmp_path: Path) -> None:
    """The provider resets the connection after it read the request, with retries on: what it did with it is not known."""
    budgets = {"day": BudgetConfig("global", "$1", "day"), "requests": BudgetConfig("global", "9 requests", "day")}
    async with gateway(tmp_path, budgets=budgets, models=MODELS, sections={"router": {}}) as running:
        reply = await ask(running, "script: reset")
        assert (reply.status, reply.json()["error"]["code"]) == (502, "provider_error.cut")
        [entry] = running.provider.log.entries
        [row] = await rows(running)
        assert row.closed is not None
        assert row.opened.id == entry.header("x-request-id")
        assert (row.closed.outcome, row.closed.sent, row.closed.source) == ("ambiguous", True, "estimated")
        assert row.closed.cost_nano
        used = {total.account.unit: total.used for total in await running.server.gateway.app.store.totals()}
        assert used == {"nano": row.closed.cost_nano, "requests": 1}
