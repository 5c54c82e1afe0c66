"""Claude Code, unmodified and headless, through the Messages surface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clawproxy.scripted import Stall
from tests.clients.kit import KEY, Stage, check_hung_up, check_row, program, stage

MODEL = "claude-sonnet"
SWITCHES = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
"""No telemetry, no error reports, no updates."""


def claude(on: Stage, prompt: str, credential: str = "ANTHROPIC_AUTH_TOKEN", **switches: str) -> tuple[list[str], dict[str, str]]:
    """One prompt, its events printed as they come."""
    output = ["--output-format", "stream-json", "--include-partial-messages", "--verbose"]
    command = [program("claude_code", "claude"), "-p", prompt, "--model", MODEL, "--allowed-tools", "Bash", *output]
    return command, {"ANTHROPIC_BASE_URL": on.url, credential: KEY, **SWITCHES, **switches}


def deltas(events: list[Any]) -> list[str]:
    """The text of the stream, as Claude Code got it."""
    inner = [event["event"] for event in events if event["type"] == "stream_event"]
    return [event["delta"]["text"] for event in inner if event["type"] == "content_block_delta" and "text" in event["delta"]]


@pytest.mark.parametrize("credential", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
async def test_a_streamed_turn(tmp_path: Path, credential: str) -> None:
    async with stage(tmp_path, dialect="anthropic", model=MODEL, path="") as on:
        on.provider.always("Hello from the script.")
        ran = await on.run(*claude(on, "Say hello.", credential))
    assert ran.code == 0, ran.stdout
    events = ran.documents()
    result = events[-1]
    assert (result["subtype"], result["is_error"], result["result"]) == ("success", False, "Hello from the script.")
    assert deltas(events) == ["Hello", " from", " the", " script."]
    [row] = on.rows
    check_row(row, "anthropic", MODEL)
    usage = result["modelUsage"][MODEL]
    assert (usage["inputTokens"], usage["outputTokens"]) == (row["usage"]["input_tokens"], row["usage"]["output_tokens"])
    [asked] = on.asked()
    assert asked["model"] == "scripted-1"
    assert asked["context_management"]["edits"], "what no other format has reaches a provider of the same"
    assert asked["thinking"]["type"] == "adaptive"
    assert {tool["name"] for tool in asked["tools"]} >= {"Bash", "Edit", "Read", "Write"}
    assert on.fields()["anthropic-beta"].startswith("claude-code-"), "and so do the headers that its body relies on"
    assert not [name for name in on.fields() if name.startswith(("x-claude", "x-stainless", "x-app"))], "and no others"
    assert not on.outside.asked


async def test_it_finds_the_models_of_the_gateway(tmp_path: Path) -> None:
    async with stage(tmp_path, dialect="anthropic", model=MODEL, path="") as on:
        ran = await on.run(*claude(on, "Say hello.", CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1"))
    assert ran.code == 0, ran.stdout
    found = json.loads((on.home / ".claude" / "cache" / "gateway-models.json").read_text())
    assert [model["id"] for model in found["models"]] == [MODEL]


PROVIDERS = [
    ("anthropic", "", False),
    ("openai_chat", "/v1", False),
    ("openai_chat", "/v1", True),
    ("openai_responses", "/v1", False),
    ("gemini", "/v1beta", False),
    ("ollama", "", True),
]


@pytest.mark.parametrize(("dialect", "path", "plain"), PROVIDERS)
async def test_a_turn_with_a_tool(tmp_path: Path, dialect: str, path: str, plain: bool) -> None:
    """The model calls Claude Code's shell, reads what it printed, and answers; whatever the provider speaks.

    Args:
        plain: without what only Anthropic has.
    """
    call = {"command": "echo claw-$((6 * 7))", "description": "Six times seven"}
    switches = {"CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1"} if plain else {}
    async with stage(tmp_path, dialect=dialect, model=MODEL, path=path) as on:
        on.provider.will(f"tool Bash {json.dumps(call)}; usage 900 30", "say The shell said forty-two.; usage 1000 6")
        ran = await on.run(*claude(on, "Ask the shell for six times seven.", **switches))
    assert ran.code == 0, ran.stdout
    result = ran.documents()[-1]
    assert (result["is_error"], result["num_turns"], result["result"]) == (False, 2, "The shell said forty-two.")
    assert "claw-42" in json.dumps(on.asked()[1])
    called, answered = on.rows
    check_row(called, "anthropic", MODEL, finish="tool_calls")
    check_row(answered, "anthropic", MODEL)
    assert (answered["usage"]["input_tokens"], answered["usage"]["output_tokens"]) == (1000, 6)
    assert not on.outside.asked


async def test_a_killed_client_stops_the_provider(tmp_path: Path) -> None:
    async with stage(tmp_path, dialect="anthropic", model=MODEL, path="") as on:
        on.provider.always("Hello", Stall())
        assert await on.hang_up(*claude(on, "Say hello.")) < 1
    check_hung_up(on, "anthropic")
