"""Every H row of the threat list, byte-exact, over raw sockets and through both engines.

A case passes if (1) the status is right, (2) a new connection is served afterwards, (3) there is exactly one answer where the
connection closes, (4) the exchange saw no call unless the request is good, (5) no connection stays behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from clawproxy.config import Config

from .support import TARGET, Case, Door, Raw, corpus, get, opened, post

CASES = [*corpus("heads"), *corpus("bodies")]
SAMPLE = [case for case in CASES if len(case.data) < 400][::6]
ENGINES = ["running"] if TARGET else ["httptools", "h11"]


class Running:
    """A gateway that is already up."""

    service = None

    async def connect(self) -> Raw:
        assert TARGET is not None
        host, _, port = TARGET.rpartition(":")
        return Raw(await trio.open_tcp_stream(host, int(port)))

    async def rest(self) -> None:
        pass


@asynccontextmanager
async def door_of(engine: str) -> AsyncIterator[Door | Running]:
    if engine == "running":
        yield Running()
    else:
        async with opened(Config(), engine=engine) as door:
            yield door


async def put(raw: Raw, data: bytes, pieces: int) -> None:
    """Send it, in `pieces` segments. The server may have closed before the last of them."""
    try:
        if pieces < 2:
            await raw.send(data)
            return
        step = max(1, len(data) // pieces)
        for at in range(0, len(data), step):
            await raw.send(data[at : at + step])
            await trio.sleep(0.0005)
    except trio.BrokenResourceError:
        pass


async def check(door: Door | Running, case: Case, pieces: int = 1) -> None:
    before = door.service.handled if door.service else 0
    raw = await door.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, raw, case.data, pieces)
        answer = await raw.answer(seconds=3)
    assert answer.status in case.status, answer
    assert answer.headers["x-request-id"]
    assert answer.headers["date"]
    if case.then:
        assert (await raw.answer()).status in case.then
    if case.either:
        assert b"HTTP/1.1" not in raw.buffer
    elif case.closes:
        assert await raw.rest(2) == b""
    else:
        await raw.send(get())
        assert (await raw.answer()).status == 200
    raw.close()
    if door.service is not None:
        calls = door.service.handled - before
        reached = answer.status == 200 or (answer.status == 400 and (not case.closes or case.then))
        assert calls <= (1 if reached else 0)
    again = await door.connect()
    await again.send(get())
    assert (await again.answer()).status == 200
    again.close()
    await door.rest()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_case(engine: str, case: Case) -> None:
    async with door_of(engine) as door:
        await check(door, case)


@pytest.mark.parametrize("engine", ENGINES)
async def test_cases_in_three_segments(engine: str) -> None:
    """H-48 over sockets; `test_split.py` cuts everywhere."""
    async with door_of(engine) as door:
        for case in SAMPLE:
            await check(door, case, pieces=3)


@pytest.mark.parametrize("engine", ENGINES)
async def test_one_segment_a_byte(engine: str) -> None:
    async with door_of(engine) as door:
        raw = await door.connect()
        await put(raw, post(), 100_000)
        assert (await raw.answer()).status == 200
        raw.close()
