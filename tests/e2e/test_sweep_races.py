"""The sweep of `test_sweep_sockets` over two attempts at once, and over an answer that goes on behind a cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clawproxy.config import Duration, Hedge, ModelConfig, PipelineConfig, RouteConfig
from tests.e2e import test_sweep_sockets as sockets
from tests.e2e.harness import Running, gateway
from tests.e2e.test_sweep_sockets import ENDS, ORDER, Client, Counting, over_http

NAMES = ("first", "second")
SETTINGS = {"router": {"hedge_share": 1.0}}


@asynccontextmanager
async def two_routes(tmp_path: Path, counting: Counting, **model: Any) -> AsyncIterator[Running]:
    async with gateway(tmp_path / "provider") as other:
        working = other.config.providers["scripted"]
        async with gateway(
            tmp_path / "gateway",
            plugins={"counting": counting},
            sections=SETTINGS,
            pipeline=PipelineConfig(("counting", *ORDER)),
            providers=dict.fromkeys(NAMES, working),
            models={"test-model": ModelConfig(tuple(RouteConfig(name, f"on-{name}") for name in NAMES), **model)},
        ) as running:
            running.provider = other.provider
            yield running


@asynccontextmanager
async def hedging(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    async with two_routes(tmp_path, counting, hedge=Hedge(Duration(0.004))) as running:
        yield running
        assert any(attempt.reason == "hedge" for attempt in counting.attempts.values()), "nothing was hedged"


@asynccontextmanager
async def continuing(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    async with two_routes(tmp_path, counting, continuation=True) as running:
        yield running
        assert any(attempt.reason == "continue" for attempt in counting.attempts.values()), "nothing went on"


async def hedged(client: Client) -> None:
    await over_http(client, "pause 9ms; tokens 2", stream=True)


async def cut(client: Client) -> None:
    await over_http(client, "tokens 2; cut", stream=True)


SCENARIOS: list[tuple[str, Any, Callable[[Client], Awaitable[None]], int]] = [
    ("hedged", hedging, hedged, 3),
    ("cut", continuing, cut, 2),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("name", "made", "scenario", "step"), SCENARIOS, ids=[row[0] for row in SCENARIOS])
async def test_the_invariants_hold_wherever_it_ends(
    tmp_path: Path, name: str, made: Any, scenario: Callable[[Client], Awaitable[None]], step: int, end: str
) -> None:
    await sockets.test_the_invariants_hold_wherever_it_ends(tmp_path, name, made, scenario, step, end)
