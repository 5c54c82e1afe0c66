"""Conversations over real sockets go where their prompt is cached, and the client sees in its figures that it was."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, PROVIDER_KEY, gateway
from tests.e2e.http_client import chat

NAMES = "abc"


@pytest.mark.parametrize(("affinity", "session"), [("prefix", False), ("session", True), ("off", False)])
async def test_a_conversation_stays_where_it_is_cached(tmp_path: Path, affinity: str, session: bool) -> None:
    async with AsyncExitStack() as stack:
        providers, instances = {}, {}
        for name in NAMES:
            instance = await stack.enter_async_context(ScriptedProvider.running("say well", cache=300.0))
            instances[name] = instance
            providers[name] = ProviderConfig(base_url=instance.base_url, api_key=SecretRef("", PROVIDER_KEY))
        routes = tuple(RouteConfig(name, "m") for name in NAMES)
        models = {"test-model": ModelConfig(routes, "load", affinity=affinity)}
        running = await stack.enter_async_context(gateway(tmp_path, providers=providers, models=models))
        cached, reasons = [], []
        async with await running.connect() as connection:
            for talk in range(4):
                messages: list[dict[str, str]] = []
                for turn in range(5):
                    messages.append({"role": "user", "content": " ".join(f"{talk}w{turn}x{word}" for word in range(400))})
                    more: dict[str, Any] = {"prompt_cache_key": f"talk-{talk}"} if session else {}
                    with trio.fail_after(5):
                        reply = await chat(connection, "", key=KEY, messages=messages, stream=False, **more)
                    assert reply.status == 200
                    cached.append(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
                    reasons.append(reply.headers["x-claw-route"].rpartition("=")[2])
                    messages.append({"role": "assistant", "content": "well"})
        seen = [len(instance.log.entries) for instance in instances.values()]
        assert sum(seen) == 20
        again = 4 * (400 + 800 + 1200 + 1600)
        if affinity == "off":
            assert sum(cached) < 0.8 * again
            assert set(reasons) == {"least_loaded"}
        else:
            assert sum(cached) > 0.9 * again
            assert reasons == ["least_loaded", "cached", "cached", "cached", "cached"] * 4
            assert all(count % 5 == 0 for count in seen)
