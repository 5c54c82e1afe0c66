"""Sockets towards a provider through TLS, and upgrades that are not what RFC 6455 says."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from wsproto.utilities import generate_accept_token

from clawproxy.config import Config, ProviderConfig, SecretRef
from clawproxy.dialects.openai_responses.provider import OpenAIResponsesProvider
from clawproxy.events import Event, Text
from clawproxy.messages import Route
from clawproxy.scripted.responses_socket import frame
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_request
from clawproxy.upstream.providers import Providers
from tests.upstream.kit import Conversation, RecordedPhases, Script, eventually, scripted_peer

ROUTE = Route("test", "m")
DELTA = {"type": "response.output_text.delta", "delta": "Hi.", "output_index": 0, "content_index": 0}
DONE = {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": []}}


def upgraded(*fields: str, key: str | None = None) -> bytes:
    accept = [] if key is None else [f"sec-websocket-accept: {generate_accept_token(key.encode()).decode()}"]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *fields, *accept, "", ""]).encode()


async def message(talk: Conversation) -> bytes:
    """The next text message, shorter than 64 KiB."""
    while len(talk._buffer) < 8 or len(talk._buffer) < 8 + int.from_bytes(talk._buffer[2:4]):
        await talk._more()
    data, talk._buffer = talk._buffer[: (size := 8 + int.from_bytes(talk._buffer[2:4]))], talk._buffer[size:]
    assert data[:2] == b"\x81\xfe"
    mask = data[4:8]
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(data[8:]))


@asynccontextmanager
async def providers(script: Script, tls: ssl.SSLContext | None, **settings: Any) -> AsyncIterator[Providers]:
    async with scripted_peer(script, tls) as peer:
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{peer.port}/v1"
        config = ProviderConfig("openai_responses", url, SecretRef("", "k"), websocket=True, **settings)
        made = Providers(
            Config(providers={"test": config}),
            {"openai_responses": OpenAIResponsesProvider()},
            lambda ref: Secret(ref.value),
            environ={},
        )
        try:
            yield made
        finally:
            for provider in made._providers.values():
                provider.close()
        await eventually(lambda: peer.open == 0)


async def ask(upstream: Providers) -> list[Event]:
    request = make_request("hello " * 100, stream=True)
    outbound = upstream.dialect("test").encode_request(request, ROUTE)
    events: list[Event] = []
    async with upstream.open(ROUTE, request, outbound, RecordedPhases(), "k") as answer:
        while (batch := await answer.receive()) is not None:
            events += batch.events
    return events


async def test_answers_and_pings_through_tls(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    pongs: list[bytes] = []

    async def script(talk: Conversation) -> None:
        seen = await talk.request()
        assert seen.line == "GET /v1/responses HTTP/1.1"
        assert seen.all("authorization") == ["Bearer k"]
        (key,) = seen.all("sec-websocket-key")
        await talk.say(upgraded("Upgrade: WebSocket", "Connection: keep-alive, Upgrade", key=key))
        for number in range(2):
            assert json.loads(await message(talk))["type"] == "response.create"
            events = [frame(json.dumps(each).encode()) for each in (DELTA, DONE)]
            await talk.say(b"".join(events) + frame(b"%d" % number, opcode=9))
            while len(talk._buffer) < 7:
                await talk._more()
            pongs.append(talk._buffer[:7])
            talk._buffer = talk._buffer[7:]
        await talk.gone()

    async with providers(script, server_tls, ca_file=ca_file) as upstream:
        for _ in range(2):
            assert Text("Hi.") in await ask(upstream)
        assert upstream.statistics()["test"].reused_total == 1
        assert upstream.statistics()["test"].opened_total == 1
        await eventually(lambda: len(pongs) == 2)
        assert {pong[:2] for pong in pongs} == {b"\x8a\x81"}


async def test_a_damaged_record_behind_an_answer_costs_that_socket_and_nothing_else(
    server_tls: ssl.SSLContext, ca_file: Path
) -> None:
    """TLS takes nothing more then, not even a goodbye: closing must do without, for a place hangs on it, and the maintenance."""
    damaged = 0

    async def script(talk: Conversation) -> None:
        nonlocal damaged
        (key,) = (await talk.request()).all("sec-websocket-key")
        await talk.say(upgraded(*GOOD, key=key))
        await message(talk)
        await talk.say(b"".join(frame(json.dumps(each).encode()) for each in (DELTA, DONE)))
        await talk.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        damaged += 1
        await talk.gone()

    async with providers(script, server_tls, ca_file=ca_file) as upstream:
        provider = upstream._providers["test"]
        for number in range(1, 3):
            assert Text("Hi.") in await ask(upstream)  # the second finds the first one's socket, and does not take it
            await eventually(lambda: damaged == number)  # noqa: B023
        provider.sweep()
        assert (provider.statistics().active, provider.statistics().idle) == (0, 0)
        assert provider.statistics().opened_total == 2


GOOD = ("upgrade: websocket", "connection: upgrade")
BAD_UPGRADES = {
    "no accept": (GOOD, None),
    "another's accept": (GOOD, "dGhlIHNhbXBsZSBub25jZQ=="),
    "no upgrade": (("connection: upgrade",), ""),
    "no connection": (("upgrade: websocket",), ""),
    "an extension": ((*GOOD, "sec-websocket-extensions: permessage-deflate"), ""),
    "a subprotocol": ((*GOOD, "sec-websocket-protocol: x"), ""),
    "no HTTP": (("nonsense",), ""),
}


@pytest.mark.parametrize("name", BAD_UPGRADES)
async def test_a_bad_upgrade_is_none(name: str) -> None:
    fields, key = BAD_UPGRADES[name]
    body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in (DELTA, DONE))

    async def script(talk: Conversation) -> None:
        seen = await talk.request()
        if seen.line.startswith("GET"):
            (given,) = seen.all("sec-websocket-key")
            await talk.say(upgraded(*fields, key=given if key == "" else key))
            await talk.gone()
        else:
            await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await talk.gone()

    async with providers(script, None) as upstream:
        assert Text("Hi.") in await ask(upstream)
        assert upstream.statistics()["test"].active == 0


async def test_words_that_come_with_the_upgrade_are_not_lost() -> None:
    """And an interim answer before it is passed over."""

    async def script(talk: Conversation) -> None:
        (key,) = (await talk.request()).all("sec-websocket-key")
        events = b"".join(frame(json.dumps(each).encode()) for each in (DELTA, DONE))
        await talk.say(b"HTTP/1.1 103 Early Hints\r\n\r\n" + upgraded(*GOOD, key=key) + events)
        await message(talk)
        await talk.gone()

    async with providers(script, None) as upstream:
        assert Text("Hi.") in await ask(upstream)
