"""A client that leaves is noticed while its request is at work; a quiet stream gets keep-alives; nothing interleaves."""

from __future__ import annotations

import math
import os

import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import Config
from clawproxy.transport.front import Front

from .support import Door, Raw, get, opened, post

pytestmark = pytest.mark.timed


async def leave_by_fin(raw: Raw) -> None:
    await trio.lowlevel.checkpoint()
    raw.close()


async def leave_by_reset(raw: Raw) -> None:
    await trio.lowlevel.checkpoint()
    raw.reset()


async def leave_by_half_close(raw: Raw) -> None:
    await raw.stream.send_eof()


async def leave_behind_unread_bytes(raw: Raw) -> None:
    await raw.send(get() * 20)
    raw.close()


WAYS = [leave_by_fin, leave_by_reset, leave_by_half_close, leave_behind_unread_bytes]


async def noticed_after(door: Door, raw: Raw, way: int) -> float:
    with trio.fail_after(2):
        await door.service.started.wait()
    await trio.sleep(0.02)
    begun = trio.current_time()
    await WAYS[way](raw)
    with trio.fail_after(2):
        await door.service.finished.wait()
    return door.service.ended_at[-1] - begun


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[way.__name__ for way in WAYS])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_its_request(way: int, stream: bool) -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"stream": stream, "say": ["a"], "hold": True}))
        assert await noticed_after(door, raw, way) < 0.02
        assert door.service.outcomes[0].label == "client_gone"
        await door.rest()
        assert len(door.front.monitor) == 0


async def test_without_epoll_the_sockets_are_peeked_at() -> None:
    async with opened(front=Front(epoll=False, pulse_step=0.02)) as door:
        for way in (0, 1):
            door.service.started, door.service.finished = trio.Event(), trio.Event()
            raw = await door.connect()
            await raw.send(post({"stream": True, "say": ["a"], "hold": True}))
            assert await noticed_after(door, raw, way) < 0.3
        assert [outcome.label for outcome in door.service.outcomes] == ["client_gone"] * 2
        await door.rest()


async def test_a_request_of_a_client_already_gone_is_cancelled_at_once() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"say": ["a"]}) + post({"say": ["b"], "hold": True}))
        await raw.stream.send_eof()
        with trio.fail_after(2):
            await door.service.finished.wait()
        await door.rest()
        assert door.service.outcomes[-1].label == "client_gone"


async def test_a_client_that_leaves_with_its_whole_answer_cancels_nothing() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"after": 0.1}))
        assert (await raw.answer()).status == 200
        raw.close()
        await door.rest()
        assert [outcome.label for outcome in door.service.outcomes] == ["complete"]


async def test_many_come_and_go_and_nothing_stays() -> None:
    async with opened() as door:
        descriptors = len(os.listdir("/proc/self/fd"))

        async def one(n: int) -> None:
            raw = await door.connect()
            await raw.send(post({"stream": True, "say": ["a"], "hold": True}))
            await raw.until(b"data: a\n\n")
            await WAYS[n % len(WAYS)](raw)

        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(one, n)
        for raw in door.clients:
            raw.close()
        await door.rest()
        assert (len(door.front), len(door.front.monitor), len(door.front.pulse)) == (0, 0, 0)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert {outcome.label for outcome in door.service.outcomes} == {"client_gone"}


# --- keep-alives -----------------------------------------------------------------------------------------------------------


def quiet(seconds: float) -> Config:
    return Config(deadlines=Deadlines(keepalive_sse=seconds))


async def test_a_quiet_stream_gets_comments_and_the_first_commits_the_200() -> None:
    async with opened(quiet(0.1)) as door:
        raw = await door.connect()
        await raw.send(post({"stream": True, "say": ["a"], "pause": 0.35, "fail": "provider_error.cut"}))
        answer = await raw.answer()
        assert answer.status == 200
        assert "x-claw-route" in answer.headers
        assert 2 <= answer.body.count(b": claw\n\n") <= 4
        assert b"data: a\n\n" in answer.body
        assert b"provider_error.cut" in answer.body
        await raw.send(get())
        assert (await raw.answer()).status == 200
        assert len(door.front.pulse) == 0


async def test_no_comments_while_there_is_content_nor_without_stream() -> None:
    async with opened(quiet(0.15)) as door:
        raw = await door.connect()
        await raw.send(post({"stream": True, "say": ["a"] * 10, "pause": 0.05}))
        assert b"claw" not in (await raw.answer()).body
        await raw.send(post({"say": ["a"], "pause": 0.4}))
        assert (await raw.answer()).body == b'{"text":"a"}'
    async with opened(quiet(math.inf)) as door:
        raw = await door.connect()
        await raw.send(post({"stream": True, "say": ["a"], "pause": 0.2}))
        assert b"claw" not in (await raw.answer()).body


async def test_comments_never_break_a_frame() -> None:
    """A reader that stops now and then leaves writes half done; the comments must fall between the chunks."""
    async with opened(quiet(0.01), front=Front(pulse_step=0.003), sndbuf=16384) as door:
        raw = await door.connect(buffer=4096)
        await raw.send(post({"stream": True, "say": ["y"] * 12, "size": 60_000, "pause": 0.03}))
        for _ in range(6):
            await trio.sleep(0.05)
            await raw.more()
        answer = await raw.answer(seconds=10)
        events = answer.body.split(b"\n\n")
        assert {event[:7] for event in events} == {b": claw", b"data: y", b"data: [", b""}
        assert [len(event) for event in events if event.startswith(b"data: y")] == [60_006] * 12
