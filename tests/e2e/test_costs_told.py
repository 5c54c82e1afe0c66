"""What an attempt cost, wherever it is told: the ledger, the audit, the end of a WebSocket's answer, the catalogue, the usage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.config import ModelConfig, PriceConfig, RatesConfig, RouteConfig
from clawproxy.rates import shipped
from clawproxy.stores.base import LedgerClose
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.plugins.routing import price

OWN = RatesConfig(prices={"scripted/scripted-1": price("3", "15")})
MODELS = {
    "named": ModelConfig((RouteConfig("scripted", "scripted-1"),)),
    "unknown": ModelConfig((RouteConfig("scripted", "scripted-2"),)),
}


async def ask(running: Running, model: str, prompt: str = "hello") -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await chat(connection, prompt, key=KEY, model=model)


async def closed(running: Running) -> list[LedgerClose]:
    return [row.closed for row in await running.server.gateway.app.store.rows() if row.closed is not None]


def audited(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [line for file in (tmp_path / "state/audit").glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if "request_id" in line]


async def catalogue(running: Running) -> dict[str, Any]:
    async with await running.connect() as connection:
        page = (await fetch(connection, "GET", "/v1/catalog", headers={"authorization": f"Bearer {KEY}"})).json()
    return {model["id"]: model.get("pricing") for entry in page["providers"] for model in entry["models"]}


async def test_a_price_of_the_operators_is_told_everywhere(tmp_path: Path) -> None:
    async with gateway(tmp_path, models=MODELS, rates=OWN) as running:
        usage = (await ask(running, "named")).json()["usage"]
        nano = usage["prompt_tokens"] * 3_000 + usage["completion_tokens"] * 15_000
        [row] = await closed(running)
        assert (row.cost_nano, row.card, row.source) == (nano, "config", "measured")
        with trio.fail_after(5):
            async with await running.connect() as connection:
                frames = Frames(connection, await open_raw(connection, KEY))
                frame = {"type": "llm_request", "id": "r", "model": "named", "prompt": "hello"}
                await connection.send_all(masked(json.dumps(frame).encode()))
                while (end := await frames.next())["type"] != "llm_response_end":
                    pass
        assert end["cost"]["usd"] == nano / 1e9
        told = await catalogue(running)
        assert told == {"named": {"inputMicrosPerMillion": 3_000_000, "outputMicrosPerMillion": 15_000_000}, "unknown": None}
        await ask(running, "unknown")
        assert [(row.cost_nano, row.card) for row in (await closed(running))[2:]] == [(None, None)], "not known is not zero"
    assert [line["cost_nano"] for line in audited(tmp_path)] == [nano, nano, None]


async def test_the_cards_version_is_written_beside_the_cost(tmp_path: Path) -> None:
    """So that a bill of last year can be explained by last year's card."""
    models = {"five": ModelConfig((RouteConfig("scripted", "gpt-5"),))}
    async with gateway(tmp_path / "other", models=models) as other:  # for the provider that it brings
        plain = other.server.gateway.app.config.providers["scripted"]
        providers = {"scripted": attrs.evolve(plain, profile="openai")}
        async with gateway(tmp_path / "own", models=models, providers=providers) as running:
            usage = (await ask(running, "five")).json()["usage"]
            [row] = await closed(running)
            assert row.card == f"{shipped().version} openai/gpt-5"
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") or 0
            gpt5 = shipped().price("openai", "gpt-5", shipped().date)
            assert gpt5 is not None
            assert row.cost_nano == nano_of(gpt5, usage["prompt_tokens"], cached, usage["completion_tokens"])
            assert (await catalogue(running))["five"]["cachedInputMicrosPerMillion"] == gpt5.cached_input


def nano_of(price: PriceConfig, given: int, cached: int, taken: int) -> int:
    assert price.cached_input is not None
    return ((given - cached) * price.input + cached * price.cached_input + taken * price.output + 500) // 1000


@pytest.mark.parametrize("count", ["bytes", "tokens"])
async def test_a_cut_answer_is_counted_as_it_was_asked_for(tmp_path: Path, count: str) -> None:
    if count == "tokens":
        pytest.importorskip("bpe_openai", reason="the `tokenizers` extra")
    models = {"four": ModelConfig((RouteConfig("scripted", "gpt-4o"),))}
    sections = {"meter": {"count": count}}
    async with gateway(tmp_path, models=models, sections=sections) as running:
        text = "the quick brown fox jumps over the lazy dog"  # nine tokens, 43 bytes
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await chat(connection, f"hello\nscript: say {text}; pause 1ms; reset", key=KEY, model="four", stream=True)
        assert b"lazy" in reply.body
        [row] = await closed(running)
        [opened] = [row.opened for row in await running.server.gateway.app.store.rows()]
        assert row.source == "estimated"
        assert row.output_tokens == (9 if count == "tokens" else 11)
        assert (opened.reserved_input < 60) == (count == "tokens")
