"""Providers that behave as a test says, under the virtual clock, behind the real pipeline."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import trio
from attrs import define, field

from clawproxy.config import Config, ModelConfig, Price, PriceConfig, ProviderConfig, RouteConfig
from clawproxy.dialects.base import OutboundRequest
from clawproxy.events import UsageReport
from clawproxy.messages import ChatRequest, Route, Usage
from clawproxy.testing import Claw, Fail, Pause, claw
from clawproxy.testing.upstream import ScriptedUpstream
from clawproxy.upstream.base import Phases

SEED = int(os.environ.get("CLAW_SEED", "20261122"))


@define
class Served:
    """What a provider is to do for one request."""

    first: float = 0.0
    """Seconds to the first token."""
    rest: float = 0.0
    """Seconds from there to the end."""
    tokens: int = 1
    fails: str = ""
    input: int | None = None
    """Tokens of the prompt; None: estimated."""
    cached: int | None = None
    """Of which its cache had so many."""


Behaviour = Callable[[Route, ChatRequest], Served]


@define(eq=False)
class World:
    """The gateway, and what its providers have at work."""

    claw: Claw
    behaviour: Behaviour
    at_work: dict[str, int] = field(factory=dict)
    most: dict[str, int] = field(factory=dict)
    taken: list[str] = field(factory=list)
    """The provider of each attempt, in order."""
    random: Random = field(factory=lambda: Random(SEED))

    def open(self, route: Route, request: ChatRequest, outbound: OutboundRequest, phases: Phases, fair_key: str) -> Any:
        served = self.behaviour(route, request)
        self.taken.append(route.provider)
        spent = served.input if served.input is not None else len(request.messages[0].text()) // 4 + 4
        usage = UsageReport(Usage(spent, served.tokens, served.cached))
        if served.fails:
            self.claw.upstream.will_say(Pause(served.first), Fail(served.fails))
        else:
            self.claw.upstream.will_say(Pause(served.first), "x", Pause(served.rest), usage)
        opening = ScriptedUpstream.open(self.claw.upstream, route, request, outbound, phases, fair_key)
        return _Counted(self, route.provider, opening)


class _Counted:
    def __init__(self, world: World, provider: str, opening: Any) -> None:
        self.world, self.provider, self.opening = world, provider, opening

    async def __aenter__(self) -> Any:
        world, name = self.world, self.provider
        world.at_work[name] = world.at_work.get(name, 0) + 1
        world.most[name] = max(world.most.get(name, 0), world.at_work[name])
        try:
            return await self.opening.__aenter__()
        except BaseException:
            world.at_work[name] -= 1
            raise

    async def __aexit__(self, *exc: Any) -> None:
        self.world.at_work[self.provider] -= 1
        await self.opening.__aexit__(*exc)


@asynccontextmanager
async def world(
    models: dict[str, ModelConfig], behaviour: Behaviour, *, settings: dict[str, Any] | None = None, seed: int = SEED
) -> AsyncIterator[World]:
    """A gateway of these models, whose providers behave so. The seed is printed."""
    print(f"seed {seed} (CLAW_SEED)")
    names = {route.provider for model in models.values() for route in model.routes if route.provider is not None}
    config = Config(
        providers={name: ProviderConfig(dialect="scripted") for name in sorted(names)},
        models=models,
        plugins={"router": settings or {}},
    )
    async with claw(config=config) as running:
        running.gateway.app.random.seed(seed)
        made = World(running, behaviour)
        made.random.seed(seed)
        running.upstream.open = made.open  # type: ignore[method-assign]
        yield made
        assert running.at_rest()
        assert not any(made.at_work.values())


def price(given: str, taken: str) -> PriceConfig:
    """Dollars per million tokens."""
    return PriceConfig(Price(int(float(given) * 1e6)), Price(int(float(taken) * 1e6)))


def routes(names: str, **changes: Sequence[Any]) -> tuple[RouteConfig, ...]:
    """One for each letter; `weight=[1, 2]` gives each its own."""
    return tuple(RouteConfig(name, "m", **{key: values[at] for key, values in changes.items()}) for at, name in enumerate(names))


async def poisson(random: Random, count: int, each_second: float, ask: Callable[[int], Any]) -> None:
    """`count` requests at random times."""
    async with trio.open_nursery() as nursery:
        for number in range(count):
            await trio.sleep(random.expovariate(each_second))
            nursery.start_soon(ask, number)


def percentile(figures: Sequence[float], share: float) -> float:
    return sorted(figures)[min(len(figures) - 1, int(share * len(figures)))]
