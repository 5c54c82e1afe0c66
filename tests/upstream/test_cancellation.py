"""Cancelled anywhere, nothing is left: no place, no descriptor, no half-used connection."""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from clawproxy.config import PoolConfig
from clawproxy.errors import ProviderFault
from tests.upstream.kit import (
    CHUNKED,
    Bench,
    Conversation,
    RecordedPhases,
    Script,
    always,
    bench,
    chunk,
    descriptors,
    eventually,
    once,
    whole,
)
from tests.upstream.sweep import sweep

STREAM = (CHUNKED, chunk(b"a\n"), chunk(b"b\nEND\n") + b"0\r\n\r\n")


async def one_answer(b: Bench) -> None:
    await b.ask(phases=RecordedPhases())


async def two_answers(b: Bench) -> None:
    await b.ask(phases=RecordedPhases())
    await b.ask(phases=RecordedPhases())


async def two_connections(b: Bench) -> None:
    await b.ask(phases=RecordedPhases())
    await eventually(lambda: b.peer.open == 0)
    await b.ask(phases=RecordedPhases())


async def a_fault(b: Bench) -> None:
    with pytest.raises(ProviderFault):
        await b.ask(phases=RecordedPhases())


async def a_large_request(b: Bench) -> None:
    await b.ask("x" * 4_000_000, phases=RecordedPhases())


def slowly(*pieces: bytes) -> Script:
    """Reads the request in small pieces, so that sending it takes many steps."""

    async def script(talk: Conversation) -> None:
        left = 4_000_000
        while left > 0:
            data = await talk.stream.receive_some(262_144)
            if not data:
                return
            left -= len(data)
            await trio.lowlevel.checkpoint()
        await talk.say(*pieces)
        await talk.gone()

    return script


@pytest.mark.parametrize(
    ("scenario", "script", "least"),
    [
        (one_answer, always(*STREAM), 3),
        (two_answers, always(*STREAM), 6),
        (two_connections, once(*STREAM), 6),
        (a_fault, always(whole(b"no", "500 Oops")), 2),
        (a_fault, once(CHUNKED, chunk(b"a\n"), reset=True), 3),
        (a_large_request, slowly(*STREAM), 5),
    ],
    ids=["answer", "reuse", "reconnect", "status 500", "reset", "large request"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_cancelled_at_every_point(
    scenario: Callable[[Bench], Awaitable[None]],
    script: Script,
    least: int,
    tls: bool,
    name: str,
    server_tls: ssl.SSLContext,
    ca_file: Path,
) -> None:

    async with AsyncExitStack() as stack:
        changes: dict[str, object] = {"ca_file": ca_file} if tls else {}
        b = await stack.enter_async_context(bench(script, server_tls if tls else None, host=name, **changes))
        before = descriptors()

        async def run() -> None:
            await scenario(b)

        async def check() -> None:
            active, idle, waiting = b.counts()
            assert (active, waiting) == (0, 0), repr(b.pool)
            assert idle <= 1
            b.pool.sweep()
            while b.pool._idle:
                b.pool._idle.pop().close()
            # The peer's side may still be in the listener's queue; ours is gone at once, or this never becomes true.
            await eventually(lambda: b.peer.open == 0 and descriptors() == before)

        assert await sweep(run, check) >= least


async def test_cancelled_while_waiting_for_a_place() -> None:
    async with bench(always(*STREAM), pool=PoolConfig(max=1)) as b:

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: b.ask(phases=RecordedPhases(), fair_key="other"))
                nursery.start_soon(lambda: b.ask(phases=RecordedPhases(), fair_key="third"))
                await b.ask(phases=RecordedPhases())

        async def check() -> None:
            await trio.lowlevel.checkpoint()
            assert b.counts()[0] == b.counts()[2] == 0, repr(b.pool)

        assert await sweep(run, check) >= 3


@pytest.mark.slow
async def test_ten_thousand_cancels_that_race_with_the_end_of_connect() -> None:
    """TRIO.md, P-11: the cancel that lands in the same tick as the connection costs other pools a place for ever.

    On the loopback a connection is there within a tick, so those after no tick at all are the ones that hit.
    """
    chance = random.Random(11)
    async with bench(once(whole(b"x.", "200 OK", "connection: close")), pool=PoolConfig(max=50)) as b:
        before = descriptors()
        ends = {"connect": 0, "first_token": 0, "finished": 0}

        async def user() -> None:
            for _ in range(575):  # an eighth of them is left to finish
                with trio.CancelScope() as scope:
                    phases = RecordedPhases()
                    ticks = chance.choice([-1, 0, 0, 1, 1, 2, chance.randrange(30), None])
                    if ticks == -1:
                        scope.cancel()
                    elif ticks is not None:
                        nursery.start_soon(cancel_later, scope, ticks)
                    async with b.open(stream=False, phases=phases) as stream:
                        await stream.receive()
                        phases.enter("finished")
                if phases.entered:
                    ends[phases.entered[-1]] += 1

        async def cancel_later(scope: trio.CancelScope, ticks: int) -> None:
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(user)
        assert min(ends.values()) > 100, f"the cancels did not race with everything: {ends}"
        active, _, waiting = b.counts()
        assert (active, waiting) == (0, 0), repr(b.pool)
        await eventually(lambda: b.peer.open == 0 and descriptors() == before, 10)
        with trio.fail_after(2):
            await b.ask(stream=False)


async def test_the_provider_hears_at_once_that_nobody_listens() -> None:
    gone = trio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(CHUNKED + chunk(b"a\n"))
        await talk.gone()
        gone.set()

    async with bench(script) as b:
        with trio.CancelScope() as scope:
            async with b.open() as stream:
                await stream.receive()
                trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
                await stream.receive()
        assert scope.cancelled_caught
        assert b.counts() == (0, 0, 0)
        with trio.fail_after(0.5):
            await gone.wait()


async def test_closing_twice_gives_one_place_back() -> None:
    async with bench(always(whole(b"x."))) as b:
        async with b.open(stream=False) as stream:
            stream.close()
            stream.close()
            assert await stream.receive() is None
        assert b.counts()[0] == 0
