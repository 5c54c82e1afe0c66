"""Two hundred clients hang up at random phases over WebSocket and HTTP, with FIN and with RST.

The provider's own log says when each connection was closed; the ledger has one closed row each, none free; nothing stays held.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionClosed, connect_websocket

from tests.e2e.harness import KEY, Running, descriptors, gateway

pytestmark = pytest.mark.timed

CLIENTS = 200
AT_ONCE = 10
SCRIPTS = [
    "pause 400ms; say late",  # sent, no byte yet
    "head; stall",
    "say one; stall",
    "tokens 200 every 5ms",
    "stall",
]


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def http_request(marker: str, script: str, *, stream: bool) -> bytes:
    body = json.dumps(
        {"model": "test-model", "stream": stream, "messages": [{"role": "user", "content": f"{marker}\nscript: {script}"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Crowd:
    def __init__(self, running: Running, seed: int) -> None:
        self.running = running
        self.random = random.Random(seed)
        self.left: dict[str, float] = {}
        """When each client went away, Unix seconds."""

    async def http(self, number: int, *, rude: bool) -> None:
        marker = f"client-{number}"
        stream = await self.running.connect()
        await stream.send_all(http_request(marker, self.random.choice(SCRIPTS), stream=self.random.random() < 0.7))
        await trio.sleep(self.random.random() * 0.3)
        self.left[marker] = time.time()
        if rude:
            reset(stream)
        else:
            stream.socket.close()

    async def websocket(self, number: int, *, rude: bool) -> None:
        marker = f"client-{number}"
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        async with trio.open_nursery() as nursery:
            ws = await connect_websocket(nursery, *self.running.address, "/websocket", use_ssl=False, extra_headers=headers)
            message = {
                "type": "llm_request",
                "model": "test-model",
                "prompt": f"{marker}\nscript: {self.random.choice(SCRIPTS)}",
            }
            await ws.get_message()
            await ws.send_message(json.dumps(message))
            with trio.move_on_after(self.random.random() * 0.3):
                try:
                    while True:
                        await ws.get_message()
                except ConnectionClosed:
                    pass
            self.left[marker] = time.time()
            tcp = ws._stream
            assert isinstance(tcp, trio.SocketStream)
            if rude:
                reset(tcp)
            else:
                tcp.socket.close()
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_two_hundred_clients_hang_up(tmp_path: Path) -> None:
    """Everything must hold in each round; for the time, the best of five counts, since a busy machine can only add to it."""
    seed = int(os.environ.get("SEED", "20261121"))
    print(f"seed {seed}")
    times = []
    for number in range(5):
        times.append(await hang_up_round(tmp_path / str(number), seed + number))
        if times[-1] < 0.020:
            return
    raise AssertionError(f"p99 of each round, seconds: {times}")


async def hang_up_round(tmp_path: Path, seed: int) -> float:
    """Two hundred clients; returns the p99 of the time from the client's leaving to the provider's closed connection."""
    async with gateway(tmp_path) as running:
        crowd = Crowd(running, seed)
        before = descriptors()
        gate = trio.CapacityLimiter(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                await (crowd.http if number % 2 else crowd.websocket)(number, rude=number % 4 < 2)

        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(one, number)
        with trio.fail_after(5):
            await running.at_rest()
            await running.provider.log.wait_for(lambda log: not log.counts["in_progress"])
        late: list[float] = []
        for entry in running.provider.log.entries:
            marker = entry.body["messages"][-1]["content"].split("\n")[0]
            assert entry.state in {"closed_by_peer", "finished"}, f"{marker}: {entry.state}"
            if entry.state == "closed_by_peer":
                assert entry.closed_at is not None
                late.append(entry.closed_at - crowd.left[marker])
        assert len(late) > CLIENTS * 0.6
        late.sort()
        p50, p99 = late[len(late) // 2], late[int(len(late) * 0.99)]
        print(f"{len(late)} hung up: provider's connection closed after p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
        await running.server.gateway.app.store.flush()
        rows = await running.server.gateway.app.store.rows()
        seen = {entry.request_id for entry in running.provider.log.entries}
        assert seen <= {row.opened.id for row in rows}, "an id the provider saw is not in the ledger"
        assert len({row.opened.id for row in rows}) == len(rows)
        for row in rows:
            assert row.closed is not None
            if row.opened.id in seen:
                assert row.closed.sent
                assert row.closed.input_tokens, "a request that was sent is never free"
        with trio.fail_after(5):
            while descriptors() > before + 2 + running.server.gateway.current.upstream.statistics()["scripted"].idle:  # type: ignore[attr-defined]
                await trio.sleep(0.01)
        return p99
