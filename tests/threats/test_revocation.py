"""W-33 and A-12 as processes: `clawproxy keys revoke` in one, open connections to another; and a token whose time is over."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from clawproxy.scripted import ScriptedProvider
from tests.e2e.process import CLI, Served, served, settings
from tests.e2e.websocket_client import Frames, open_raw
from tests.plugins.issuing import EC, KEYS, signed
from tests.threats.kit import document, post, say

SECRETS = {"TEST_CLIENT_KEY": "sk-client-0918273645abcdef", "TEST_PROVIDER_KEY": "sk-provider-5a6b7c8d9e0f"}
BOUND = 5.0
"""Seconds within which no credential works any more."""


class Lateness:
    """How much later than asked for this machine lets a process go on: what no gateway can do anything about."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        while True:
            begun = time.monotonic()
            await trio.sleep(0.05)
            self.seconds += max(0.0, time.monotonic() - begun - 0.06)


async def command(folder: Path, *words: str) -> str:
    done = await trio.run_process([*CLI, *words, "--config", str(folder / "clawproxy.toml")], capture_stdout=True)
    return done.stdout.decode()


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    issuer = f"""
[plugins.auth.issuers.corp]
issuer    = "https://login.test"
audiences = ["gateway"]
jwks      = "file:{tmp_path}/keys.json"
leeway    = "1s"
"""
    async with (
        ScriptedProvider.running() as provider,
        served(tmp_path, settings(tmp_path, provider.base_url) + issuer, **SECRETS) as it,
    ):
        yield it


async def asked(it: Served, token: str) -> int:
    return (await say(it.address, post(document(model="gpt-4-turbo"), headers={"Authorization": f"Bearer {token}"}))).status


@pytest.mark.slow
async def test_w33_a_key_revoked_by_another_process_ends_open_connections(tmp_path: Path) -> None:
    """W-33 and A-12: over HTTP the last 200 is within 5 s; on a WebSocket the error, and the close code 4401; so ends a token at
    its `exp`. A new connection gets no further, and others go on."""
    async with world(tmp_path) as it, trio.open_nursery() as nursery:
        made = await command(tmp_path, "keys", "create", "app")
        key = next(word for word in made.split() if word.startswith("claw_"))
        ends = time.time() + 4
        claims = {"iss": "https://login.test", "aud": "gateway", "sub": "ann", "exp": ends}
        jwt = signed(EC, {"alg": "ES256", "kid": "ec"}, claims)
        streams = [await trio.open_tcp_stream(*it.address) for _ in range(3)]
        tokens = [key, jwt, SECRETS["TEST_CLIENT_KEY"]]
        revoked, expired, other = [
            Frames(stream, await open_raw(stream, token)) for stream, token in zip(streams, tokens, strict=True)
        ]
        for each in (revoked, expired, other):
            assert (await each.next())["type"] == "auth_ok"
        assert [await asked(it, token) for token in tokens] == [200] * 3
        lateness = Lateness()
        nursery.start_soon(lateness.watch)
        assert "revoked" in await command(tmp_path, "keys", "revoke", "app")
        since, took = time.monotonic(), {}

        async def ended(name: str, frames: Frames, begun: float) -> None:
            assert (await frames.next())["error"] == "auth.expired"
            assert await frames.close_code() == 4401
            took[name] = time.monotonic() - begun

        async def last_200(name: str, token: str, begun: float) -> None:
            while await asked(it, token) == 200:
                await trio.sleep(0.1)
            took[name] = time.monotonic() - begun

        until_then = ends + 1 - time.time()  # with the leeway
        with trio.fail_after(60):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(ended, "revoked", revoked, since)
                waiting.start_soon(last_200, "revoked, over HTTP", key, since)
                waiting.start_soon(ended, "expired", expired, since + until_then)
                waiting.start_soon(last_200, "expired, over HTTP", jwt, since + until_then)
        print({name: round(seconds, 2) for name, seconds in took.items()}, f"late by {lateness.seconds:.2f} s")
        for name, seconds in took.items():
            assert seconds < BOUND + lateness.seconds, name
        assert took["expired"] > -0.5, "not before its time"
        assert await asked(it, tokens[2]) == 200
        with trio.move_on_after(0.05) as still_open:
            await other.next()
        assert still_open.cancelled_caught
        late = await trio.open_tcp_stream(*it.address)
        assert (await Frames(late, await open_raw(late, key)).next())["error"] == "auth.expired"
        for stream in (*streams, late):
            await stream.aclose()
        nursery.cancel_scope.cancel()
