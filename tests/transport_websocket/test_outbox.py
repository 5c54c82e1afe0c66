"""The outbox: one writer, an exact position, bounded, controls between frames only. On plain sockets and on TLS."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

from clawproxy.errors import ClawError
from clawproxy.transport.websocket.frames import close_frame, ping_frame, text_frame
from clawproxy.transport.websocket.outbox import CONTROLS, HIGH, Outbox

from .kit import Raw, frame, gateway, opening, request, until


class Both:
    """An outbox and the far end of its connection."""

    def __init__(self, outbox: Outbox, far: trio.SocketStream, near: trio.SocketStream) -> None:
        self.outbox, self.far, self.near = outbox, far, near
        self.raw = Raw(far)
        self.dead: list[ClawError] = []


@asynccontextmanager
async def pair(write: float = 60.0) -> AsyncIterator[Both]:
    """With small kernel buffers, so that writes come apart."""
    a, b = socket.socketpair()
    for sock in (a, b):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    near, far = trio.SocketStream(trio.socket.from_stdlib_socket(a)), trio.SocketStream(trio.socket.from_stdlib_socket(b))
    dead: list[ClawError] = []
    both = Both(Outbox(near, lambda: write, dead.append, lambda: None), far, near)
    both.dead = dead
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(both.outbox.run)
        yield both
        both.outbox.stop()
        await near.aclose()


async def test_frames_come_out_whole_and_in_order_whatever_the_kernel_takes() -> None:
    async with pair() as both:
        payloads = [bytes((65 + i % 26,)) * (1 + (i * 7919) % 30_000) for i in range(200)]

        async def produce() -> None:
            for payload in payloads:
                both.outbox.push(text_frame(payload))
                await both.outbox.room()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for payload in payloads:
                assert await both.raw.frame() == (1, payload)
        assert both.outbox.size == 0


async def test_it_is_bounded_and_room_waits() -> None:
    async with pair() as both:
        pushed = 0
        with trio.move_on_after(0.1) as scope:
            while True:
                both.outbox.push(text_frame(b"x" * 1000))
                pushed += 1
                await both.outbox.room()
        assert scope.cancelled_caught
        assert both.outbox.size < HIGH + 2000
        for _ in range(pushed):  # the cancelled wait lost nothing and cut nothing
            assert await both.raw.frame() == (1, b"x" * 1000)


async def test_control_frames_overtake_data_but_never_split_a_frame() -> None:
    async with pair() as both:
        for index in range(50):
            both.outbox.push(text_frame(b"%05d" % index * 1000))
        await trio.sleep(0.02)  # the kernel is full in the middle of one
        both.outbox.push_control(ping_frame(b"now"))
        seen = [await both.raw.frame() for _ in range(51)]
        place = [opcode for opcode, _ in seen].index(9)
        assert 0 < place < 15
        del seen[place]
        assert seen == [(1, b"%05d" % index * 1000) for index in range(50)]


async def test_unread_control_frames_do_not_pile_up() -> None:
    async with pair() as both:
        both.outbox.push(text_frame(b"x" * 300_000))
        await trio.sleep(0.01)
        for index in range(1000):
            both.outbox.push_control(ping_frame(b"%d" % index))
        assert both.outbox.size < 300_000 + CONTROLS * 10
        assert await both.raw.frame() == (1, b"x" * 300_000)
        assert [await both.raw.frame() for _ in range(CONTROLS)][-1] == (9, b"999")


async def test_a_burst_is_one_system_call(monkeypatch: pytest.MonkeyPatch) -> None:

    calls: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return real(fd, data)

    async with pair() as both:
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("clawproxy.transport.websocket.outbox.os.write", write)
        for _ in range(20):
            both.outbox.push(text_frame(b"hello"))
        await trio.testing.wait_all_tasks_blocked()
        assert calls == [20 * 7]


async def test_a_flush_writes_at_once_and_leaves_the_rest_to_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return real(fd, data)

    async with pair() as both:
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("clawproxy.transport.websocket.outbox.os.write", write)
        both.outbox.append(text_frame(b"one"))
        both.outbox.append(text_frame(b"two"))
        both.outbox.flush()
        assert (calls, both.outbox.size) == ([10], 0)
        await trio.testing.wait_all_tasks_blocked()
        assert calls == [10]  # the writer was not woken
        both.outbox.push(text_frame(b"three"))
        both.outbox.append(text_frame(b"four"))
        both.outbox.flush()  # it is awake: all of it is its own
        assert calls == [10]
        await trio.testing.wait_all_tasks_blocked()
        assert calls == [10, 13]
        monkeypatch.undo()
        for index in range(60):  # much more than the kernel takes
            both.outbox.append(text_frame(b"%05d" % index * 1000))
            both.outbox.flush()
        assert both.outbox.size > 0
        both.outbox.push_control(ping_frame())
        expected = [b"one", b"two", b"three", b"four", *(b"%05d" % index * 1000 for index in range(60))]
        seen = [await both.raw.frame() for _ in range(65)]
        assert [payload for opcode, payload in seen if opcode == 1] == expected
        assert both.outbox.size == 0


async def test_a_flush_finds_that_the_peer_is_gone() -> None:
    async with pair() as both:
        await trio.testing.wait_all_tasks_blocked()
        await both.far.aclose()
        both.outbox.append(text_frame(b"one"))
        both.outbox.flush()
        assert [error.slug for error in both.dead] == ["client_gone"]
        with pytest.raises(ClawError, match="client_gone"):
            both.outbox.check()


async def test_nothing_follows_the_close_frame() -> None:
    async with pair() as both:
        both.outbox.push(text_frame(b"last"))
        both.outbox.seal(close_frame(1000), ClawError("client_gone"))
        both.outbox.push(text_frame(b"too late"))
        both.outbox.push_control(ping_frame())
        with pytest.raises(ClawError, match="client_gone"):
            await both.outbox.room()
        await both.outbox.flushed()
        assert await both.raw.frame() == (1, b"last")
        assert await both.raw.frame() == (8, b"\x03\xe8")
        assert both.outbox.size == 0


async def test_the_write_clock_runs_only_while_no_byte_is_accepted() -> None:
    async with pair(write=0.2) as both:
        both.outbox.push(text_frame(b"x" * 400_000))
        for _ in range(8):  # a slow reader that reads now and then lives
            await trio.sleep(0.08)
            await both.far.receive_some(20_000)
        assert both.dead == []
        await until(lambda: both.dead, 2)
        assert both.dead[0].slug == "timeout.write"
        with pytest.raises(ClawError, match=r"timeout\.write"):
            both.outbox.check()


async def test_a_peer_that_is_gone_wakes_those_who_wait() -> None:
    async with pair() as both:
        both.outbox.push(text_frame(b"x" * 400_000))
        await trio.sleep(0.01)
        await both.far.aclose()
        with trio.fail_after(2), pytest.raises(ClawError, match="client_gone"):
            await both.outbox.room()
        await both.outbox.flushed()
        assert [error.slug for error in both.dead] == ["client_gone"]


CA = trustme.CA()
SERVER, CLIENT = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
CA.issue_cert("gw.test").configure_cert(SERVER)
CA.configure_trust(CLIENT)


async def test_tls_multiplexes_cancels_and_closes_as_plain_tcp_does() -> None:
    def wrap(stream: trio.abc.Stream) -> trio.abc.Stream:
        return trio.SSLStream(stream, SERVER, server_side=True)

    async with gateway(wrap=wrap) as gw:
        tcp = await trio.open_tcp_stream("127.0.0.1", gw.port)
        raw = Raw(trio.SSLStream(tcp, CLIENT, server_hostname="gw.test"))
        await raw.send(opening("Authorization: Bearer good"), request("a", "flood 3000"), request("b", "big 1000000"))
        await raw.read_head()
        await trio.sleep(0.05)
        await raw.send(frame(9, b"?"))
        total = {"a": 0, "b": 0}
        ended: set[str] = set()
        pongs = 0
        while len(ended) < 2 or not pongs:
            opcode, payload = await raw.frame()
            if opcode == 10:
                pongs += 1
                continue
            got = json.loads(payload)
            if got["type"] == "llm_token":
                total[got["id"]] += len(got["content"])
            elif got["type"] == "llm_response_end":
                ended.add(got["id"])
        assert total == {"a": 3000 * 1024, "b": 1_000_000}
        await raw.send(frame(8, b"\x03\xe8"))
        assert await raw.closed(answer=False) == 1000
        await trio.aclose_forcefully(tcp)
        again = await trio.open_tcp_stream("127.0.0.1", gw.port)  # and a rude one
        rude = Raw(trio.SSLStream(again, CLIENT, server_hostname="gw.test"))
        await rude.send(opening("Authorization: Bearer good"), request("a", "flood 100000"))
        await rude.read_head()
        await trio.aclose_forcefully(again)
