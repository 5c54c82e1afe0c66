"""A gateway with budgets, for tests without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import BudgetConfig, Config, ModelConfig, Price, PriceConfig, ProviderConfig, RouteConfig
from clawproxy.messages import Principal
from clawproxy.testing import Answer, Claw, claw

PRICE = PriceConfig(Price(1_000_000), Price(2_000_000))
"""A dollar a million tokens of a prompt, two of an answer: 1000 and 2000 nano-dollars each."""
SURE: dict[str, Any] = {"max_tokens": 20}


def configured(budgets: Mapping[str, BudgetConfig], queue: float = 10.0) -> Config:
    names = ("test-model", "small")
    return Config(
        providers={name: ProviderConfig(dialect="scripted") for name in ("scripted", "other")},
        models={name: ModelConfig((RouteConfig("scripted", name), RouteConfig("other", name)), price=PRICE) for name in names},
        budgets=budgets,
        deadlines=Deadlines(queue=queue),
    )


@asynccontextmanager
async def budgeted(queue: float = 10.0, /, **budgets: BudgetConfig) -> AsyncIterator[Claw]:
    async with claw(config=configured(budgets, queue)) as gateway:
        yield gateway


def at_once(gateway: Claw, answers: list[Answer], nursery: trio.Nursery, count: int, **asked: Any) -> None:
    async def ask() -> None:
        answers.append(await gateway.ask(**asked))

    for _ in range(count):
        nursery.start_soon(ask)


def codes(answer: Answer) -> list[str]:
    return [notice.code for notice in answer.notices]


def who(key: str = "bench", **more: Any) -> Principal:
    return Principal(key, **more)


async def spent(gateway: Claw) -> dict[str, int]:
    """What is charged, by the account's scope and unit."""
    out: dict[str, int] = {}
    for total in await gateway.store.totals():
        name = f"{total.account.scope} {total.account.unit}"
        out[name] = out.get(name, 0) + total.used
    return out
