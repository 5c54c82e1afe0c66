"""The scripted provider's WebSocket mode, as trio-websocket sees it: a client that shares nothing with the gateway's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from clawproxy.scripted import ScriptedProvider
from clawproxy.secrets import Secret


@asynccontextmanager
async def client(provider: ScriptedProvider, key: str = "") -> AsyncIterator[WebSocketConnection]:
    """On a stream of our own: trio-websocket leaves its socket open where the peer breaks off."""
    parts = urlsplit(provider.base_url)
    assert parts.hostname
    assert parts.port
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream, trio.open_nursery() as nursery:
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        yield await wrap_client_stream(nursery, stream, parts.netloc, "/v1/responses", extra_headers=headers)
        nursery.cancel_scope.cancel()


async def answer(ws: WebSocketConnection, script: str, **fields: Any) -> list[dict[str, Any]]:
    await ws.send_message(json.dumps({"type": "response.create", "model": "m", "input": f"script: {script}", **fields}))
    events: list[dict[str, Any]] = []
    with trio.fail_after(5):
        while not events or events[-1]["type"] not in ("response.completed", "response.incomplete", "error"):
            events.append(json.loads(await ws.get_message()))
    return events


async def test_answers_one_after_the_other() -> None:
    async with ScriptedProvider.running() as provider, client(provider) as ws:
        for lane in ({}, {"stream_id": "a"}):
            events = await answer(ws, "say Hello there.; comment hi; usage 3 4", **lane)
            assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == "Hello there."
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert {event.get("stream_id") for event in events} == {lane.get("stream_id")}
        log = provider.log
        assert (log.sockets, log.connections_opened, log.requests, log.counts["finished"]) == (1, 1, 2, 2)
        assert log.last.stream
        assert log.last.model == "m"


async def test_faults() -> None:
    async with ScriptedProvider.running() as provider:
        async with client(provider) as ws:
            (error,) = await answer(ws, "status 429 retry-after 3")
            assert (error["status"], error["error"]["headers"]) == (429, {"retry-after": "3"})
            *_, error = await answer(ws, "say a; error code boom It broke.")
            assert (error["error"]["code"], error.get("status")) == ("boom", None)
            provider.socket_answers = 2
            (error,) = await answer(ws, "say a")
            assert error["error"]["code"] == "websocket_connection_limit_reached"
        provider.socket_answers = None
        for script in ("say a; cut", "say a; reset", "say a; close; no done"):
            async with client(provider) as ws:
                with pytest.raises(ConnectionClosed):
                    await answer(ws, script)
        assert provider.log.counts["cut_by_script"] == 2


async def test_who_leaves_is_noticed() -> None:
    async with ScriptedProvider.running() as provider:
        async with client(provider) as ws:
            with trio.move_on_after(0.02):
                await answer(ws, "say a; stall")
        with trio.fail_after(2):
            await provider.log.wait_for(lambda log: log.counts["closed_by_peer"] == 1)


async def test_refused_upgrades() -> None:
    async with ScriptedProvider.running(key=Secret("k")) as provider:
        for how, key, status in (("accept", "", 401), ("accept", "other", 401), (426, "k", 426)):
            provider.upgrade = how  # type: ignore[assignment]
            with pytest.raises(ExceptionGroup) as caught:
                async with client(provider, key):
                    pass
            (refused,) = caught.value.exceptions
            assert isinstance(refused, ConnectionRejected)
            assert refused.status_code == status
