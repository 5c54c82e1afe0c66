"""OpenClaw, unmodified, one agent turn through each of its ways to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.clients.kit import KEY, MODEL, Ran, Stage, check_row, program, stage

SWITCHES = {"OPENCLAW_NO_AUTO_UPDATE": "1"}


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
]


def settings(on: Stage, adapter: Adapter) -> dict[str, Any]:
    model = {
        "id": MODEL,
        "name": "Test model",
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 1, "output": 2, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": 100_000,
        "maxTokens": 4096,
    }
    claw = {"baseUrl": on.url + adapter.path, "apiKey": KEY, "api": adapter.api, "models": [model]}
    return {"models": {"providers": {"claw": claw}}, "agents": {"defaults": {"model": {"primary": f"claw/{MODEL}"}}}}


async def turn(on: Stage, config: dict[str, Any], prompt: str) -> Ran:
    file = on.home / "openclaw.json"
    file.write_text(json.dumps(config))
    command = [program("openclaw", "openclaw"), "agent", "exec", prompt, "--config", str(file), "--json", "--timeout", "120"]
    return await on.run(command, SWITCHES)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.api)
async def test_a_turn_with_a_tool(tmp_path: Path, adapter: Adapter) -> None:
    """The model calls OpenClaw's shell, reads what it printed, and answers."""
    async with stage(tmp_path, dialect=adapter.dialect, path=adapter.provider_path) as on:
        on.provider.will(
            'tool exec {"command": "echo claw-$((6 * 7))"}; usage 900 30', "say The shell said forty-two.; usage 1000 6"
        )
        ran = await turn(on, settings(on, adapter), "Ask the shell for six times seven.")
    assert ran.code == 0, ran.stderr
    said = ran.document()
    assert (said["ok"], said["final"]) == (True, "The shell said forty-two.")
    assert (said["provider"], said["model"], said["assistantTurns"]) == ("claw", MODEL, 2)
    assert (said["toolSummary"]["calls"], said["toolSummary"]["tools"]) == (1, ["exec"])
    assert said["usage"]["output"] == 36
    assert "claw-42" in json.dumps(on.asked()[1])
    called, answered = on.rows
    check_row(called, adapter.surface, finish=adapter.tools)
    check_row(answered, adapter.surface, finish=adapter.stop)
    assert (answered["usage"]["input_tokens"], answered["usage"]["output_tokens"]) == (1000, 6)
    assert not on.outside.asked
