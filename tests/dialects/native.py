"""A gateway whose providers speak Ollama, Cohere and OpenAI, all of them the scripted one; and the cuts of a stream.

The models are called as the dialects are. SDKs are synchronous: `in_thread` runs a test's conversation beside the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.dialects.base import ProviderDecoder
from clawproxy.events import Event
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import NOTHING_RESTS, PROVIDER_KEY, Running, gateway

MODELS = ("ollama", "cohere", "openai")


@attrs.define
class Native:
    running: Running
    provider: ScriptedProvider

    @property
    def url(self) -> str:
        return self.running.url

    async def in_thread(self, conversation: Callable[[], None]) -> None:
        with trio.fail_after(20):
            await trio.to_thread.run_sync(conversation)

    def bodies(self) -> list[Any]:
        """What the provider was asked, in order."""
        return [entry.body for entry in self.provider.log.entries]


@asynccontextmanager
async def native(tmp_path: Path, **changes: Any) -> AsyncIterator[Native]:
    """Args: changes: fields of `Config` to replace."""
    async with ScriptedProvider.running() as provider:
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            "ollama": ProviderConfig(dialect="ollama", base_url=provider.url),
            "cohere": ProviderConfig(dialect="cohere", base_url=f"{provider.url}/v2", api_key=key),
            "openai": ProviderConfig(base_url=provider.base_url, api_key=key),
        }
        models = {name: ModelConfig((RouteConfig(name, "scripted-1", context_tokens=8192),)) for name in MODELS}
        async with gateway(tmp_path, sections=NOTHING_RESTS, **{"providers": providers, "models": models, **changes}) as running:
            yield Native(running, provider)


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, one by one, and cut in two anywhere."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def decoded(decoder: ProviderDecoder, pieces: list[bytes]) -> tuple[list[Event], bytes]:
    """All events of an answer, and the bytes that may go to a client of the same dialect."""
    batches = [*map(decoder.feed, pieces), decoder.close()]
    whole = [batch for batch in batches if batch is not None]
    return [event for batch in whole for event in batch.events], b"".join(batch.raw or b"" for batch in whole)
