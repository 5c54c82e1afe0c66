"""Cancel everywhere, over real sockets: the whole gateway, with the exchange ended at every n-th schedule point of any task.

Ways to end it: by its `Lifetime` (client_gone, cancelled, shutting_down), and by a client that really leaves (FIN, RST).
After each run: nothing held; one closing per exchange, one per attempt; the provider has nothing in progress; descriptors and
tasks are where they were; the next request, on a connection of its own, gets its own answer. At the end of a sweep the ledger
has exactly one closed row for each attempt, and none that was sent and not turned away is free.
"""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

from clawproxy.config import Config, ModelConfig, PipelineConfig, PoolConfig, ProviderConfig, RouteConfig
from clawproxy.config.schema import Duration
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome, Text
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.scripted import parse
from clawproxy.testing import sweep
from tests.e2e.harness import KEY, Running, descriptors, gateway
from tests.e2e.http_client import chat
from tests.e2e.websocket_client import Frames, masked, open_raw

LEFT = (trio.ClosedResourceError, trio.BrokenResourceError, EOFError)


class Counting:
    """A plugin that counts what must happen once."""

    def __init__(self) -> None:
        self.closings: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.attempts: dict[str, Attempt] = {}
        self.labels: Counter[str] = Counter()

    @hookimpl
    def attempt_finished(self, attempt: Attempt) -> None:
        self.finished[attempt.id] += 1
        self.attempts[attempt.id] = attempt

    @hookimpl
    async def exchange_closed(self, exchange: Exchange, outcome: Outcome) -> None:
        await trio.lowlevel.checkpoint()  # a place to be cancelled at, if it were not shielded
        self.closings[exchange.request_id] += 1
        self.labels[outcome.label] += 1
        for attempt in exchange.attempts:
            self.attempts[attempt.id] = attempt


class HoldsBack:
    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])


# --- scenarios -----------------------------------------------------------------------------------------------------------


@attrs.define
class Client:
    """The client of one run."""

    running: Running
    stream: trio.SocketStream | None = None

    async def connect(self) -> trio.SocketStream:
        self.stream = await self.running.connect()
        return self.stream

    def leave(self, *, rude: bool) -> None:
        if self.stream is not None and self.stream.socket.fileno() >= 0:
            if rude:
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.stream.socket.close()


async def over_http(client: Client, script: str, *, stream: bool) -> None:
    connection = await client.connect()
    with contextlib.suppress(*LEFT):
        await chat(connection, f"script: {script}", key=KEY, stream=stream)


async def plain(client: Client) -> None:
    await over_http(client, "pause 3ms; say a whole answer", stream=False)


async def streaming(client: Client) -> None:
    await over_http(client, "tokens 4", stream=True)


async def slow_client(client: Client) -> None:
    """It takes a while before it reads an answer larger than what the kernel holds for it."""
    connection = trio.SocketStream(trio.socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    await connection.socket.connect(client.running.address)
    client.stream = connection
    body = json.dumps(
        {"model": "test-model", "stream": True, "messages": [{"role": "user", "content": "script: chunk 400; tokens 60000"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(*LEFT):
        await connection.send_all(head.encode() + body)
        await trio.sleep(0.01)
        while await connection.receive_some(262144):
            pass


async def over_websocket(client: Client) -> None:
    connection = await client.connect()
    with contextlib.suppress(*LEFT):
        frames = Frames(connection, await open_raw(connection, KEY))
        await frames.next()
        message = {"type": "llm_request", "id": "r", "model": "test-model", "prompt": "script: tokens 4"}
        await connection.send_all(masked(json.dumps(message).encode()))
        while (await frames.next())["type"] not in {"llm_response_end", "error"}:
            pass


# --- gateways ------------------------------------------------------------------------------------------------------------

ORDER = PipelineConfig().order


@asynccontextmanager
async def ordinary(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    async with gateway(tmp_path, plugins={"counting": counting}, pipeline=PipelineConfig(("counting", *ORDER))) as running:
        yield running


@asynccontextmanager
async def holding(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    order = ("counting", "holds", *ORDER)
    plugins: dict[str, object] = {"counting": counting, "holds": HoldsBack()}
    async with gateway(tmp_path, plugins=plugins, pipeline=PipelineConfig(order)) as running:
        yield running


def through(config: Config, base_url: str, **changes: Any) -> ProviderConfig:
    return attrs.evolve(config.providers["scripted"], base_url=base_url, **changes)


@asynccontextmanager
async def failing_over(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    async with gateway(tmp_path / "provider") as other:
        other.provider.by_model["on-first"] = parse("status 503")
        working = other.config.providers["scripted"]
        names = ("first", "second")
        async with gateway(
            tmp_path / "gateway",
            plugins={"counting": counting},
            pipeline=PipelineConfig(("counting", *ORDER)),
            providers=dict.fromkeys(names, working),
            models={"test-model": ModelConfig(tuple(RouteConfig(name, f"on-{name}") for name in names))},
        ) as running:
            running.provider = other.provider
            yield running


@asynccontextmanager
async def over_tls(tmp_path: Path, counting: Counting) -> AsyncIterator[Running]:
    """The provider behind TLS, under a name (so that two addresses may be raced), and a new connection for each request."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with gateway(tmp_path / "provider") as other, trio.open_nursery() as nursery:
        host, port = other.provider.url.removeprefix("http://").split(":")

        async def terminate(front: trio.SSLStream[trio.SocketStream]) -> None:
            back = await trio.open_tcp_stream(host, int(port))
            async with trio.open_nursery() as pumps:

                async def pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
                    with contextlib.suppress(*LEFT):
                        async for data in source:
                            await sink.send_all(data)
                    pumps.cancel_scope.cancel()

                pumps.start_soon(pump, front, back)
                pumps.start_soon(pump, back, front)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(back)
                await trio.aclose_forcefully(front)

        serve = await nursery.start(lambda task_status: _serve_tls(terminate, context, task_status))
        provider = ProviderConfig(
            base_url=f"https://localhost:{serve}/v1",
            ca_file=tmp_path / "ca.pem",
            pool=PoolConfig(max=8, lifetime=Duration(0.0)),
        )
        async with gateway(
            tmp_path / "gateway",
            plugins={"counting": counting},
            pipeline=PipelineConfig(("counting", *ORDER)),
            providers={"scripted": provider},
        ) as running:
            running.provider = other.provider
            yield running
        nursery.cancel_scope.cancel()


async def _serve_tls(handler: Callable[[Any], Awaitable[None]], context: Any, task_status: trio.TaskStatus[int]) -> None:
    """On both loopback addresses where there are two, so that `localhost` is a race."""
    first = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = first.socket.getsockname()[1]
    listeners = [first]
    with contextlib.suppress(OSError):
        listeners += await trio.open_tcp_listeners(port, host="::1")
    wrapped = [trio.SSLListener(listener, context, https_compatible=True) for listener in listeners]
    task_status.started(port)
    await trio.serve_listeners(_quietly(handler), wrapped)


def _quietly(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def run(stream: Any) -> None:
        with contextlib.suppress(*LEFT):
            await handler(stream)

    return run


# --- the sweep -----------------------------------------------------------------------------------------------------------


def cancel(slug: str) -> Callable[[Running, Client], None]:
    def act(running: Running, _: Client) -> None:
        for call in tuple(running.server.gateway.calls):
            if slug == "client_gone":
                call.lifetime.hang_up()
            else:
                call.lifetime.cancel(ClawError(slug))

    return act


ENDS: dict[str, Callable[[Running, Client], None]] = {
    "client_gone": cancel("client_gone"),
    "cancelled": cancel("cancelled"),
    "shutting_down": cancel("shutting_down"),
    "FIN": lambda _, client: client.leave(rude=False),
    "RST": lambda _, client: client.leave(rude=True),
}
SCENARIOS: list[tuple[str, Any, Any, int]] = [
    ("plain", ordinary, plain, 1),
    ("streaming", ordinary, streaming, 1),
    ("websocket", ordinary, over_websocket, 2),
    ("failover", failing_over, streaming, 2),
    ("slow-client", ordinary, slow_client, 8),
    ("held-back", holding, streaming, 1),
    ("tls", over_tls, streaming, 4),
]


class Baseline:
    """What a gateway at rest holds, idle provider connections aside (each is two descriptors and one task in this process)."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.descriptors, self.tasks = self.now()

    def now(self) -> tuple[int, int]:
        idle = sum(pool.idle for pool in self.running.server.gateway.current.upstream.statistics().values())  # type: ignore[attr-defined]
        return descriptors() - 2 * idle, trio.lowlevel.current_statistics().tasks_living - idle

    def reached(self) -> bool:
        busy = self.running.provider.log.in_progress or not self.running.is_at_rest()
        return not busy and self.now() == (self.descriptors, self.tasks)

    def __str__(self) -> str:
        return f"at rest: {self.running.is_at_rest()}; descriptors and tasks: {(self.descriptors, self.tasks)} -> {self.now()}"


async def settles(ready: Callable[[], bool], what: Callable[[], object]) -> None:
    with trio.move_on_after(4):
        while not ready():
            await trio.sleep(0.001)
        return
    raise AssertionError(what())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("name", "made", "scenario", "step"), SCENARIOS, ids=[row[0] for row in SCENARIOS])
async def test_the_invariants_hold_wherever_it_ends(
    tmp_path: Path, name: str, made: Any, scenario: Callable[[Client], Awaitable[None]], step: int, end: str
) -> None:
    gc.collect()  # what other tests left is not to be counted
    counting = Counting()
    async with made(tmp_path, counting) as running:
        await next_request_works(running, "warm-up")
        with trio.fail_after(3):
            await running.at_rest()
        await running.server.gateway.app.store.rows()  # its connections open their files at their first use
        await trio.sleep(0.05)
        baseline = Baseline(running)
        clients: list[Client] = []
        seen: set[str] = set()
        log = running.provider.log

        async def run(_: trio.CancelScope) -> None:
            clients[:] = [Client(running)]
            with trio.fail_after(5):
                await scenario(clients[0])
                clients[0].leave(rude=False)

        async def check(point: int) -> None:
            where = f"{name}, {end}, point {point}"
            await settles(baseline.reached, lambda: f"{where}: {baseline}; {log}")
            again = [request for request, count in counting.closings.items() if count != 1]
            assert not again, f"{where}: closed more than once: {again}"
            assert all(count == 1 for count in counting.finished.values()), where
            cut: set[int] = set()
            for entry in log.entries:
                assert entry.connection not in cut, f"{where}: a connection was used again after an answer that was not whole"
                if entry.state != "finished":
                    cut.add(entry.connection)
                assert entry.request_id
                seen.add(entry.request_id)
            log.clear()
            await next_request_works(running, f"after-{point}")

        def act(_: trio.CancelScope) -> None:
            if clients:
                ENDS[end](running, clients[0])

        points = await sweep(run, check, act=act, all_tasks=True, step=step)
        assert points > 10
        await books_are_right(running, counting, seen)
        assert counting.labels["complete"], "the later points come too late to matter"
        expected = end if end in ENDS and not end.isupper() else "client_gone"
        assert counting.labels[expected], f"no run was ended: {counting.labels}"
        assert set(counting.labels) <= {expected, "complete"}, counting.labels


async def next_request_works(running: Running, marker: str) -> None:
    with trio.fail_after(3):
        async with await running.connect() as connection:
            reply = await chat(connection, f"script: say {marker}", key=KEY, stream=False, headers={"connection": "close"})
    assert reply.status == 200, reply
    assert reply.json()["choices"][0]["message"]["content"].lower() == marker


async def books_are_right(running: Running, counting: Counting, seen: set[str]) -> None:
    store = running.server.gateway.app.store
    await store.flush()
    rows = await store.rows()
    assert sorted(row.opened.id for row in rows) == sorted(counting.attempts), "one row for each attempt"
    assert set(counting.finished) == set(counting.attempts)
    assert seen <= set(counting.attempts), "the provider saw an id that is in no ledger"
    for row in rows:
        attempt = counting.attempts[row.opened.id]
        assert row.closed is not None, f"{row.opened.id} was never closed"
        assert row.closed.outcome == attempt.outcome
        assert row.closed.sent == attempt.sent
        assert row.closed.outcome != "internal", attempt
        turned_away = attempt.error is not None and (attempt.error.details.provider_status or 0) >= 300
        if row.closed.sent and not turned_away:
            assert row.closed.input_tokens, f"{row.opened.id} was sent and is free: {attempt}"
        if row.opened.id in seen:
            assert row.closed.sent
