"""A whole gateway over real sockets: the scripted provider behind it, the state on disk, everything on.

Used as `async with gateway(tmp_path) as running:`; leaving drains it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio

from clawproxy.config import Config, KeyConfig, ModelConfig, PoolConfig, ProviderConfig, RouteConfig, SecretRef, ServerConfig
from clawproxy.config.schema import Duration, LimitsConfig
from clawproxy.scripted import ScriptedProvider
from clawproxy.server import Listening, Server

KEY = "sk-test-0123456789abcdefghijklmnop"
PROVIDER_KEY = "sk-canary-4f1d0c8a9b7e6f5d4c3b2a1908172635"
ONCE: Mapping[str, Any] = {"retries": {"most": 0}}
"""`[plugins.router]` unless a test has its own: a provider fails as often as it was told to, and is not asked again."""
NOTHING_RESTS: Mapping[str, Any] = {"router": {**ONCE, "breaker": {"enabled": False}, "credentials": {"enabled": False}}}
"""`sections` for tests that make a provider fail again and again, and want it asked each time."""

CALM = LimitsConfig(shed_lag=Duration(60.0))
"""`limits` unless a test has its own: a busy machine is no reason to turn clients away."""


@attrs.define
class Running:
    server: Server
    provider: ScriptedProvider
    config: Config
    url: str
    admin: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    @property
    def websocket(self) -> str:
        return self.url.replace("http", "ws", 1) + "/websocket"

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)

    def forget_trouble(self) -> None:
        """Breakers are closed and credentials well, whatever a test made the provider do."""
        health = self.server.gateway.app.shared.get("router.health")
        if health is not None:
            health.breakers.clear()
            health.credentials.clear()

    async def at_rest(self) -> None:
        """Wait until nothing is held any more; the caller bounds it."""
        while not self.is_at_rest():
            await trio.sleep(0.002)

    def is_at_rest(self) -> bool:
        gateway = self.server.gateway
        pools = gateway.current.upstream.statistics().values()  # type: ignore[attr-defined]
        return not gateway.in_flight and not gateway.admission.active and not any(pool.active for pool in pools)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def make_config(tmp_path: Path, base_url: str, **changes: Any) -> Config:
    config = Config(
        server=ServerConfig(listen=("127.0.0.1:0",), admin="127.0.0.1:0", state_dir=tmp_path / "state"),
        providers={
            "scripted": ProviderConfig(base_url=base_url, api_key=SecretRef("", PROVIDER_KEY), pool=PoolConfig(max=512)),
        },
        models={"test-model": ModelConfig((RouteConfig("scripted", "scripted-1", context_tokens=100_000),))},
        keys={"test": KeyConfig(SecretRef("", KEY))},
        limits=CALM,
    )
    changes["plugins"] = changes.pop("config_plugins", {})
    return attrs.evolve(config, **changes)


@asynccontextmanager
async def gateway(
    tmp_path: Path,
    *,
    plugins: dict[str, object] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    dialects: Mapping[str, str] | None = None,
    websocket: bool = False,
    **changes: Any,
) -> AsyncIterator[Running]:
    """Args:
    plugins: objects, by name.
    sections: `[plugins.NAME]`.
    dialects: one provider for each of these, of that name, all of them the scripted one: what their `base_url` ends with.
    websocket: what those providers' `websocket` is.
    changes: fields of `Config` to replace.
    """
    changes["config_plugins"] = {"router": ONCE, **(sections or {})}
    provider = ScriptedProvider()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(provider.serve, "127.0.0.1", 0)
        if dialects is not None:
            changes["providers"] = {
                name: ProviderConfig(name, url.removesuffix("/v1") + path, SecretRef("", PROVIDER_KEY), websocket=websocket)
                for name, path in dialects.items()
            }
        config = make_config(tmp_path, url, **changes)
        server = Server(config, ephemeral=False, plugins=plugins or {})
        ready: list[Listening] = []
        up = trio.Event()
        done = trio.Event()

        def note(listening: Listening) -> None:
            ready.append(listening)
            up.set()

        async def serve() -> None:
            try:
                await server.run(note, signals=False)
            finally:
                done.set()

        nursery.start_soon(serve)
        with trio.fail_after(10):
            await up.wait()
        assert ready[0].admin
        yield Running(server, provider, config, ready[0].listen[0], ready[0].admin)
        server.drain()
        server.hurry()
        with trio.fail_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
