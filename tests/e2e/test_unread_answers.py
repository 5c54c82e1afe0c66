"""Clients that ask and do not read, over real sockets: what the gateway keeps for them is bounded."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import attrs
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import PoolConfig
from tests.e2e.harness import KEY, Running, gateway, make_config
from tests.e2e.http_client import chat
from tests.e2e.websocket_client import Frames, masked, open_raw

MOST = 256 * 1024


async def deaf(running: Running) -> trio.SocketStream:
    """A connection that the kernel holds little for."""
    stream = trio.SocketStream(trio.socket.socket())
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await stream.socket.connect(running.address)
    return stream


async def test_refused_requests_do_not_pile_up_for_a_websocket_that_does_not_read(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, await deaf(running) as stream:
        await Frames(stream, await open_raw(stream, KEY)).next()
        [session] = running.server.websockets._open
        # A model that nobody configured costs nothing, so it is the cheapest way to be sent something.
        session._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # type: ignore[attr-defined]
        request = json.dumps({"type": "llm_request", "model": "m", "prompt": "x"}).encode()
        peak = 0
        with trio.move_on_after(8):
            try:
                for _ in range(200):
                    await stream.send_all(masked(request) * 20)  # fewer at once than a connection may have open
                    with trio.move_on_after(0.05):
                        while session.streams:
                            await trio.sleep(0)
                    peak = max(peak, session._outbox.size)
            except trio.BrokenResourceError:
                pass  # it was cut off, which is as good
        assert peak < MOST, f"{peak} bytes wait for a client that reads nothing"
        with trio.fail_after(5):
            async with await running.connect() as other:
                assert (await chat(other, "hello", key=KEY)).status == 200


async def hold(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await chat(stream, "script: say one; stall", key=KEY, stream=True)


async def test_the_wait_for_a_providers_connection_says_when_to_come_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, "http://x")
    async with gateway(tmp_path / "provider") as other:
        provider = attrs.evolve(other.config.providers["scripted"], pool=PoolConfig(max=1))
        deadlines = attrs.evolve(Deadlines(), queue=0.2)
        changes: dict[str, Any] = {"deadlines": deadlines, "providers": {"scripted": provider}, "models": config.models}
        async with gateway(tmp_path / "gateway", **changes) as running, trio.open_nursery() as nursery:
            holder = await running.connect()
            nursery.start_soon(hold, holder)
            with trio.fail_after(5):
                await other.provider.log.wait_for(lambda log: log.in_progress)
                async with await running.connect() as connection:
                    reply = await chat(connection, "hello", key=KEY)
            assert (reply.status, reply.json()["error"]["code"]) == (503, "timeout.queue")
            assert reply.headers["retry-after"] == "1"
            holder.socket.close()
            nursery.cancel_scope.cancel()
