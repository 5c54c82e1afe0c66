"""Prompts that do not fit, over real sockets: what the provider gets, what the client is told, what is written down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import KeyConfig, ModelConfig, PriceConfig, RouteConfig, SecretRef
from clawproxy.config.prices import Price
from clawproxy.scripted import Script
from clawproxy.scripted.script import parse
from clawproxy_truncate.summary import HEADER
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import chat
from tests.e2e.test_claw_socket import socket

CHEAP = PriceConfig(Price(1_000_000), Price(1_000_000))


@asynccontextmanager
async def small(
    tmp_path: Path, strategy: str, said: str | Script = "say They met in Zürich.", **more: Any
) -> AsyncIterator[Running]:
    models = {
        "test-model": ModelConfig((RouteConfig("scripted", "big", context_tokens=400),), price=CHEAP),
        "cheap": ModelConfig((RouteConfig("scripted", "small", context_tokens=4000),), price=CHEAP),
    }
    keys = {"test": KeyConfig(SecretRef("", KEY), models=("test-model",), user="ann")}
    section = {"http": "truncate", "strategy": strategy, "summary_model": "cheap", "summary_tokens": 64, **more}
    async with gateway(tmp_path, models=models, keys=keys, sections={"truncate": section}) as running:
        running.provider.by_model["small"] = said if isinstance(said, Script) else parse(said)
        running.provider.by_model["big"] = parse("say fine")
        yield running


def turns(count: int) -> list[dict[str, Any]]:
    messages = []
    for turn in range(count):
        messages += [{"role": "user", "content": f"{turn} " * 60}, {"role": "assistant", "content": f"{turn}! " * 20}]
    return [*messages, {"role": "user", "content": "And now?"}]


def audited(running: Running) -> list[dict[str, Any]]:
    folder = running.config.server.state_dir / "audit"
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


async def test_a_summary_is_asked_for_metered_and_kept(tmp_path: Path) -> None:
    async with small(tmp_path, "summarize") as running:
        async with await running.connect() as connection:
            for _ in range(2):
                with trio.fail_after(5):
                    reply = await chat(connection, "", key=KEY, messages=turns(12), stream=False)
                assert reply.status == 200
                assert reply.json()["choices"][0]["message"]["content"] == "fine"
        asked, first, second = running.provider.log.entries  # the second one found the summary
        assert [entry.model for entry in (asked, first, second)] == ["small", "big", "big"]
        assert "0 0 0 " not in json.dumps(asked.body)  # the first turn stays as it is
        assert "1! 1! " in asked.body["messages"][1]["content"]
        assert first.body["messages"] == second.body["messages"]
        assert first.body["messages"][2]["content"] == HEADER + "They met in Zürich."
        rows = await running.server.gateway.app.store.rows()
        assert sorted(row.opened.model for row in rows) == ["cheap", "test-model", "test-model"]
        assert {(row.opened.key, row.opened.user) for row in rows} == {("test", "ann")}
        with trio.fail_after(2):
            while len(audited(running)) < 3:
                await trio.sleep(0.01)
        child, parent, _ = audited(running)
        assert child["model"] == "cheap"
        assert child["client_request_id"] == parent["request_id"]
        assert "prompt_truncated" in parent["notices"]


@pytest.mark.parametrize("script", ["stall", "status 500", "say a; cut", "pause 60ms; stall"])
async def test_without_a_summary_the_prompt_is_truncated(tmp_path: Path, script: str) -> None:
    async with small(tmp_path, "summarize", script, summary_timeout="40ms") as running:
        async with await running.connect() as connection:
            with trio.fail_after(5):
                reply = await chat(connection, "", key=KEY, messages=turns(12), stream=False)
            assert reply.json()["choices"][0]["message"]["content"] == "fine"
        sent = running.provider.log.last.body["messages"]
        assert sent[0]["content"].startswith("0 0 ")
        assert HEADER not in json.dumps(sent)
        with trio.fail_after(2):
            await running.at_rest()


async def test_a_pinned_message_stays_and_the_client_is_told(tmp_path: Path) -> None:
    async with small(tmp_path, "middle_out") as running, socket(running) as connection:
        messages = turns(12)
        messages[8]["pinned"] = True
        await connection.say({"type": "llm_request", "id": "a", "model": "test-model", "messages": messages})
        heard = await connection.end()
        [notice] = [frame for frame in heard if frame["type"] == "llm_notice"]
        assert notice["code"] == "prompt_truncated"
        said = json.dumps(notice)
        assert '"strategy": "middle_out"' in said
        assert '"kept_tokens"' in said
        sent = running.provider.log.last.body["messages"]
        assert any(message["content"].startswith("4 4 ") for message in sent)
        assert not any(message["content"].startswith("5 5 ") for message in sent)
        assert all("pinned" not in message for message in sent)
        messages[8]["pinned"] = "yes"
        await connection.say({"type": "llm_request", "id": "b", "model": "test-model", "messages": messages})
        refused = (await connection.end())[-1]
        assert refused["type"] == "error"
        assert refused["param"] == "messages[8].pinned"
