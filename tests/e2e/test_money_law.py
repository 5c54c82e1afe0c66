"""The law of money over real sockets, with all that makes a second attempt of one: retries, failover, hedges, continued answers,
steering, fallbacks, throttling; with clients that leave at random bytes, and a provider that fails in every way.

Nothing above a hard limit is charged; at rest nothing is held; the ledger, the accounts and the provider's own log agree.
B-01, B-04, B-07 and B-08 of the threats, all at once. `CLAW_ROUNDS=100 CLAW_AT_ONCE=1000` is the long form.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import (
    BudgetConfig,
    Duration,
    Hedge,
    KeyConfig,
    ModelConfig,
    PoolConfig,
    Price,
    PriceConfig,
    ProviderConfig,
    RouteConfig,
    SecretRef,
)
from clawproxy.scripted import ScriptedProvider, parse
from clawproxy.stores.base import Account, LedgerRow, Store, Unit
from tests.e2e.harness import PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import chat_body
from tests.e2e.test_claw_socket import Socket
from tests.e2e.websocket_client import open_raw

ROUNDS = int(os.environ.get("CLAW_ROUNDS", "2"))
AT_ONCE = int(os.environ.get("CLAW_AT_ONCE", "150"))
SEED = int(os.environ.get("CLAW_SEED", "20261122"))

KEYS = {
    name: KeyConfig(SecretRef("", f"sk-test-{name}-0123456789abcdefghijklm"), user=user, team=team)
    for name, user, team in (("a", "ann", "red"), ("b", "bob", "red"), ("c", "ann", "blue"))
}
PRICE = PriceConfig(Price(1_000_000), Price(2_000_000))
MODELS = {
    name: ModelConfig(
        (RouteConfig("one", f"{name}-1"), RouteConfig("two", f"{name}-2")),
        price=PRICE,
        hedge=Hedge(Duration(0.004)),
        continuation=True,
    )
    for name in ("test-model", "small")
}
LIMITS: dict[str, tuple[str, Unit, int, str]] = {
    "key": ("key:*", "nano", 30_000_000, "block"),
    "user": ("user:*", "tokens", 60_000, "block"),
    "team": ("team:red", "output_tokens", 16_000, "block"),
    "all": ("global", "nano", 75_000_000, "block"),
    "count": ("global", "requests", 160, "block"),
    "now": ("provider:one", "concurrent", 40, "throttle"),
    "dear": ("model:test-model", "nano", 50_000_000, "fallback:small"),
}
"""For two hundred requests: less than they all want."""


def budgets(at_once: int) -> dict[str, BudgetConfig]:
    found = {}
    for name, (scope, unit, amount, action) in LIMITS.items():
        amount = amount * at_once // 200
        limit = f"${amount / 1e9:.9f}" if unit == "nano" else f"{amount} {unit}"
        found[name] = BudgetConfig(scope, limit, None if unit == "concurrent" else "total", soft="50%", action=action)
    return found


def scripts(chance: random.Random, count: int) -> Iterable[Any]:
    """What the provider does with its next requests."""
    for _ in range(count):
        said = f"say {'word ' * chance.randrange(1, 20)}; "
        pause = f"pause {chance.randrange(1, 12)}ms; " if chance.random() < 0.4 else ""
        paced = "pace 1ms; " if chance.random() < 0.3 else ""
        script = chance.choices(
            [
                paced + pause + said + pause + said + "end",
                pause + said + f"usage {chance.randrange(0, 90)} {chance.randrange(0, 60)}; end",
                pause + said + "usage 900000 800000; end",
                said + "usage absurd; end",
                paced + said + pause + "cut",
                paced + said + pause + "reset",
                said + "error overloaded",
                "status 503",
                "status 500",
                "reset",
                paced + f"tokens {chance.randrange(50, 400)}; end",
            ],
            [30, 10, 2, 2, 8, 5, 4, 6, 3, 3, 8],
        )
        yield parse(script[0])


async def http(running: Running, chance: random.Random, key: KeyConfig, told: Counter[str]) -> None:
    body = chat_body("p" * chance.randrange(1, 60), stream=chance.random() < 0.7, max_tokens=chance.choice((5, 40, 200)))
    secret = key.secret.value if key.secret else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nConnection: close\r\nAuthorization: Bearer {secret}\r\n"
    left = chance.randrange(0, 6000) if chance.random() < 0.25 else 10**9
    async with await running.connect() as stream:
        await stream.send_all(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        heard = b""
        with trio.fail_after(60):
            try:
                while len(heard) < left and (data := await stream.receive_some(min(left - len(heard), 65536))):
                    heard += data
            except trio.BrokenResourceError:
                pass
    told[heard[9:12].decode() if left == 10**9 else "left"] += 1


async def websocket(running: Running, chance: random.Random, key: KeyConfig, told: Counter[str]) -> None:
    """Steered, cancelled, left, or heard to its end."""
    async with await running.connect() as stream:
        ws = Socket(stream, await open_raw(stream, key.secret.value if key.secret else ""))
        await ws.hear("auth_ok")
        await ws.ask("p" * chance.randrange(1, 60), parameters={"max_tokens": chance.choice((5, 40, 200))})
        what = chance.choice(("append", "cancel", "leave", "hear"))
        if what != "hear":
            await trio.sleep(chance.random() * 0.01)
        if what == "leave":
            return
        if what == "append":
            await ws.append("and more")
        elif what == "cancel":
            await ws.say({"type": "llm_cancel", "id": "a"})
        with trio.fail_after(60):
            while (frame := await ws.frames.next())["type"] not in ("llm_response_end", "error") or frame.get(
                "error"
            ) == "unknown_id":
                pass
        told[frame.get("error") or frame["outcome"]] += 1


async def one_round(folder: Path, chance: random.Random, told: Counter[str], seen: Counter[str]) -> None:
    async with ScriptedProvider.running() as provider:
        provider.log.max_entries = 10**6
        provider.queue.extend(scripts(chance, 6 * AT_ONCE))
        pool = PoolConfig(max=600)
        providers = {
            name: ProviderConfig(base_url=provider.base_url, api_key=SecretRef("", PROVIDER_KEY), pool=pool)
            for name in ("one", "two")
        }
        async with gateway(
            folder,
            providers=providers,
            models=MODELS,
            keys=KEYS,
            budgets=budgets(AT_ONCE),
            deadlines=Deadlines(queue=0.3),
            sections={"router": {"hedge_share": 1.0, "breaker": {"enabled": False}}},
        ) as running:
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    client = websocket if chance.random() < 0.2 else http
                    nursery.start_soon(client, running, random.Random(chance.random()), chance.choice(list(KEYS.values())), told)
            with trio.fail_after(30):
                await running.at_rest()
                await provider.log.wait_for(lambda log: not log.in_progress)
            await agree(running, provider, seen)


def money(rows: Iterable[LedgerRow]) -> int:
    return sum(row.closed.cost_nano or 0 for row in rows if row.closed)


def answer(row: LedgerRow) -> int:
    return (row.closed.output_tokens or 0) if row.closed else 0


def tokens(rows: Iterable[LedgerRow]) -> int:
    return sum((row.closed.input_tokens or 0) + answer(row) for row in rows if row.closed)


async def agree(running: Running, provider: ScriptedProvider, seen: Counter[str]) -> None:
    store: Store = running.server.gateway.app.store
    shared = running.server.gateway.app.shared["budgets"]
    assert await store.holding() == 0
    assert not shared.lines.waiting
    rows = list(await store.rows())
    closed = {row.opened.id: row.closed for row in rows if row.closed is not None}
    assert len(closed) == len(rows)
    asked = [entry.header("x-request-id") or "" for entry in provider.log.entries]
    assert len(set(asked)) == len(asked), "an attempt was sent twice"
    for id_ in asked:
        assert closed[id_].sent, "the provider has it, and the ledger says that it was never sent"
    for entry in provider.log.entries:
        if entry.status == 200 and entry.events_sent > 3:
            figures = closed[entry.header("x-request-id") or ""]
            assert figures.cost_nano, f"free: {figures}"
    for row in rows:
        assert row.closed is not None
        seen[f"{row.opened.reason} {row.closed.outcome}"] += 1
        if not row.closed.sent:
            assert not row.closed.cost_nano
        assert (row.closed.cost_nano or 0) >= 0

    sums: list[tuple[str, Unit, int | None]] = [
        *((f"key:{name}", "nano", money(row for row in rows if row.opened.key == name)) for name in KEYS),
        *((f"user:{name}", "tokens", tokens(row for row in rows if row.opened.user == name)) for name in ("ann", "bob")),
        ("team:red", "output_tokens", sum(answer(row) for row in rows if row.opened.team == "red")),
        ("global", "nano", money(rows)),
        ("global", "requests", len({row.opened.request_id for row in rows if row.closed and row.closed.sent})),
        ("provider:one", "concurrent", 0),
        ("model:test-model", "nano", None),
    ]
    most = {(scope.partition(":")[0], unit): amount * AT_ONCE // 200 for scope, unit, amount, _ in LIMITS.values()}
    for scope, unit, amount in sums:
        account = Account(scope, unit, "total", False)
        [standing] = await store.standing([account], 0)
        assert standing.held == 0, scope
        assert standing.used <= most[scope.partition(":")[0], unit], scope
        if amount is not None:
            assert standing.used + standing.overrun == amount, scope


@pytest.mark.slow
async def test_b_01_b_04_the_law_over_sockets(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    told: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for number in range(ROUNDS):
        await one_round(tmp_path / str(number), chance, told, seen)
    print(dict(told), dict(seen), sep="\n")
    assert {"200", "429", "left", "complete"} <= told.keys()
    assert {reason for reason, _, _ in (each.partition(" ") for each in seen)} >= {
        "first",
        "retry",
        "failover",
        "hedge",
        "continue",
        "steer",
    }
