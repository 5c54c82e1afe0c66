"""The sweep of `test_sweep_sockets` over what only the Claw WebSocket does: a steered answer, a streamed prompt, credits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import test_sweep_sockets as sockets
from tests.e2e.harness import KEY
from tests.e2e.test_sweep_sockets import ENDS, LEFT, Client, ordinary
from tests.e2e.websocket_client import Frames, masked, open_raw


async def talk(client: Client, *said: dict[str, Any], then: dict[str, list[dict[str, Any]]]) -> None:
    """Say something, and `then[TYPE]`, once, at the first message of that type; to the end of the request."""
    connection = await client.connect()

    async def say(*messages: dict[str, Any]) -> None:
        await connection.send_all(b"".join(masked(json.dumps(message).encode()) for message in messages))

    with contextlib.suppress(*LEFT):
        frames = Frames(connection, await open_raw(connection, KEY))
        await frames.next()
        await say(*said)
        while (kind := (await frames.next())["type"]) not in {"llm_response_end", "error"}:
            await say(*then.pop(kind, []))


def asking(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"type": "llm_request", "id": "r", "model": "test-model", "prompt": prompt, **fields}


async def steered(client: Client) -> None:
    more = {"type": "llm_append", "id": "r", "content": "script: tokens 2"}
    await talk(client, asking("script: say one; stall"), then={"llm_token": [more]})


async def steered_at_once(client: Client) -> None:
    more = {"type": "llm_append", "id": "r", "content": "script: tokens 2"}
    await talk(client, asking("script: stall"), more, then={})


async def streamed_prompt(client: Client) -> None:
    pieces = [{"type": "llm_prompt_chunk", "id": "r", "content": piece} for piece in ("script: ", "tok", "ens 2")]
    last = pieces.pop() | {"final": True}
    await talk(client, asking("", prompt_stream=True), *pieces, {"type": "ping"}, then={"pong": [last]})


async def flow_control(client: Client) -> None:
    credit = {"type": "credit", "id": "r", "n": 100}
    auth = {"type": "auth", "token": KEY, "credit": True}
    await talk(client, auth, asking("script: tokens 3"), then={"llm_response_start": [credit]})


SCENARIOS: list[Callable[[Client], Awaitable[None]]] = [steered, steered_at_once, streamed_prompt, flow_control]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_invariants_hold_wherever_it_ends(
    tmp_path: Path, scenario: Callable[[Client], Awaitable[None]], end: str
) -> None:
    await sockets.test_the_invariants_hold_wherever_it_ends(tmp_path, scenario.__name__, ordinary, scenario, 2, end)
