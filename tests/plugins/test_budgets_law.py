"""The law of budgets: whatever comes at once, ends however, nothing above the limit is charged, and nothing stays held."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import pytest
import trio

from clawproxy.config import BudgetConfig
from clawproxy.errors import ClawError
from clawproxy.events import UsageReport
from clawproxy.lifetime import Lifetime
from clawproxy.messages import Usage
from clawproxy.stores.base import Account
from clawproxy.testing import Claw, Fail, Pause
from tests.plugins.budgets import budgeted, who

LIMITS = {
    "key": ("key:*", 4_000_000, "nano"),
    "user": ("user:*", 2500, "tokens"),
    "team": ("team:red", 1200, "output_tokens"),
    "all": ("global", 50, "requests"),
    "input": ("model:test-model", 1500, "input_tokens"),
    "now": ("provider:scripted", 17, "concurrent"),
}
"""For sixty requests: less than they all want."""


def script(chance: random.Random) -> tuple[object, ...]:
    text = "x" * chance.randrange(1, 30)
    steps: list[object] = [text] * chance.randrange(1, 8)
    if chance.random() < 0.2:
        steps.insert(chance.randrange(len(steps)), Pause(chance.random() * 0.01))
    if chance.random() < 0.1:
        steps.insert(chance.randrange(len(steps) + 1), Fail("provider_error.cut"))
    if chance.random() < 0.1:
        steps.append(UsageReport(Usage(chance.choice((-1, 0, 40, 10**12)), chance.choice((0, 3, 500, 10**9)))))
    return tuple(steps)


async def one_round(gateway: Claw, chance: random.Random, count: int) -> None:
    async def ask(number: int) -> None:
        lifetime = Lifetime()
        principal = who(chance.choice(("a", "b")), user=chance.choice(("u", "v")), team=chance.choice(("red", "blue")))
        await trio.sleep(chance.random() * 0.005)
        with trio.CancelScope() as scope:
            if chance.random() < 0.2:
                scope.deadline = trio.current_time() + chance.random() * 0.01
            if chance.random() < 0.2:
                lifetime.cancel(ClawError("cancelled"))
            await gateway.ask(
                "p" * chance.randrange(1, 60), principal=principal, lifetime=lifetime, max_tokens=chance.choice((5, 40))
            )

    for _ in range(count):
        gateway.upstream.will_say(*script(chance))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(ask, number)


async def law(rounds: int, count: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    ends: set[str] = set()
    for _ in range(rounds):
        most = {(scope.partition(":")[0], unit): amount * count // 60 for scope, amount, unit in LIMITS.values()}
        budgets = {}
        for name, (scope, _, unit) in LIMITS.items():
            amount = most[scope.partition(":")[0], unit]
            limit = f"${amount / 1e9:.9f}" if unit == "nano" else f"{amount} {unit}"
            window = None if unit == "concurrent" else "total"
            budgets[name] = BudgetConfig(scope, limit, window, soft="50%", action=chance.choice(("block", "throttle")))  # type: ignore[arg-type]
        async with budgeted(0.05, **budgets) as gateway:
            await one_round(gateway, chance, count)
            await holds(gateway, most)
            ends |= {row.closed.outcome for row in await gateway.store.rows() if row.closed}
            ends |= {name for name in budgets if gateway.gateway.metrics.total("clawproxy_budget_refused_total")}
    assert {"complete", "truncated", "all"} <= ends


async def holds(gateway: Claw, most: Mapping[tuple[str, str], int]) -> None:
    store = gateway.store
    assert await store.holding() == 0
    assert gateway.at_rest()
    assert not gateway.gateway.app.shared["budgets"].lines.waiting
    for total in await store.totals():
        assert 0 <= total.used <= most[total.account.scope.partition(":")[0], total.account.unit]
        [standing] = await store.standing([total.account], 0)
        assert standing.held == 0
    rows = await store.rows()
    assert all(row.closed is not None for row in rows)
    assert sum(row.closed.sent for row in rows if row.closed) == len(gateway.upstream.requests)
    [requests] = await store.standing([Account("global", "requests", "total", False)], 0)
    assert requests.used == len({row.opened.request_id for row in rows if row.closed and row.closed.sent})
    for key in ("a", "b"):
        [money] = await store.standing([Account(f"key:{key}", "nano", "total", False)], 0)
        billed = sum(row.closed.cost_nano or 0 for row in rows if row.closed and row.opened.key == key)
        assert money.used + money.overrun == billed


@pytest.mark.parametrize("seed", range(4))
async def test_the_law(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """B-04."""
    await law(4, 60, seed)


@pytest.mark.slow
async def test_the_law_at_length(autojump_clock: trio.testing.MockClock) -> None:
    await law(int(os.environ.get("ROUNDS", "10")), 1000, int(os.environ.get("SEED", "20261122")))
