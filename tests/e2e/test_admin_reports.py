"""Reports over real sockets: the admin API behind its token, and what a key is told of its own budget (A17 A13)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from clawproxy.config import BudgetConfig, KeyConfig, ModelConfig, Price, PriceConfig, RouteConfig, SecretRef, ServerConfig
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch

TOKEN = "admin-0123456789abcdefghij"
PRICE = PriceConfig(Price(1_000_000), Price(2_000_000))


def changes(tmp_path: Path, budgets: Mapping[str, BudgetConfig] | None = None, *, token: str | None = TOKEN) -> dict[str, Any]:
    server = ServerConfig(("127.0.0.1:0",), "127.0.0.1:0", state_dir=tmp_path / "state")
    return {
        "server": attrs.evolve(server, admin_token=None if token is None else SecretRef("", token)),
        "models": {"test-model": ModelConfig((RouteConfig("scripted", "scripted-1", 100_000, 512),), price=PRICE)},
        "keys": {"test": KeyConfig(SecretRef("", KEY), user="ada")},
        "budgets": budgets or {},
    }


async def admin(running: Running, target: str, token: str | None = TOKEN, method: str = "GET", **headers: str) -> Reply:
    parts = urlsplit(running.admin)
    assert parts.hostname
    assert parts.port
    fields = {"host": "127.0.0.1", **headers, **({"authorization": f"Bearer {token}"} if token else {})}
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
            return await fetch(stream, method, target, headers=fields)


async def ask(running: Running, count: int = 1) -> None:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            for _ in range(count):
                assert (await chat(connection, "hello", key=KEY, model="test-model")).status == 200
        await running.at_rest()


async def test_usage_behind_the_token(tmp_path: Path) -> None:
    async with gateway(tmp_path, **changes(tmp_path)) as running:
        await ask(running, 3)
        reply = await admin(running, "/admin/usage?by=model,day&since=1h")
        assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
        said = reply.json()
        rows = await running.server.gateway.app.store.rows()
        cost = sum(row.closed.cost_nano or 0 for row in rows if row.closed)
        assert cost > 0
        assert (said["requests"], said["attempts"], said["group_by"]) == (3, 3, ["model", "day"])
        assert round(said["cost_usd"] * 10**9) == cost
        [row] = said["rows"]
        day = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d")
        assert (row["model"], row["day"]) in {("test-model", day), ("test-model", said["last"][:10])}
        assert row["cost_usd"] == said["cost_usd"]
        assert (await admin(running, "/admin/usage?user=ada&until=2020-01-01")).json()["attempts"] == 0
        assert (await admin(running, "/admin/usage?user=-")).json()["attempts"] == 0


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
async def test_without_the_token_there_is_nothing(tmp_path: Path, token: str | None) -> None:
    async with gateway(tmp_path, **changes(tmp_path)) as running:
        for path in ("/admin/usage", "/admin/budgets", "/admin/nothing"):
            reply = await admin(running, path, token)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert TOKEN.encode() not in reply.body
        assert (await admin(running, "/healthz", None)).status == 200
        shown = {"authorization": f"Basic {TOKEN}"}
        assert (await admin(running, "/admin/usage", None, **shown)).status == 401


async def test_without_a_configured_token_there_are_no_pages(tmp_path: Path) -> None:
    async with gateway(tmp_path, **changes(tmp_path, token=None)) as running:
        reply = await admin(running, "/admin/usage")
        assert reply.status == 404
        assert "admin_token" in reply.json()["error"]["message"]


async def test_they_are_not_on_the_public_listener(tmp_path: Path) -> None:
    async with gateway(tmp_path, **changes(tmp_path)) as running, await running.connect() as connection:
        reply = await fetch(connection, "GET", "/admin/usage", headers={"authorization": f"Bearer {TOKEN}"})
        assert reply.status in (401, 404)
        assert b"attempts" not in reply.body


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("by=colour", "by: "),
        ("by=model,model", "twice"),
        ("since=yesterday", "since: "),
        ("since=2026-02-01&until=2026-01-01", "not after since"),
        ("colour=red", "colour: "),
        ("model=a&model=b", "twice"),
        ("since=999999999999h", "since: "),
    ],
)
async def test_what_is_asked_wrongly_is_said(tmp_path: Path, query: str, sentence: str) -> None:
    async with gateway(tmp_path, **changes(tmp_path)) as running:
        reply = await admin(running, f"/admin/usage?{query}")
        assert reply.status == 400
        assert sentence in reply.json()["error"]["message"]
        assert (await admin(running, "/admin/usage", method="POST")).status == 405


async def test_how_budgets_stand(tmp_path: Path) -> None:
    budgets = {
        "all": BudgetConfig("global", "10 requests", "day"),
        "each": BudgetConfig("user:*", "$1.00", "month"),
        "now": BudgetConfig("global", "4 concurrent"),
    }
    async with gateway(tmp_path, **changes(tmp_path, budgets)) as running:
        found = {each["budget"]: each for each in (await admin(running, "/admin/budgets")).json()["budgets"]}
        assert found.keys() == {"all", "now"}, "nobody has come under the one for each"
        await ask(running, 2)
        found = {each["budget"]: each for each in (await admin(running, "/admin/budgets")).json()["budgets"]}
        every, each, at_once = found["all"], found["each"], found["now"]
        assert (every["unit"], every["limit"], every["used"], every["held"], every["left"]) == ("requests", 10, 2, 0, 8)
        assert every["resets_at"].endswith("T00:00:00Z")
        assert (each["scope"], each["unit"], each["limit"]) == ("user:ada", "usd", 1.0)
        rows = await running.server.gateway.app.store.rows()
        assert round(each["used"] * 10**9) == sum(row.closed.cost_nano or 0 for row in rows if row.closed)
        assert (at_once["held"], at_once["left"]) == (0, 4)


async def own_usage(running: Running) -> Any:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            reply = await fetch(connection, "GET", "/v1/usage", headers={"authorization": f"Bearer {KEY}"})
    assert reply.status == 200
    return json.loads(reply.body)["budget"]


async def test_a_key_is_told_of_its_own_budget(tmp_path: Path) -> None:
    budgets = {
        "day": BudgetConfig("key:test", "$0.50", "day"),
        "month": BudgetConfig("key:*", "$5.00", "month"),
        "user": BudgetConfig("user:ada", "$1.00", "month"),
        "everybody": BudgetConfig("global", "$9.00", "month"),
        "requests": BudgetConfig("key:test", "100 requests", "month"),
    }
    async with gateway(tmp_path, **changes(tmp_path, budgets)) as running:
        await ask(running, 2)
        budget = await own_usage(running)
        rows = await running.server.gateway.app.store.rows()
        spent = sum(row.closed.cost_nano or 0 for row in rows if row.closed)
        assert (budget["configured"], budget["limitMicros"], budget["heldMicros"]) == (True, 5_000_000, 0)
        assert budget["spentMicros"] == (spent + 500) // 1000
        assert budget["windowKey"] == f"key:test/{datetime.now(UTC):%Y-%m}"
        assert budget["resetsAt"] > time.time()


async def test_the_budgets_of_others_are_not_told(tmp_path: Path) -> None:
    budgets = {"everybody": BudgetConfig("global", "$9.00", "month"), "bob": BudgetConfig("user:bob", "$1.00", "month")}
    async with gateway(tmp_path, **changes(tmp_path, budgets)) as running:
        await ask(running)
        assert await own_usage(running) == {"configured": False, "windowKey": f"key:test/{datetime.now(UTC):%Y-%m}"}
