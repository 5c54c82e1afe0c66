"""OpenClaw, unmodified, one agent turn through each of its ways to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from clawproxy.scripted import Stall
from tests.clients.kit import KEY, Ran, Stage, check_hung_up, check_row, documented, program, stage

MODEL = "gpt"
SWITCHES = {"OPENCLAW_NO_AUTO_UPDATE": "1", "CLAW_KEY": KEY}


PROMPT = "Ask the shell for six times seven."
SCRIPT = ('tool exec {"command": "echo claw-$((6 * 7))"}; usage 900 30', "say The shell said forty-two.; usage 1000 6")


@attrs.frozen
class Adapter:
    """Attributes:
    api: what `models.providers.ID.api` says.
    path: of its `baseUrl`.
    surface: what the gateway calls what it is asked there.
    dialect: of the provider behind; the same one.
    """

    api: str
    path: str
    surface: str
    dialect: str
    provider_path: str = "/v1"
    stop: str = "stop"
    tools: str = "tool_calls"


ADAPTERS = [
    Adapter("openai-completions", "/v1", "openai_chat", "openai_chat"),
    Adapter("openai-responses", "/v1", "openai_responses", "openai_responses"),
    Adapter("anthropic-messages", "", "anthropic", "anthropic", provider_path=""),
    Adapter("google-generative-ai", "/v1beta", "gemini", "gemini", provider_path="/v1beta"),
    Adapter("ollama", "", "ollama", "ollama", provider_path=""),
]


def custom(on: Stage, adapter: Adapter) -> Any:
    """The custom provider of docs/clients.md, by another adapter."""
    config = json.loads(documented("json", on.url)[0])
    config["models"]["providers"]["claw"].update(api=adapter.api, baseUrl=on.url + adapter.path)
    return config


def clawrouter(on: Stage) -> Any:
    """The configuration of docs/clients.md for the bundled plugin."""
    return json.loads(documented("json", on.url)[1])


async def turn(on: Stage, config: Any, prompt: str) -> Ran:
    return await on.run(*openclaw(on, config, "agent", "exec", prompt, "--json", "--timeout", "120"))


def openclaw(on: Stage, config: Any, *arguments: str) -> tuple[list[str], dict[str, str]]:
    file = on.home / ".openclaw" / "openclaw.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(config))
    return [program("openclaw", "openclaw"), *arguments], SWITCHES


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.api)
async def test_a_turn_with_a_tool(tmp_path: Path, adapter: Adapter) -> None:
    """The model calls OpenClaw's shell, reads what it printed, and answers."""
    async with stage(tmp_path, dialect=adapter.dialect, model=MODEL, path=adapter.provider_path) as on:
        on.provider.will(*SCRIPT)
        ran = await turn(on, custom(on, adapter), PROMPT)
    assert ran.code == 0, ran.stderr
    said = ran.document()
    assert (said["ok"], said["final"]) == (True, "The shell said forty-two.")
    assert (said["provider"], said["model"], said["assistantTurns"]) == ("claw", MODEL, 2)
    assert (said["toolSummary"]["calls"], said["toolSummary"]["tools"]) == (1, ["exec"])
    assert said["usage"]["output"] == 36
    assert "claw-42" in json.dumps(on.asked()[1])
    called, answered = on.rows
    check_row(called, adapter.surface, MODEL, finish=adapter.tools)
    check_row(answered, adapter.surface, MODEL, finish=adapter.stop)
    assert (answered["usage"]["input_tokens"], answered["usage"]["output_tokens"]) == (1000, 6)
    assert not on.outside.asked


ROUTES = [  # (the provider's dialect, its path, where the plugin asks then)
    ("openai_chat", "/v1", "openai_chat"),
    ("openai_responses", "/v1", "openai_responses"),
    ("anthropic", "", "anthropic"),
    ("gemini", "/v1beta", "gemini"),
]


@pytest.mark.parametrize(("dialect", "path", "surface"), ROUTES, ids=[dialect for dialect, _, _ in ROUTES])
async def test_the_clawrouter_plugin(tmp_path: Path, dialect: str, path: str, surface: str) -> None:
    """It finds the model in the catalogue, asks in the provider's own format, and prices what it used as the gateway does."""
    async with stage(tmp_path, dialect=dialect, model=MODEL, path=path) as on:
        on.provider.will(*SCRIPT)
        ran = await turn(on, clawrouter(on), PROMPT)
    assert ran.code == 0, ran.stderr
    said = ran.document()
    assert (said["ok"], said["final"], said["toolSummary"]["tools"]) == (True, "The shell said forty-two.", ["exec"])
    assert (said["provider"], said["model"]) == ("clawrouter", MODEL)
    assert "claw-42" in json.dumps(on.asked()[1])
    told = {"client": "openclaw", "agent_id": "main", "session_id": said["sessionId"], "project_id": None}
    for row, finish in zip(on.rows, ("tool_calls", "stop"), strict=True):
        check_row(row, surface, MODEL, finish=finish)
        assert row["attribution"] == told
    assert [row["client_request_id"] for row in on.rows] == [f"{said['sessionId']}:model:{number}" for number in (1, 2)]
    assert said["costUsd"] == pytest.approx(sum(row["cost_nano"] for row in on.rows) / 1e9)
    assert not on.outside.asked


async def test_the_clawrouter_plugin_lists_models_and_usage(tmp_path: Path) -> None:
    async with stage(tmp_path, model=MODEL) as on:
        config = clawrouter(on)
        listed = await on.run(*openclaw(on, config, "models", "list", "--all", "--provider", "clawrouter", "--refresh", "--json"))
        on.provider.will("say Hello.; usage 1000 6")
        assert (await turn(on, config, "Say hello.")).code == 0
        status = await on.run(*openclaw(on, config, "status", "--usage", "--json"))
    [model] = listed.document()["models"]
    assert (model["key"], model["contextWindow"], model["available"]) == ("clawrouter/gpt", 100_000, True)
    [usage] = status.document()["usage"]["providers"]
    assert (usage["provider"], usage["plan"]) == ("clawrouter", "Unmetered proxy key")
    assert usage["summary"] == "1 requests · 1,006 tokens · $0.0026 used"
    assert not on.outside.asked


async def test_a_killed_client_stops_the_provider(tmp_path: Path) -> None:
    async with stage(tmp_path, model=MODEL) as on:
        on.provider.always("Hello", Stall())
        assert await on.hang_up(*openclaw(on, custom(on, ADAPTERS[0]), "agent", "exec", "Say hello.")) < 1
    check_hung_up(on, "openai_chat")
