"""Requests that wait for room, fall back and race, ended at every schedule point: nothing is held, nobody waits, each row is
closed, and whoever was not ended has its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import trio
import trio.testing

from clawproxy.config import BudgetConfig, Config
from clawproxy.errors import ClawError
from clawproxy.lifetime import Lifetime
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing import Answer, Fail, Pause, claw, sweep
from tests.plugins.budgets import configured
from tests.plugins.test_budgets_seams import going_on, hedged

ONE = BudgetConfig("global", "1 concurrent", action="throttle")
WAYS: Mapping[str, tuple[Callable[[Config], Config], Mapping[str, BudgetConfig]]] = {
    "waits": (lambda config: config, {"one": ONE}),
    "waits twice": (lambda config: config, {"one": ONE, "other": BudgetConfig("key:*", "1 concurrent", action="throttle")}),
    "falls back": (
        lambda config: config,
        {
            "one": BudgetConfig("model:test-model", "1 concurrent", action="throttle"),
            "two": BudgetConfig("model:test-model", "1 requests", "day", action="fallback:small"),
        },
    ),
    "races": (hedged, {"two": BudgetConfig("global", "2 concurrent", action="throttle")}),
    "goes on": (going_on, {"one": ONE}),
}
CAUSES: Mapping[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "shutting_down": lambda lifetime: lifetime.cancel(ClawError("shutting_down")),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("way", WAYS)
async def test_ended_at_every_point(way: str, cause: str, autojump_clock: trio.testing.MockClock) -> None:
    changed, budgets = WAYS[way]
    lifetimes: list[Lifetime] = []
    first: list[Answer] = []

    async def scenario(scope: trio.CancelScope) -> None:
        lifetimes.clear()
        first.clear()
        gateway.store = gateway.gateway.app.store = MemoryStore()  # of another day
        upstream = gateway.upstream
        upstream._scripts.clear()
        upstream.will_say(Pause(0.05), "one", Fail("provider_error.cut") if way == "goes on" else "")
        for _ in range(4):
            upstream.will_say(Pause(0.02), "more")

        async def ask_first() -> None:
            first.append(await gateway.ask(max_tokens=20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_first)
            await trio.sleep(0.001)
            lifetimes.append(Lifetime())
            await gateway.ask(max_tokens=20, lifetime=lifetimes[-1])

    async def check(point: int) -> None:
        assert gateway.at_rest(), point
        assert await gateway.store.holding() == 0, point
        assert not gateway.gateway.app.shared["budgets"].lines.waiting, point
        assert all(row.closed for row in await gateway.store.rows()), point
        assert first[0].outcome is not None
        assert first[0].outcome.label == "complete", point

    async with claw(config=changed(configured(budgets, 10.0))) as gateway:
        points = await sweep(scenario, check, act=lambda _: CAUSES[cause](lifetimes[-1]) if lifetimes else None, all_tasks=True)
    assert points > 20
