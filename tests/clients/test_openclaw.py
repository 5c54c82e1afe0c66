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
        on.provider.will(
            'tool exec {"command": "echo claw-$((6 * 7))"}; usage 900 30', "say The shell said forty-two.; usage 1000 6"
        )
        ran = await turn(on, custom(on, adapter), "Ask the shell for six times seven.")
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


async def test_a_killed_client_stops_the_provider(tmp_path: Path) -> None:
    async with stage(tmp_path, model=MODEL) as on:
        on.provider.always("Hello", Stall())
        assert await on.hang_up(*openclaw(on, custom(on, ADAPTERS[0]), "agent", "exec", "Say hello.")) < 1
    check_hung_up(on, "openai_chat")
