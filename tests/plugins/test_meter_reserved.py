"""What an attempt may cost at most stands in its row from the beginning, so that a crash leaves no unknown cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.config import BudgetConfig, ModelConfig, Price, PriceConfig, RouteConfig
from clawproxy.stores.base import LedgerRow
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import chat

PRICE = PriceConfig(Price(1_000_000), Price(2_000_000))
"""A dollar and two dollars a million tokens: 1000 and 2000 nano-dollars a token."""


def models(price: PriceConfig | None, most: int | None = None) -> dict[str, ModelConfig]:
    return {"test-model": ModelConfig((RouteConfig("scripted", "scripted-1", 100_000, most),), price=price)}


async def ask(running: Running) -> LedgerRow:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            assert (await chat(connection, "say:hello", key=KEY, model="test-model")).status == 200
        await running.at_rest()
    [row] = await running.server.gateway.app.store.rows()
    return row


@pytest.mark.parametrize(("most", "output"), [(100, 100), (None, 4096)])
async def test_the_upper_bound_is_reserved(tmp_path: Path, most: int | None, output: int) -> None:
    async with gateway(tmp_path, models=models(PRICE, most)) as running:
        row = await ask(running)
        assert row.opened.reserved_nano == 1000 * row.opened.reserved_input + 2000 * output
        assert row.closed is not None
        assert row.closed.cost_nano is not None
        assert row.closed.cost_nano <= row.opened.reserved_nano


async def test_without_a_price_it_is_not_known(tmp_path: Path) -> None:
    async with gateway(tmp_path, models=models(None)) as running:
        assert (await ask(running)).opened.reserved_nano is None


@pytest.mark.parametrize("limit", ["$1.00", "1000 requests"])
async def test_under_a_budget_it_is_the_answer_that_is_held(tmp_path: Path, limit: str) -> None:
    budgets: dict[str, Any] = {"all": BudgetConfig("global", limit, "day")}
    async with gateway(tmp_path, models=models(attrs.evolve(PRICE), 64), budgets=budgets) as running:
        row = await ask(running)
        assert row.opened.reserved_output == 64
        assert row.opened.reserved_nano == 1000 * row.opened.reserved_input + 2000 * 64
