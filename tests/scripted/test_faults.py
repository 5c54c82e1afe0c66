"""Faults of bytes, time and connections: where exactly they strike, and how soon a leaving client is noticed."""

from __future__ import annotations

import socket
import struct
import time

import pytest
import trio

from clawproxy.scripted import CloseAtReuse, CloseIdle, Cut, Pause, Reset, Say, Script, ScriptedProvider, Split, Step
from tests.scripted.raw_client import Client, Clients, request_bytes

# What a loaded machine may add on top of the 20 ms that are asked for: the median of several tries is judged, not each.
NOTICE = 0.020


async def test_cut_at_every_byte(provider: ScriptedProvider, connect: Clients) -> None:
    steps: list[Step | str] = ["a"]
    provider.will_say(*steps)
    whole = (await (await connect(provider)).ask()).raw
    for count in [0, 1, 2, 17, *range(30, len(whole), 97), len(whole) - 1, len(whole)]:
        provider.will_say(Cut(after=count), *steps)
        client = await connect(provider)
        await client.send()
        assert len(await client.read_all()) == count
        assert provider.log.last.state == "cut_by_script"
        assert provider.log.last.bytes_sent == count


async def test_a_cut_beyond_the_answer_changes_nothing(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say(Cut(after=100_000), "a")
    assert (await client.ask()).text == "a"
    assert (await client.ask("again")).status == 200  # and the connection lives


@pytest.mark.parametrize(
    "script",
    ["say a; reset", "reset", "reset after 40; say a", "reset after 40; status 400 size 1MiB", "burst; say a; reset"],
)
async def test_reset_is_a_reset(provider: ScriptedProvider, connect: Clients, script: str) -> None:
    provider.will(script)
    client = await connect(provider)
    await client.send()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.read_all()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert provider.log.last.state == "cut_by_script"


@pytest.mark.parametrize("script", ["say a; cut", "cut", "cut after 40; say a", "head; cut"])
@pytest.mark.parametrize("stream", [True, False])
async def test_cut_is_a_fin_even_with_bytes_unread(
    provider: ScriptedProvider, connect: Clients, script: str, stream: bool
) -> None:
    provider.will(script)
    client = await connect(provider)
    await client.send(stream=stream)
    await client.stream.send_all(b"POST /pipelined")  # unread by the provider when it closes
    await client.read_all()  # ends without BrokenResourceError


async def test_whole_answers_are_cut_in_their_body(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("say hello; cut")
    client = await connect(provider)
    await client.send(stream=False)
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert 0 < len(body) < length


async def test_split_sends_segments_and_changes_no_byte(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say(Split(1), Say("Zürich €", whole=True))
    reply = await client.ask()
    assert reply.text == "Zürich €"


async def test_drip_splits_characters(
    provider: ScriptedProvider, connect: Clients, autojump_clock: trio.testing.MockClock
) -> None:
    client = await connect(provider)
    provider.will("drip 1 every 1s; raw €; end bare")
    await client.send()
    pieces: list[bytes] = [await client.read_until(b"\r\n\r\n")]
    times = [trio.current_time()]
    while not pieces[-1].endswith(b"\n") or len(pieces) < 8:
        pieces.append(await client.stream.receive_some(100))
        times.append(trio.current_time())
    body = b"".join(pieces).partition(b"\r\n\r\n")[2]
    assert body == b"3\r\n\xe2\x82\xac\r\n"
    assert b"\xe2" in pieces
    assert times[-1] - times[0] == pytest.approx(len(body) - 1, abs=1)


async def test_hang_before_the_head(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("stall")
    client = await connect(provider)
    await client.send()
    await provider.log.wait_for(lambda log: log.in_progress == 1)
    with trio.move_on_after(0.02) as scope:
        await client.stream.receive_some(1)
    assert scope.cancelled_caught
    assert provider.log.last.status is None
    assert provider.log.last.first_byte_at is None


@pytest.mark.parametrize("stream", [True, False])
async def test_hang_after_the_head(provider: ScriptedProvider, connect: Clients, stream: bool) -> None:
    provider.will("head; stall")
    client = await connect(provider)
    await client.send(stream=stream)
    assert (await client.read_until(b"\r\n\r\n")).endswith(b"\r\n\r\n")
    with trio.move_on_after(0.02) as scope:
        await client.stream.receive_some(1)
    assert scope.cancelled_caught
    assert provider.log.last.status == 200


async def test_begin_sends_the_role_alone(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("begin; stall")
    client = await connect(provider)
    await client.send()
    data = await client.read_until(b"}\n\n\r\n")
    assert data.count(b"data: ") == 1
    assert b'"role":"assistant"' in data


async def test_a_slow_head_and_a_pause_in_virtual_time(
    provider: ScriptedProvider, connect: Clients, autojump_clock: trio.testing.MockClock
) -> None:
    client = await connect(provider)
    provider.will("head over 10s; say a; pause 1h; say b")
    await client.send()
    started = trio.current_time()
    first = await client.stream.receive_some(1)
    assert first == b"H"
    await client.read_until(b"\r\n\r\n")
    assert trio.current_time() - started == pytest.approx(10, abs=0.5)
    await client.read_until(b'"content":"b"')
    assert trio.current_time() - started >= 3600


async def test_raw_head_and_framing_by_close(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will(r"raw head HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n; raw short; end bare")
    await client.send()
    assert await client.read_all() == b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort"
    client = await connect(provider)
    provider.will("framing close; say a")
    reply = await client.ask()
    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert reply.text == "a"


async def test_keep_alive_and_the_ways_to_end_it(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    for _ in range(3):
        assert "connection" not in (await client.ask()).headers
    assert provider.log.connections_opened == 1
    provider.will("close; say a")
    assert (await client.ask()).headers["connection"] == "close"
    assert await client.read_all() == b""

    client = await connect(provider)
    provider.will_say(CloseIdle(0.03), "a")
    assert "connection" not in (await client.ask()).headers
    started = trio.current_time()
    assert await client.read_all() == b""
    assert trio.current_time() - started > 0.02

    client = await connect(provider)
    provider.will_say(CloseAtReuse(), "a")
    assert "connection" not in (await client.ask()).headers
    await client.send()
    with pytest.raises(trio.BrokenResourceError):
        await client.read_all()
    assert provider.log.requests == 6  # the one that met the closing door was never read
    await provider.log.wait_for(lambda log: log.open_connections == 0)
    assert [row.closed_by for row in provider.log.connections] == ["provider"] * 3


LEAVINGS = {
    "before the head": "stall",
    "after the head": "head; stall",
    "mid-stream": "say a; stall",
    "in a long pause": "say a; pause 1h; say b",
    "while dripping": "drip 1 every 30ms; tokens 1000",
    "paced": "tokens 1000 every 40ms",
    "while it does not read": "tokens 100000",
}


def _leave(client: Client, how: str) -> None:
    sock = client.stream.socket
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        sock.shutdown(socket.SHUT_WR)
    else:
        sock.close()


@pytest.mark.parametrize("script", LEAVINGS.values(), ids=LEAVINGS.keys())
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_is_noticed(provider: ScriptedProvider, connect: Clients, script: str, how: str) -> None:
    delays: list[float] = []
    for number in range(3):
        provider.will(script)
        client = await connect(provider)
        await client.send()
        if script == "stall":
            await provider.log.wait_for(lambda log: log.in_progress == 1)
        else:
            await client.stream.receive_some(10)
        left = time.time()
        _leave(client, how)
        with trio.fail_after(5):
            await provider.log.wait_for(lambda log, n=number: log.counts["closed_by_peer"] == n + 1)  # type: ignore[misc]
        closed_at = provider.log.last.closed_at
        assert closed_at is not None
        delays.append(closed_at - left)
    assert sorted(delays)[1] < NOTICE
    assert provider.log.in_progress == 0
    await provider.log.wait_for(lambda log: log.open_connections == 0)
    assert {row.closed_by for row in provider.log.connections} == {"peer"}


async def test_a_half_closed_client_and_one_behind_pipelined_bytes_count_as_gone(
    provider: ScriptedProvider, connect: Clients
) -> None:
    for pipelined in (b"", b"x" * 100_000):
        provider.will("stall")
        client = await connect(provider)
        await client.send()
        await provider.log.wait_for(lambda log: log.in_progress == 1)
        await client.stream.send_all(pipelined)
        _leave(client, "half")
        with trio.fail_after(5):
            await provider.log.wait_for(lambda log: log.in_progress == 0)
        assert provider.log.last.state == "closed_by_peer"


async def test_a_pipelined_request_is_answered_next(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say("one", Pause(0.01))
    provider.will_say("two")
    await client.send()
    await client.send()
    data = await client.read_until(b'"two"')
    assert data.index(b'"one"') < data.index(b"[DONE]") < data.index(b'"two"')


async def test_flooding_a_connection_that_is_being_answered_ends_it(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("stall")
    client = await connect(provider)
    await client.send()
    flood = bytes(16 * 1024 * 1024)
    with pytest.raises(trio.BrokenResourceError):
        await client.stream.send_all(flood)
    assert "pipelined" in provider.log.malformed[-1]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nb: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: " + b"a" * 70_000, 431),
    ],
)
async def test_what_breaks_http_is_refused_and_kept(
    provider: ScriptedProvider, connect: Clients, data: bytes, status: int
) -> None:
    client = await connect(provider)
    await client.stream.send_all(data)
    answer = await client.read_all()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(provider.log.malformed) == 1
    assert provider.log.requests == 0


async def test_a_request_in_single_bytes_chunked_and_with_expectation(provider: ScriptedProvider, connect: Clients) -> None:
    provider.always("ok")
    client = await connect(provider)
    for byte in request_bytes({"model": "m", "messages": [{"role": "user", "content": "é"}], "stream": False}):
        await client.stream.send_all(bytes([byte]))
    assert (await client.reply()).status == 200
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    head = b"POST /chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.stream.send_all(head)
    assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.stream.send_all(b"a\r\n" + body[:10] + b"\r\n%x;ext=1\r\n" % (len(body) - 10) + body[10:] + b"\r\n0\r\n\r\n")
    assert (await client.reply()).json["choices"][0]["message"]["content"] == "ok"
    assert provider.log.last.body_bytes == body


async def test_resets_and_cuts_leave_no_socket_behind(provider: ScriptedProvider, connect: Clients) -> None:
    for step in (Cut(), Reset()):
        provider.queue.append(Script((step,)))
        client = await connect(provider)
        await client.send()
        with trio.move_on_after(1):
            try:
                await client.read_all()
            except trio.BrokenResourceError:
                pass
    await provider.log.wait_for(lambda log: log.open_connections == 0)
