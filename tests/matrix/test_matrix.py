"""Every client format before every provider format, over real sockets: the table of docs/dialects.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import ModelConfig, RouteConfig
from clawproxy.dialects import CLIENT, PROVIDER
from tests.e2e.harness import Running, gateway
from tests.matrix.cells import SCENARIOS, Cell, Refused
from tests.matrix.expected import BASE, CLIENTS, PROVIDERS, expected

pytestmark = pytest.mark.slow


def test_every_dialect_has_its_row_and_column() -> None:
    assert set(CLIENTS) - {"claw"} <= set(CLIENT)
    assert set(PROVIDERS) <= set(PROVIDER)


async def verdict(cell: Cell, scenario: str) -> str:
    try:
        await SCENARIOS[scenario](cell)
    except Refused as refused:
        cell.running.provider.queue.clear()
        want = expected(scenario, cell.client, cell.provider)
        param = want.removeprefix("400 `").removesuffix("`")
        return want if want.startswith("400") and param in refused.param else f"refused: {refused.param}"
    except Exception as wrong:
        cell.running.provider.queue.clear()
        return f"{type(wrong).__name__}: {wrong}"[:600]
    return "yes"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_matrix(tmp_path: Path, client: str, provider: str) -> None:
    models = {f"via-{name}": ModelConfig((RouteConfig(name, "scripted-1"),)) for name in PROVIDERS}
    async with gateway(tmp_path, models=models, dialects=BASE) as running:
        await every_scenario(running, client, provider)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_provider_that_is_asked_over_websockets_is_no_other(tmp_path: Path, client: str) -> None:
    provider = "openai_responses"
    models = {f"via-{provider}": ModelConfig((RouteConfig(provider, "scripted-1"),))}
    async with gateway(tmp_path, models=models, dialects={provider: BASE[provider]}, websocket=True) as running:
        await every_scenario(running, client, provider)
        methods = {entry.method for entry in running.provider.log.entries}
        assert methods == {"GET"}, "some went over HTTP"
        assert not running.provider.log.malformed


async def every_scenario(running: Running, client: str, provider: str) -> None:
    cell = Cell(running, client, provider)
    wrong = []
    for scenario in SCENARIOS:
        running.forget_trouble()
        wanted = expected(scenario, client, provider)
        if wanted != "-" and (found := await verdict(cell, scenario)) != wanted:
            wrong.append(f"{scenario}: expected {wanted}, found {found}")
    await running.at_rest()
    assert not wrong, "\n".join(wrong)
