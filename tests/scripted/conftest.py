"""A provider and a raw client for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from clawproxy.scripted import ScriptedProvider
from tests.scripted.raw_client import Clients


@pytest.fixture
async def connect() -> AsyncIterator[Clients]:
    clients = Clients()
    await trio.lowlevel.checkpoint()  # async, so that the sockets are closed inside the run that owns them
    try:
        yield clients
    finally:
        for client in clients.opened:
            client.close()


@pytest.fixture
async def provider(nursery: trio.Nursery) -> ScriptedProvider:
    provider = ScriptedProvider()
    await nursery.start(provider.serve)
    return provider
