"""An answer played again tells nobody what another one said beside the same question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clawproxy_cache
from clawproxy.config import KeyConfig, SecretRef
from clawproxy.config.schema import PipelineConfig
from clawproxy.scripted.script import parse
from tests.e2e.harness import KEY, gateway
from tests.matrix.expected import BASE
from tests.policy.prompts import REQUESTS
from tests.policy.samples import RESPONSES_STREAM, RESPONSES_WHOLE, written
from tests.policy.test_answers_canary import MODELS
from tests.policy.test_prompts_canary import hidden, post

ORDER = ("audit", "auth", "sanitize", "truncate", "cache", "router", "meter")
MINE: dict[str, Any] = {"metadata": {"customer": "mine-alone"}, "user": "mine-alone", "safety_identifier": "mine-alone"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beside", [*MINE, "all"])
async def test_what_a_response_repeats_of_its_request_stays_with_who_said_it(tmp_path: Path, stream: bool, beside: str) -> None:
    said = MINE if beside == "all" else {beside: MINE[beside]}
    whole = {**RESPONSES_WHOLE, **said}
    events = [
        {**event, "response": {**event["response"], **said}} if "response" in event else event for event in RESPONSES_STREAM
    ]
    raw = written("openai_responses", events) if stream else json.dumps(whole)
    question = {"input": "The same.", "store": False, "stream": stream}
    keys = {name: KeyConfig(SecretRef("", secret)) for name, secret in (("one", KEY), ("two", KEY[::-1]))}
    async with gateway(
        tmp_path,
        models=MODELS,
        dialects=BASE,
        pipeline=PipelineConfig(order=ORDER),
        plugins={"cache": clawproxy_cache},
        sections={"cache": {"scope": "global"}},
        keys=keys,
    ) as running:
        script = f"raw {json.dumps(raw)}; end bare"
        for expected in ("miss", "hit"):
            if expected == "miss":
                running.provider.will(parse(script))
            reply = await post(running, "/v1/responses", {**question, **said}, "via-openai_responses")
            assert (reply.headers["x-claw-cache"], b"mine-alone" in reply.body) == (expected, True)
        reply = await post(running, "/v1/responses", question, "via-openai_responses", key=KEY[::-1])
        assert reply.headers["x-claw-cache"] == "miss"
        assert b"mine-alone" not in reply.body


@pytest.mark.parametrize("client", REQUESTS)
async def test_any_string_that_differs_is_another_request(tmp_path: Path, client: str) -> None:
    """Every place of every format: a word more in it, and the provider is asked again."""
    path, body = REQUESTS[client]
    free = {"metadata", "labels", "user", "tool_call_id"}  # who asks, where the answer does not repeat it
    async with gateway(
        tmp_path,
        models=MODELS,
        dialects=BASE,
        pipeline=PipelineConfig(order=ORDER),
        plugins={"cache": clawproxy_cache},
        sections={"cache": {"scope": "global"}, "sanitize": {"input": "off", "output": "off"}},
    ) as running:
        await post(running, path, body, f"via-{client}")
        played = []
        for place, made in hidden(body):
            if not free & set(place) and place[-1] != "KEY":  # a field that no provider gets may be anything
                reply = await post(running, path, made, f"via-{client}")
                if reply.headers.get("x-claw-cache") == "hit":
                    played.append(place)
    assert not played, played
