"""A client that leaves at every schedule point of a request that fails over: nothing stays counted as in flight."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from trio.testing import MockClock

from clawproxy.config import ModelConfig
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Route
from clawproxy.testing import sweep
from clawproxy_router.learned import Learned
from tests.plugins.routing import Served, routes, world


@pytest.mark.parametrize("strategy", ["load", "latency"])
async def test_whenever_the_client_leaves_nothing_stays_in_flight(strategy: str, autojump_clock: MockClock) -> None:
    calls = 0

    def behave(_route: Route, _request: ChatRequest) -> Served:
        nonlocal calls
        calls += 1
        return Served(0.1, 0.1, fails="provider_error.overloaded" if calls % 2 else "")

    async with world({"test-model": ModelConfig(routes("abc"), strategy)}, behave) as sim:
        lifetimes: list[Lifetime] = []

        async def scenario(_: trio.CancelScope) -> None:
            nonlocal calls
            calls = 0
            sim.claw.upstream.__init__()  # type: ignore[misc]
            lifetimes.append(Lifetime())
            await sim.claw.ask(lifetime=lifetimes[-1])

        async def check(point: int) -> None:
            await trio.lowlevel.checkpoint()
            learned = cast(Learned | None, sim.claw.gateway.app.shared.get("router"))
            assert learned is None or not any(place.in_flight for place in learned.places.values()), point
            assert sim.claw.at_rest(), point

        points = await sweep(scenario, check, act=lambda _: lifetimes[-1].hang_up() if lifetimes else None)
        assert points > 10
        assert calls == 2, "the last run was let alone"
