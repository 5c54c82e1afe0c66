"""The W rows of the threat table, by their numbers, as bytes on a real socket."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
import trio

from clawproxy.transport.websocket import session

from .kit import MIB, FakeService, Gateway, alive, connect, frame, gateway, message, request, until


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_w03_too_big_by_declared_length_closes_and_tcp_ends_even_if_the_client_sits_there() -> None:
    before = descriptors()
    async with gateway() as gw:
        async with connect(gw.port) as raw:
            start = trio.current_time()
            await raw.send(bytes.fromhex("82FF") + (17 * MIB).to_bytes(8, "big") + b"\0\0\0\0", b"x" * MIB)
            assert await raw.closed(answer=False) == 1009  # with the end of TCP's one half behind it
            await until(lambda: not gw.active, 5)
            assert trio.current_time() - start < 5
        await alive(gw)
    assert descriptors() <= before


async def test_w04_endless_empty_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER", 0.3)  # this client never leaves by itself
    async with gateway() as gw, connect(gw.port) as raw:
        with trio.move_on_after(5):
            try:
                await raw.send(frame(1, fin=False))
                for _ in range(1000):
                    await raw.send(frame(0, fin=False) * 100)
            except trio.BrokenResourceError:
                pass
        await until(lambda: not gw.active, 5)
        await alive(gw)


async def test_w05_fragment_cap_gives_1008() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(1, b"a", fin=False), *(frame(0, b"a", fin=False) for _ in range(1023)))
        assert await raw.closed() == 1008


async def test_w05_1023_fragments_are_fine() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        pieces = [bytes((byte,)) for byte in b'{"type":"ping"' + b" " * 1000 + b"}"]
        await raw.send(frame(1, pieces[0], fin=False), *(frame(0, p, fin=False) for p in pieces[1:-1]), frame(0, pieces[-1]))
        assert (await raw.json())["type"] == "pong"


@pytest.mark.parametrize("pieces", [1, 8])
async def test_w06_limits_are_bytes_not_characters(pieces: int) -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        data = "\U0001f600".encode() * 4200  # 4,200 characters, 16,800 bytes: over 16 KiB
        size = len(data) // pieces // 4 * 4
        parts = [data[i : i + size] for i in range(0, len(data), size)]
        frames = [frame(1 if not i else 0, part, fin=i == len(parts) - 1) for i, part in enumerate(parts)]
        try:
            await raw.send(*frames)
        except trio.BrokenResourceError:
            pass
        assert await raw.closed() == 1009


async def test_w07_a_flood_of_pings_is_1008() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(9) * 21)
        assert await raw.closed() == 1008


async def test_w07_ten_pings_at_once_are_answered_in_order() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*(frame(9, str(i).encode()) for i in range(10)))
        assert [await raw.frame() for _ in range(10)] == [(10, str(i).encode()) for i in range(10)]


async def test_w08_unsolicited_pongs_are_in_the_same_budget() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(10) * 11, frame(9) * 10)
        assert await raw.closed() == 1008


async def test_w08_pings_as_messages_are_too() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(message(type="ping") * 21)
        assert await raw.closed() == 1008


async def test_w09_bad_utf8_gets_a_close_frame() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(bytes.fromhex("818200000000C328"))
        assert await raw.closed() == 1007


async def test_w10_utf8_split_over_fragments() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        data = '{"type":"ping","t":"€"}'.encode()
        cut = data.index(b"\xe2") + 1
        await raw.send(frame(1, data[:cut], fin=False), frame(9, b"between"), frame(0, data[cut:]))
        opcode, payload = await raw.frame()
        if opcode == 10:
            opcode, payload = await raw.frame()
        assert payload == '{"type":"pong","t":"€"}'.encode()


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("C18000000000"),  # RSV1
        bytes.fromhex("838000000000"),  # reserved opcode
        bytes.fromhex("810161"),  # unmasked
        frame(9, b"x" * 126),  # long ping
        frame(9, fin=False),  # fragmented ping
        frame(0),  # continuation of nothing
        frame(1, b"a", fin=False) + frame(1, b"b"),  # a new message inside another
        bytes.fromhex("81FE000100000000") + b"a",  # non-minimal length
        bytes.fromhex("81FF000000000000000100000000") + b"a",
        bytes.fromhex("81FF800000000000000000000000"),  # 64-bit length with its top bit
        frame(8, b"\x03"),  # W-12: half a code
    ],
)
async def test_w11_w12_broken_frames_get_1002(data: bytes) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(data)
        assert await raw.closed() in (1002, 1009) if data[:3] == bytes.fromhex("81FF80") else 1002
        await alive(gw)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535])
async def test_w12_close_codes_that_may_not_be_sent(code: int) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(8, struct.pack("!H", code)))
        assert await raw.closed() == 1002


async def test_w12_bad_utf8_in_a_close_reason() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(8, struct.pack("!H", 1000) + b"\xff"))
        assert await raw.closed() == 1007


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999, None])
async def test_w13_close_while_a_stream_runs(code: int | None) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        start = trio.current_time()
        await raw.send(frame(8, struct.pack("!H", code) if code else b""))
        assert await raw.closed(answer=False) == (code or 1005)  # echoed
        await until(lambda: gw.service.closed)
        assert gw.service.closed[0][1].label == "client_gone"
        assert gw.service.closed[0][2] - start < 0.1


@pytest.mark.parametrize("way", ["fin", "rst", "half"])
async def test_w13_a_client_that_leaves_is_noticed_at_once(way: str) -> None:
    before = descriptors()
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*(request(f"r{i}", "hang") for i in range(8)))
        for _ in range(16):
            await raw.json()
        assert isinstance(raw.stream, trio.SocketStream)
        start = trio.current_time()
        if way == "half":
            await raw.stream.send_eof()
        else:
            if way == "rst":
                raw.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await raw.stream.aclose()
        await until(lambda: len(gw.service.closed) >= 8)
        assert max(at for _, _, at in gw.service.closed) - start < 0.1
        assert {outcome.label for _, outcome, _ in gw.service.closed} == {"client_gone"}
    assert descriptors() <= before


@pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; client_max_window_bits=abc", "x, y; z=1"])
async def test_w02_w14_no_extension_is_ever_negotiated(offer: str) -> None:
    async with gateway() as gw, connect(gw.port, f"Sec-WebSocket-Extensions: {offer}") as raw:
        assert b"extensions" not in raw.head.lower()
        await raw.send(frame(1, b"\xaa", rsv=0x40))  # compressed all the same
        assert await raw.closed() == 1002


async def test_w15_a_vanished_client_is_found_by_two_missed_pings() -> None:
    async with gateway(keepalive_ws=0.1) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        start = trio.current_time()
        assert await raw.frame() == (9, b"")
        assert await raw.frame() == (9, b"")  # neither is answered
        assert await raw.closed() is None
        assert 0.15 < trio.current_time() - start < 1
        await until(lambda: gw.service.closed)
        assert gw.service.closed[0][1].label == "client_gone"


async def test_w15_a_client_that_answers_stays() -> None:
    async with gateway(keepalive_ws=0.03) as gw, connect(gw.port) as raw:
        for _ in range(8):
            opcode, payload = await raw.frame()
            assert opcode == 9
            await raw.send(frame(10, payload))
        await raw.send(request("a", "say x"))
        await raw.until("llm_response_end")


async def test_w16_a_close_behind_messages_is_seen_although_nothing_is_read() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*(request(f"r{i}", "flood 100000") for i in range(3)))
        await until(lambda: gw.service.running >= 3)
        await trio.sleep(0.1)  # the outbox is full and its writer stalls
        start = trio.current_time()
        await raw.send(frame(8))
        await until(lambda: len(gw.service.closed) >= 3)
        assert trio.current_time() - start < 0.1


async def test_w17_a_cancel_in_the_middle_of_a_send_leaves_the_stream_whole() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("big", "flood 100000"))
        await trio.sleep(0.2)  # nobody reads: the kernel's buffers and the outbox are full, mid-frame
        stuck = gw.service.sent
        await trio.sleep(0.05)
        assert gw.service.sent == stuck, "a slow reader must slow its provider"
        assert stuck * 1024 < 20 * MIB
        await raw.send(message(type="llm_cancel", id="big"), request("next", "say fine"))
        frames = await raw.until("llm_response_end", "next")
        mine = [f for f in frames if f["id"] == "big"]
        assert [f["seq"] for f in mine] == list(range(len(mine)))
        assert mine[-1]["outcome"] == "cancelled"


async def test_s03_the_write_clock_cuts_a_client_that_does_not_read() -> None:
    async with gateway(write=0.2) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "flood 100000"), request("b", "hang"))
        await until(lambda: len(gw.service.closed) >= 2, 5)
        assert {outcome.label for _, outcome, _ in gw.service.closed} == {"timeout.write"}
        assert gw.service.closed[0][1].error is not None
        assert gw.service.closed[0][1].error.details.setting == "deadlines.write"


async def test_w29_w32_unknown_types_are_ignored_counted_and_1008_after_50() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(message(type="connect", scopes=["admin"], role="operator"), request("a", "say x"))
        assert (await raw.json())["id"] == "a"
        await raw.send(message(type="admin.reload") * 1000)
        assert await raw.closed() == 1008


async def test_w30_connect_and_say_nothing() -> None:
    before = descriptors()
    async with gateway(auth=0.15) as gw:
        async with connect(gw.port, token=None) as raw:
            error = await raw.json()
            assert (error["error"], error["clock"], error["limit_ms"]) == ("timeout.auth", "auth", 150)
            assert error["setting"] == "deadlines.auth"
            assert await raw.closed() == 4408
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(silent, gw)
    assert descriptors() <= before


async def silent(gw: Gateway) -> None:
    async with connect(gw.port, token=None) as raw:
        await raw.closed()


async def test_w30_an_authentication_that_hangs_is_cut_by_the_same_clock() -> None:
    async with gateway(FakeService(gate=trio.Event()), auth=0.1) as gw, connect(gw.port, auth=False) as raw:
        assert (await raw.json())["error"] == "timeout.auth"
        assert await raw.closed() == 4408


async def test_w31_a_large_first_frame_is_1009_and_never_parsed() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        try:
            await raw.send(message(type="auth", token="x" * MIB))
        except trio.BrokenResourceError:
            pass
        assert await raw.closed() == 1009
        assert gw.service.authenticated == []


async def test_after_authentication_the_limit_is_limits_frame() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "x" * MIB))
        frames = await raw.until("llm_response_end")
        assert sum(len(f.get("content", "")) for f in frames) == MIB


async def test_a_message_must_be_whole_in_time() -> None:
    async with gateway(body=0.15) as gw:
        for piece in (frame(1, b'{"type', fin=False), frame(1, b"x" * 100)[:20], frame(1, b"x" * 100)[:6]):
            async with connect(gw.port) as raw:
                await raw.send(piece)
                error = await raw.json()
                assert (error["error"], error["setting"]) == ("timeout.body", "deadlines.body")
                assert await raw.closed() == 4408
        async with connect(gw.port) as raw:  # and the clock stops with the message
            await raw.send(frame(1, b'{"type":', fin=False), frame(0, b'"ping"}'))
            await raw.json()
            await trio.sleep(0.25)
            await raw.send(request("a", "say x"))
            await raw.until("llm_response_end")


async def test_the_idle_clock() -> None:
    async with gateway(idle_ws=0.15) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        await trio.sleep(0.3)  # a request is open: not idle
        await raw.send(message(type="llm_cancel", id="a"))
        await raw.until("llm_response_end")
        error = await raw.json()
        assert (error["error"], error["setting"]) == ("timeout.idle", "deadlines.idle_ws")
        assert await raw.closed() == 4408


async def test_w34_pings_after_our_own_close() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(frame(1, b"not json"))
        await raw.json()
        assert (await raw.frame())[0] == 8
        await raw.send(frame(9, b"still there?"), message(type="ping"), frame(9), request("a", "hi"))
        await trio.sleep(0.02)
        await raw.send(frame(8, struct.pack("!H", 4400)))
        assert await raw.closed() is None  # nothing more but the end
        assert gw.service.requests == []
        await alive(gw)


async def test_w35_frames_in_the_same_segment_as_the_head() -> None:
    async with gateway() as gw:
        behind = message(type="auth", token="good") + request("a", "say early")
        async with connect(gw.port, token=None, behind=behind) as raw:
            assert "".join(f.get("content", "") for f in await raw.until("llm_response_end")) == "early"
        async with connect(gw.port, behind=request("a", "say early")) as raw:
            await raw.until("llm_response_end")


async def test_an_answer_under_way_goes_before_the_close_of_a_protocol_error() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "say " + "x " * 50), bytes.fromhex("C18000000000"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete"
        assert await raw.closed() == 1002
        async with connect(gw.port) as other:
            start = trio.current_time()
            await other.send(request("a", "hang"), bytes.fromhex("C18000000000"))
            assert (await other.until("llm_token"))[-1]["content"] == "so"
            assert await other.closed() == 1002
            assert trio.current_time() - start < 0.5


async def test_answers_nobody_reads_do_not_pile_up() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "flood 100000"))
        await trio.sleep(0.1)
        for index in range(32):
            await raw.send(request(f"r{index}", "hang"))
        with trio.move_on_after(5):
            try:
                for index in range(2000):  # each is refused: 32 are open
                    await raw.send(request(f"x{index}", "hi"))
                    await trio.lowlevel.checkpoint()
            except trio.BrokenResourceError:
                pass
        await until(lambda: not gw.service.running, 5)
        assert gw.active <= 1
