"""What policies change, and what vendors add, breaks no format's own structure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import gateway
from tests.matrix.expected import BASE, PROVIDERS
from tests.policy.prompts import REQUESTS
from tests.policy.samples import ANTHROPIC_STREAM, written
from tests.policy.test_answers_canary import MODELS, asked
from tests.policy.test_prompts_canary import post

WORDS = ("content", "part", "call", "block", "thinking", "instructions", "type", "order", "text", "function", "name")


@pytest.mark.parametrize("client", REQUESTS)
async def test_a_list_of_words_may_hold_those_that_formats_use(tmp_path: Path, client: str) -> None:
    """`extra` is text to a policy, the names and the order in it too: what it takes out may be refused, but breaks nothing."""
    path, body = REQUESTS[client]
    for word in WORDS:
        section: dict[str, dict[str, Any]] = {"sanitize": {"words": {"list": [word]}, "output": "off"}}
        async with gateway(tmp_path / word, models=MODELS, dialects=BASE, sections=section) as running:
            for provider in PROVIDERS:
                reply = await post(running, path, body, f"via-{provider}")
                assert reply.status < 500, (word, provider, reply.body)


@pytest.mark.parametrize("kind", ["content_block_paused", "content_block", "message_news", "content_block_start_2", "x"])
async def test_an_event_of_tomorrow_passes(tmp_path: Path, kind: str) -> None:
    events = [*ANTHROPIC_STREAM[:-2], {"type": kind, "index": 0, "news": "tomorrow"}, *ANTHROPIC_STREAM[-2:]]
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await asked(running, "anthropic", "anthropic", written("anthropic", events), stream=True)
    assert b"tomorrow" in reply.body
    assert b"event: error" not in reply.body
    assert json.loads(reply.body.decode().split("data: ")[-1]) == {"type": "message_stop"}
