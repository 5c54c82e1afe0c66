"""What a price makes of what was used: whole nano-dollars, and nothing where something is not known."""

from __future__ import annotations

import time
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import Config, ModelConfig, Price, PriceConfig, ProviderConfig, RouteConfig
from clawproxy.costs import cost_nano
from clawproxy.dialects.figures import storable
from clawproxy.events import Text, UsageReport
from clawproxy.messages import Usage
from clawproxy.testing import Answer, Claw, Fail, claw

PRICE = PriceConfig(Price(150_000), Price(600_000), cached_input=Price(75_000), cache_write=Price(187_500))
FULL = PriceConfig(Price(150_000), Price(600_000))
CONFIG = Config(
    providers={name: ProviderConfig(dialect="scripted") for name in ("one", "two")},
    models={
        "test-model": ModelConfig((RouteConfig("one", "m"), RouteConfig("two", "m")), price=PRICE),
        "unpriced": ModelConfig((RouteConfig("one", "m"),)),
        "free": ModelConfig((RouteConfig("one", "m"),), price=PriceConfig(Price(0), Price(0))),
    },
)


@pytest.mark.parametrize(
    ("usage", "price", "nano"),
    [
        (Usage(1_000_000, 0), PRICE, 150_000_000),  # $0.15
        (Usage(1000, 500), PRICE, 150_000 + 300_000),
        (Usage(1000, 0, cached_tokens=400), PRICE, 600 * 150 + 400 * 75),
        (Usage(1000, 0, cache_write_tokens=400), PRICE, 600 * 150 + 75_000),
        (Usage(1000, 0, 400, 400), FULL, 150_000),
        (Usage(10, 10, reasoning_tokens=5), PRICE, 1500 + 6000),  # reasoning is part of the output
        (Usage(100, 0, cached_tokens=900, cache_write_tokens=900), PRICE, 7500),  # parts are never more than the whole
        (Usage(0, 0), PRICE, 0),
        (Usage(None, 5), PRICE, None),
        (Usage(5, None), PRICE, None),
    ],
)
def test_costs(usage: Usage, price: PriceConfig, nano: int | None) -> None:
    assert cost_nano(usage, price) == nano


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 10**9), st.integers(0, 10**9))
def test_it_is_rounded_once(given_: int, taken: int, input_: int, output: int) -> None:
    exact = (Decimal(given_) * input_ + Decimal(taken) * output) / 1000
    assert cost_nano(Usage(given_, taken), PriceConfig(Price(input_), Price(output))) == int(
        exact.to_integral_value(ROUND_HALF_UP)
    )


async def ask(gateway: Claw, model: str = "test-model") -> Answer:
    return await gateway.ask("hello", model=model)


async def test_an_attempt_has_its_cost_and_the_exchange_the_sum() -> None:
    async with claw(config=CONFIG) as gateway:
        gateway.upstream.will_say("half", UsageReport(Usage(1000, 1)), Fail("provider_error.cut"))
        gateway.upstream.will_say("x", UsageReport(Usage(1000, 500)))
        first, second = await ask(gateway), await ask(gateway)
        assert second.exchange is not None
        assert second.exchange.cost_nano == 450_000
        rows = [row.closed for row in await gateway.store.rows() if row.closed is not None]
        assert first.exchange is not None
        assert first.exchange.cost_nano == rows[0].cost_nano
        assert rows[0].source == "estimated"
        assert (rows[0].cost_nano or 0) >= 150_000, "a cut answer is never free"


async def test_a_failover_is_paid_twice_where_the_first_was() -> None:
    async with claw(config=CONFIG) as gateway:
        gateway.upstream.will_say(UsageReport(Usage(1000, 0)), Fail("provider_error.server"))
        gateway.upstream.will_say("x", UsageReport(Usage(1000, 500)))
        answer = await ask(gateway)
        assert answer.exchange is not None
        assert answer.text == "x"
        costs = [row.closed.cost_nano for row in await gateway.store.rows() if row.closed is not None]
        assert costs[1] == 450_000
        assert costs[0] is not None
        assert answer.exchange.cost_nano == sum(cost or 0 for cost in costs) > 450_000


@pytest.mark.parametrize(("model", "cost"), [("unpriced", None), ("free", 0)])
async def test_not_known_is_not_free(model: str, cost: int | None) -> None:
    """B-10."""
    async with claw(config=CONFIG) as gateway:
        gateway.upstream.will_say(Text("x"))
        answer = await ask(gateway, model)
        assert answer.exchange is not None
        assert answer.exchange.cost_nano == cost
        [total] = await gateway.store.usage()
        assert total.cost_nano == cost


@pytest.mark.parametrize("value", [[1] * 3_000_000, "x" * 10_000_000, 10**400, {"a": {"b": {"c": 1}}}, None, True, 1.5])
def test_what_a_provider_adds_to_its_figures_is_kept_small(value: Any) -> None:
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    began = time.perf_counter()
    kept = storable({"prompt_tokens": 1, "x" * 100_000: value, "deep": nested})
    assert time.perf_counter() - began < 0.1
    assert len(str(kept)) < 600
    assert kept["prompt_tokens"] == 1
