"""A stream that comes to the edge of its budget, in every client's format: it ends properly, its text is no more than was held,
and the provider's connection is closed at once. B-03: what is held is what the provider was told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import BudgetConfig
from clawproxy.scripted import Entry
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import fetch
from tests.e2e.test_budgets_sockets import MODELS
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.matrix import asking, reading
from tests.matrix.asking import Ask

pytestmark = pytest.mark.timed

LIMIT = 60
TRIES = 5
"""The best of them counts: the machine has other things to do."""
FINISHES = {"claw": "budget"}
"""Where it is not `length`: what a client is told."""
WORDS = {
    "openai_chat": b'"finish_reason":"length"',
    "openai_responses": b'"reason":"max_output_tokens"',
    "anthropic": b'"stop_reason":"max_tokens"',
    "gemini": b'"finishReason":"MAX_TOKENS"',
    "ollama": b'"done_reason":"length"',
    "cohere": b'"finish_reason":"MAX_TOKENS"',
}
"""The formats' own words for it."""


async def heard(running: Running, client: str, ask: Ask) -> reading.Seen:
    async with await running.connect() as stream:
        with trio.fail_after(10):
            if client == "claw":
                frames = Frames(stream, await open_raw(stream, KEY))
                await stream.send_all(masked(json.dumps(asking.claw(ask, "test-model")).encode()))
                got: list[dict[str, Any]] = []
                while not got or got[-1]["type"] not in ("llm_response_end", "error"):
                    said = await frames.next()
                    got += [said] if said["type"] != "auth_ok" else []
                return reading.claw(got)
            question = asking.HTTP[client](ask, "test-model")
            headers = {"authorization": f"Bearer {KEY}", **question.headers}
            reply = await fetch(stream, "POST", question.path, headers=headers, body=question.body)
    assert reply.status == 200
    assert reply.whole
    assert WORDS[client] in reply.body.replace(b": ", b":")
    return reading.HTTP[client](reply.body, ask.stream)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("client", ["claw", *WORDS])
async def test_b_03_the_edge_in_every_format(tmp_path: Path, client: str, stream: bool) -> None:
    took: list[float] = []
    budgets = {"day": BudgetConfig("global", f"{LIMIT} output_tokens", "day")}
    for number in range(TRIES if stream else 1):
        folder = tmp_path / str(number)
        async with gateway(folder, budgets=budgets, models=MODELS) as running:
            script = "script: pace 1ms; tokens 2000" if stream else f"script: say* {'x' * 300}; usage 5 300; end"
            seen = await heard(running, client, Ask(script, stream=stream))
            assert seen.ended or client == "openai_responses"
            assert seen.finish in (FINISHES.get(client, "length"), None)
            assert seen.error is None
            assert LIMIT - 8 < len(seen.text.encode()) <= LIMIT
            with trio.fail_after(5):
                await running.at_rest()
                await running.provider.log.wait_for(lambda log: not log.in_progress)
            [entry] = running.provider.log.entries
            assert said_to(entry) == LIMIT
            [row] = await running.server.gateway.app.store.rows()
            assert row.closed is not None
            assert row.opened.reserved_output == LIMIT
            assert row.closed.outcome == "truncated"
            [total] = await running.server.gateway.app.store.totals()
            assert 0 < total.used <= LIMIT, "what was reported beyond it is an overrun"
            if stream:
                assert (entry.state, row.closed.source) == ("closed_by_peer", "estimated")
                took.append((entry.closed_at or 0.0) - row.closed.closed)
                if took[-1] < 0.02:
                    break
    assert not stream or min(took) < 0.02


def said_to(entry: Entry) -> int:
    limit: int = entry.body.get("max_tokens") or entry.body.get("max_completion_tokens")
    return limit
