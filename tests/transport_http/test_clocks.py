"""The clocks of a connection: head, idle, body, write; and the bounds that go with them (S-01 to S-06)."""

from __future__ import annotations

import gc
import json
import ssl

import pytest
import trio
import trustme

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, LimitsConfig
from clawproxy.transport import reader
from clawproxy.transport.limits import ConnectionLimits, ReserveDescriptor

from .support import P, Raw, get, opened, post

pytestmark = pytest.mark.timed


def config(**deadlines: float) -> Config:
    return Config(deadlines=Deadlines(**deadlines))


async def test_s01_the_head_clock_is_absolute() -> None:
    async with opened(config(head=0.3)) as door:
        begun = trio.current_time()
        answers: list[float] = []

        async def drip(raw: Raw) -> None:
            async def write() -> None:
                try:
                    for byte in b"GET /v1/models HTTP/1.1\r\nHost: gw.test\r\nX: " + b"a" * 1000:
                        await raw.send(bytes([byte]))
                        await trio.sleep(0.02)
                except trio.BrokenResourceError:
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                answer = await raw.answer()
                assert answer.status == 408
                document = json.loads(answer.body)["error"]
                assert document["code"] == "timeout.head"
                assert "deadlines.head" in document["message"]
                assert await raw.rest() == b""
                answers.append(trio.current_time() - begun)
                nursery.cancel_scope.cancel()
            raw.close()

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(drip, await door.connect())
            normal = await door.connect()
            await normal.send(get())
            assert (await normal.answer()).status == 200
            normal.close()
        assert len(answers) == 50
        assert min(answers) > 0.25
        assert max(answers) < 1.0
        await door.rest()


async def test_silence_gets_a_408_and_idle_a_plain_end() -> None:
    async with opened(config(head=0.1, idle=0.2)) as door:
        silent = await door.connect()
        assert (await silent.answer()).status == 408
        idle = await door.connect()
        await idle.send(get())
        assert (await idle.answer()).status == 200
        begun = trio.current_time()
        assert await idle.rest() == b""
        assert 0.15 < trio.current_time() - begun < 0.6
        late = await door.connect()
        await late.send(get())
        assert (await late.answer()).status == 200
        await trio.sleep(0.12)
        await late.send(b"GET /")  # the head clock of this request begins here
        begun = trio.current_time()
        assert (await late.answer()).status == 408
        assert 0.05 < trio.current_time() - begun < 0.5


async def test_s02_slow_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(config(body=0.2)) as door:
        raw = await door.connect()
        begun = trio.current_time()
        await raw.send(P.encode() + b"Content-Length: 1000000\r\n\r\n{")
        answer = await raw.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "timeout.body")
        assert 0.15 < trio.current_time() - begun < 0.6
        assert await raw.rest() == b""
        assert door.service.handled == 0
    monkeypatch.setattr(reader, "RATE_AFTER", 0.1)
    monkeypatch.setattr(reader, "RATE", 1000)
    async with opened() as door:
        raw = await door.connect()
        begun = trio.current_time()
        await raw.send(P.encode() + b"Content-Length: 1000000\r\n\r\n" + b" " * 200)  # good for 0.1 + 0.2 s
        assert (await raw.answer()).status == 408
        assert 0.25 < trio.current_time() - begun < 0.7


async def test_s03_a_slow_reader_stops_the_exchange_and_is_cut() -> None:
    async with opened(config(write=0.4), sndbuf=65536) as door:
        raw = await door.connect(buffer=8192)
        gc.collect()
        await raw.send(post({"stream": True, "say": ["x"] * 3000, "size": 65536}))  # 200 MB
        await trio.sleep(0.2)
        first = door.service.sends
        await trio.sleep(0.1)
        assert door.service.sends == first < 30
        with trio.fail_after(3):
            await door.service.finished.wait()
        assert door.service.outcomes[0].label == "timeout.write"
        await door.rest()


async def test_the_write_clock_counts_bytes_not_calls() -> None:
    """A client that reads a little all the time is not cut, though one send lasts longer than the clock."""
    async with opened(config(write=0.5), sndbuf=32768) as door:
        raw = await door.connect(buffer=4096)
        begun = trio.current_time()
        await raw.send(post({"stream": True, "say": ["x"], "size": 2_000_000}))
        with trio.fail_after(20):
            while trio.current_time() - begun < 1.0:
                await raw.more()
                await trio.sleep(0.005)
            answer = await raw.answer(seconds=15)
        assert len(answer.body) > 2_000_000
        assert door.service.outcomes[0].label == "complete"


async def test_a_client_that_resets_while_it_is_written_to() -> None:
    async with opened(sndbuf=32768) as door:
        raw = await door.connect(buffer=4096)
        await raw.send(post({"stream": True, "say": ["x"] * 100, "size": 100_000}))
        await trio.sleep(0.05)
        raw.reset()
        with trio.fail_after(1):
            await door.service.finished.wait()
        assert door.service.outcomes[0].label == "client_gone"
        await door.rest()


# --- TLS -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("gw.test").configure_cert(context)
    return context


async def test_s06_a_handshake_that_stalls(server_context: ssl.SSLContext) -> None:
    async with opened(config(head=0.2), wrap=lambda s: trio.SSLStream(s, server_context, server_side=True)) as door:
        raw = await door.connect()
        begun = trio.current_time()
        await raw.send(b"\x16\x03\x01\x02\x00")
        assert await raw.rest() == b""
        assert 0.1 < trio.current_time() - begun < 0.6
        await door.rest()


async def test_tls_answers_keepalives_and_the_write_clock(authority: trustme.CA, server_context: ssl.SSLContext) -> None:
    client = ssl.create_default_context()
    authority.configure_trust(client)

    def wrap(stream: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        return trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)

    async with opened(config(keepalive_sse=0.1, write=0.4), wrap=wrap, sndbuf=65536) as door:
        plain = await door.connect()
        secure = trio.SSLStream(plain.stream, client, server_hostname="gw.test", https_compatible=True)
        raw = Raw(secure)
        await raw.send(post())
        assert (await raw.answer()).status == 200
        await raw.send(post({"stream": True, "say": ["a"], "pause": 0.35}))
        answer = await raw.answer()
        assert answer.body.count(b": claw\n\n") >= 2
        assert answer.body.endswith(b"data: a\n\ndata: [DONE]\n\n")
        await raw.send(get())  # so that the exchange before is over
        assert (await raw.answer()).status == 200
        door.service.finished = trio.Event()
        await raw.send(post({"stream": True, "say": ["x"] * 200, "size": 65536}))
        with trio.fail_after(3):
            await door.service.finished.wait()
        assert door.service.outcomes[-1].label == "timeout.write"
        plain.close()
        await door.rest()


# --- many ------------------------------------------------------------------------------------------------------------------


def test_s05_connections_are_counted_in_all_and_by_address() -> None:
    limits = ConnectionLimits(LimitsConfig(connections=3, connections_per_address=2))
    assert [limits.admit("a"), limits.admit("a")] == [None, None]
    refused = limits.admit("a")
    assert refused is not None
    assert refused.slug == "overloaded"
    assert limits.admit("b") is None
    assert limits.admit("c") is not None
    limits.release("a")
    assert limits.admit("c") is None
    for address in ("a", "b", "c"):
        limits.release(address)
    assert limits.open == 0
    assert ConnectionLimits(LimitsConfig(), descriptors=1000).total == 500


async def test_out_of_descriptors_one_is_kept_to_say_no() -> None:
    reserve = ReserveDescriptor()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        assert not reserve.refuse(listener.socket)
        raw = Raw(await trio.open_tcp_stream(*listener.socket.getsockname()[:2]))
        assert reserve.refuse(listener.socket)
        answer = await raw.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert await raw.rest() == b""
        raw.close()
        # the listener itself is as it was
        again = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        async with await listener.accept(), again:
            pass
    reserve.close()
