"""Codex, unmodified and headless, through the Responses surface: over HTTP, and in its WebSocket mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clawproxy.scripted import Stall
from tests.clients.kit import KEY, Ran, Stage, check_hung_up, check_row, documented, program, stage

MODEL = "gpt"
PROMPT = "Ask the shell for six times seven."
SCRIPT = ('tool exec_command {"cmd": "echo claw-$((6 * 7))"}; usage 900 30', "say The shell said forty-two.; usage 1000 6")
SWITCHES = {
    "check_for_update_on_startup": "false",
    "analytics.enabled": "false",
    "features.plugins": "false",
    "model_providers.claw.request_max_retries": "0",
    "model_providers.claw.stream_max_retries": "0",
}


def codex(
    on: Stage, prompt: str, *, websockets: bool, access: str = "danger-full-access", **others: str
) -> tuple[list[str], dict[str, str]]:
    """One prompt, its items printed as they come; with the configuration that docs/clients.md gives."""
    folder = on.home / ".codex"
    folder.mkdir()
    [config] = documented("toml", on.url)
    (folder / "config.toml").write_text(config)
    switches = {**SWITCHES, **others, "model_providers.claw.supports_websockets": json.dumps(websockets)}
    options = [word for name, value in switches.items() for word in ("-c", f"{name}={value}")]
    options += ["--json", "--skip-git-repo-check", "--sandbox", access]
    return [program("codex", "codex"), "exec", *options, prompt], {"CLAW_KEY": KEY}


def check_turn(on: Stage, ran: Ran) -> None:
    """The model called Codex's shell, read what it printed, and answered."""
    assert ran.code == 0, ran.stdout
    events = ran.documents()
    assert not [event for event in events if event["type"] in {"error", "turn.failed"}]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    [shell] = [item for item in items if item["type"] == "command_execution"]
    assert (shell["aggregated_output"].strip(), shell["exit_code"]) == ("claw-42", 0)
    assert [item["text"] for item in items if item["type"] == "agent_message"] == ["The shell said forty-two."]
    usage = events[-1]["usage"]
    assert (events[-1]["type"], usage["input_tokens"], usage["output_tokens"]) == ("turn.completed", 1900, 36)
    assert "claw-42" in json.dumps(on.asked()[-1])
    called, answered = on.rows
    check_row(called, "openai_responses", MODEL, finish="tool_calls")
    check_row(answered, "openai_responses", MODEL)
    assert (answered["usage"]["input_tokens"], answered["usage"]["output_tokens"]) == (1000, 6)
    assert not on.outside.asked


@pytest.mark.parametrize("websockets", [False, True], ids=["http", "websocket"])
async def test_a_turn_with_a_tool(tmp_path: Path, websockets: bool) -> None:
    async with stage(tmp_path, dialect="openai_responses", model=MODEL) as on:
        on.provider.will(*SCRIPT)
        ran = await on.run(*codex(on, PROMPT, websockets=websockets))
        assert await on.metric("clawproxy_websocket_connections_total") == int(websockets)
    check_turn(on, ran)
    first, second = on.asked()
    kinds = {tool["type"] for tool in first["tools"]}
    assert kinds == {"function", "namespace", "web_search"}, "what no other format has reaches a provider of the same"
    assert first["include"] == ["reasoning.encrypted_content"]
    before = len(first["input"])
    assert second["input"][:before] == first["input"], "the provider gets the whole conversation, whatever came over the socket"
    assert [item["type"] for item in second["input"][before:]] == ["function_call", "function_call_output"]
    assert not [name for name in on.fields() if name.startswith(("x-codex", "session", "thread", "originator"))]


PROVIDERS = [("openai_chat", "/v1"), ("anthropic", ""), ("gemini", "/v1beta"), ("ollama", "")]


@pytest.mark.parametrize(("dialect", "path"), PROVIDERS, ids=[dialect for dialect, _ in PROVIDERS])
async def test_a_turn_by_another_format(tmp_path: Path, dialect: str, path: str) -> None:
    async with stage(tmp_path, dialect=dialect, model=MODEL, path=path) as on:
        on.provider.will(*SCRIPT)
        ran = await on.run(*codex(on, PROMPT, websockets=False, web_search="disabled"))
    check_turn(on, ran)


@pytest.mark.parametrize(("access", "complete"), [("read-only", True), ("danger-full-access", False)])
async def test_a_search_that_the_provider_does_not_have(tmp_path: Path, access: str, complete: bool) -> None:
    """Codex asks for a cached one by itself, and for a live one where it may do everything."""
    async with stage(tmp_path, model=MODEL) as on:
        on.provider.always("Hello.")
        ran = await on.run(*codex(on, "Say hello.", websockets=False, access=access))
    [row] = on.rows
    assert (ran.code == 0, row["outcome"] == "complete") == (complete, complete)
    if complete:
        assert "parameter_dropped" in row["notices"]
    else:
        assert row["error"] == "unsupported_parameter"
        assert "tools[8]" in ran.stdout


@pytest.mark.parametrize("websockets", [False, True], ids=["http", "websocket"])
async def test_a_killed_client_stops_the_provider(tmp_path: Path, websockets: bool) -> None:
    async with stage(tmp_path, dialect="openai_responses", model=MODEL) as on:
        on.provider.always("Hello", Stall())
        assert await on.hang_up(*codex(on, "Say hello.", websockets=websockets)) < 1
        assert await on.metric("clawproxy_websocket_connections_total") == int(websockets)
    check_hung_up(on, "openai_responses")
