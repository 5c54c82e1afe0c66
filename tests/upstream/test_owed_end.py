"""The last chunk that comes after the terminal event: the connection waits for it in the pool, and for nothing else."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio

from clawproxy.events import End, Text
from tests.upstream.kit import CHUNKED, Bench, Conversation, Script, bench, chunk, eventually

ANSWER = CHUNKED + chunk(b"a\nEND\n")
LAST = b"0\r\n\r\n"


def late(*pieces: bytes, ends: bool = False, answer: bytes = ANSWER) -> Script:
    """Each answer's terminal event, and when the gateway has gone on, these pieces."""

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await talk.say(answer)
            await trio.sleep(0.01)
            await talk.say(*pieces)
            if ends:
                return

    return script


async def twice(b: Bench) -> int:
    """How many connections two answers took, with time between them for what is late."""
    for _ in range(2):
        assert await b.ask() == [Text("a"), End()]
        assert b.counts() == (0, 1, 0)
        await trio.sleep(0.05)
    return b.peer.opened


@pytest.mark.parametrize("cut", range(len(LAST)))
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_end_that_comes_late_keeps_the_connection(
    cut: int, tls: bool, server_tls: ssl.SSLContext, ca_file: Path
) -> None:
    script = late(LAST[cut:], answer=ANSWER + LAST[:cut])
    async with bench(script, server_tls if tls else None, **({"ca_file": ca_file} if tls else {})) as b:
        assert await twice(b) == 1
        assert b.pool.reused_total == 1


@pytest.mark.parametrize(
    "tail",
    [
        b"0\r\n",
        b"\r\n",
        b"5\r\n",
        b"00\r\n\r\n",
        b"0;x=y\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"0\r\n\r\n0\r\n\r\n",
        b"0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nb\nEND\n",
        b"1\r\nx\r\n0\r\n\r\n",
        b"garbage",
    ],
)
async def test_anything_else_that_comes_costs_it(tail: bytes) -> None:
    async with bench(late(tail)) as b:
        assert await twice(b) == 2


async def test_an_end_in_pieces_is_read_once() -> None:
    """It is looked at when the connection is asked for; what is not whole then is not waited for."""

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(ANSWER)
        await trio.sleep(0.01)
        await talk.say(b"0\r\n")
        await talk.gone()

    async with bench(script) as b:
        assert await twice(b) == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_end_with_a_close_behind_it_costs_it(tls: bool, server_tls: ssl.SSLContext, ca_file: Path) -> None:
    async with bench(late(LAST, ends=True), server_tls if tls else None, **({"ca_file": ca_file} if tls else {})) as b:
        assert await twice(b) == 2


async def test_nothing_but_a_close_costs_it() -> None:
    async with bench(late(b"", ends=True)) as b:
        assert await twice(b) == 2


async def test_bytes_that_are_the_end_only_by_their_looks() -> None:
    """The chunk that is still open says `0 CR LF CR LF`: an end for the eye, not for the framing."""
    answer = CHUNKED + b"d\r\na\nEND\n\r\n"
    async with bench(late(LAST + b"\r\n" + LAST, answer=answer)) as b:
        assert await twice(b) == 2
    async with bench(late(LAST, answer=answer)) as b:
        assert await twice(b) == 2


async def test_maintenance_takes_the_end_too() -> None:
    async with bench(late(LAST)) as b:
        assert await b.ask() == [Text("a"), End()]
        await trio.sleep(0.05)
        b.pool.sweep()
        assert b.counts() == (0, 1, 0)
        assert await b.ask() == [Text("a"), End()]
        assert b.peer.opened == 1


async def test_a_reader_that_was_not_satisfied_keeps_nothing() -> None:
    async with bench(late(LAST)) as b:

        async def reader() -> None:
            async with b.open() as stream:
                await stream.receive()
                raise RuntimeError("unsatisfied")

        with pytest.raises(RuntimeError, match="unsatisfied"):
            await reader()
        assert b.counts() == (0, 0, 0)
        await eventually(lambda: b.peer.open == 0)


async def test_a_connection_that_is_to_close_is_closed() -> None:
    answer = ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    async with bench(late(LAST, answer=answer)) as b:
        assert await b.ask() == [Text("a"), End()]
        assert b.counts() == (0, 0, 0)
