"""Look-ups: bounded, shared, kept for a while, and nobody else's trouble when they hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from clawproxy.errors import ClawError
from clawproxy.events import End, Text
from clawproxy.upstream.dial import connect_tcp
from clawproxy.upstream.dns import JOINABLE, Address, Resolver
from tests.upstream.kit import always, bench, descriptors, eventually, scripted_peer, whole

Info = tuple[Any, Any, Any, Any, tuple[Any, ...]]


def v4(address: str) -> Info:
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))


def v6(address: str) -> Info:
    return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0))


class Names:
    """A resolver's thread side. Names that begin with `hung` hang until the test ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()

    def __call__(self, host: str) -> list[Info]:
        self.asked.append(host)
        if host.startswith("hung"):
            self.release.wait(30)
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host.startswith("odd"):
            raise UnicodeError("label too long")
        return [v6("::1"), v6("::1"), v6("::2"), v6("::3"), v4("127.0.0.1"), v4("127.0.0.1")]


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.release.set()


async def test_addresses_alternate_between_families(names: Names) -> None:
    assert await Resolver(names).resolve("a.test", 443) == (
        (socket.AF_INET6, ("::1", 443, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", 443)),
        (socket.AF_INET6, ("::2", 443, 0, 0)),
        (socket.AF_INET6, ("::3", 443, 0, 0)),
    )


@pytest.mark.parametrize(("literal", "address"), [("192.0.2.1", ("192.0.2.1", 80)), ("2001:db8::1", ("2001:db8::1", 80, 0, 0))])
async def test_literals_are_not_looked_up(names: Names, literal: str, address: tuple[Any, ...]) -> None:
    resolver = Resolver(names)
    ((_, found),) = await resolver.resolve(literal, 80)
    assert found == address
    assert names.asked == []


async def test_one_look_up_serves_everyone_and_is_kept(names: Names, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 1
    resolver = Resolver(names)
    async with trio.open_nursery() as nursery:
        for port in range(1, 50):
            nursery.start_soon(resolver.resolve, "a.test", port)
    await resolver.resolve("a.test", 443)
    assert names.asked == ["a.test"]
    mock_clock.jump(31)
    await resolver.resolve("a.test", 443)
    assert names.asked == ["a.test"] * 2
    resolver.forget("a.test")
    await resolver.resolve("a.test", 443)
    assert names.asked == ["a.test"] * 3


@pytest.mark.parametrize("host", ["unknown.test", "odd.test"])
async def test_failures_are_errors_and_not_kept(names: Names, host: str) -> None:
    resolver = Resolver(names)
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await resolver.resolve(host, 443)
    assert names.asked == [host] * 2
    assert repr(resolver) == "<Resolver [0 running, 0 waiting | max 20]>"


async def test_the_systems_own_resolver() -> None:
    found = await Resolver().resolve("localhost", 80)
    assert (socket.AF_INET, ("127.0.0.1", 80)) in found or (socket.AF_INET6, ("::1", 80, 0, 0)) in found


async def test_fifty_hung_look_ups_hurt_nobody_else(names: Names) -> None:
    """TRIO.md, P-14. Other threads' work is untouched, and so are names that are known, literal, or shared."""
    resolver = Resolver(names)
    await resolver.resolve("known.test", 1)
    async with bench(always(whole(b"x.")), resolver=resolver) as b, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(resolver.resolve, f"hung{number}.test", 443)
        await eventually(lambda: repr(resolver) == "<Resolver [20 running, 30 waiting | max 20]>")
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        start = time.perf_counter()
        await trio.to_thread.run_sync(lambda: None)
        assert await b.ask(stream=False) == [Text("x."), End()]
        await resolver.resolve("known.test", 1)
        assert time.perf_counter() - start < 1
        nursery.cancel_scope.cancel()
    assert repr(resolver) == "<Resolver [20 running, 0 waiting | max 20]>", "those that never began are forgotten"
    names.release.set()
    await eventually(lambda: repr(resolver) == "<Resolver [0 running, 0 waiting | max 20]>")
    assert await resolver.resolve(names.asked[1], 1), "it came in after all, and is known"
    assert len(names.asked) == 21


async def test_fifty_requests_for_one_hung_name_take_one_thread(names: Names) -> None:
    resolver = Resolver(names)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(resolver.resolve, "hung.test", 443)
        await eventually(lambda: names.asked == ["hung.test"])
        assert await resolver.resolve("fine.test", 443)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_leaves_the_look_up_to_the_others(names: Names) -> None:
    resolver = Resolver(names)
    found: list[tuple[Address, ...]] = []

    async def wait() -> None:
        found.append(await resolver.resolve("hung.test", 443))

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.02):
            nursery.start_soon(wait)
            await resolver.resolve("hung.test", 443)
        names.release.set()
    assert len(found) == 1
    assert names.asked == ["hung.test"]


async def test_a_look_up_that_hangs_is_not_joined_for_ever(names: Names, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 1
    resolver = Resolver(names)
    with trio.move_on_after(0.02):
        await resolver.resolve("hung.test", 443)
    mock_clock.jump(JOINABLE + 1)
    names.release.set()
    names.asked.clear()
    # The old one may have just come in; what matters is that a new one was not made to wait for it.
    with trio.fail_after(1):
        assert await resolver.resolve("hung.test", 443)


async def test_waiting_look_ups_begin_when_others_end(names: Names) -> None:
    resolver = Resolver(names, limit=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, "hung.test", 443)
        await eventually(lambda: names.asked == ["hung.test"])
        nursery.start_soon(resolver.resolve, "b.test", 443)
        nursery.start_soon(resolver.resolve, "b.test", 444)
        await trio.testing.wait_all_tasks_blocked()
        assert repr(resolver) == "<Resolver [1 running, 1 waiting | max 1]>"
        names.release.set()
    assert names.asked == ["hung.test", "b.test"]


async def test_no_thread_to_be_had(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    resolver = Resolver(names)
    async with bench(always(whole(b"x.")), host="a.test", resolver=resolver) as b:
        with pytest.raises(ClawError) as caught:
            await b.ask()
        assert caught.value.slug == "overloaded"
    assert repr(resolver) == "<Resolver [0 running, 0 waiting | max 20]>"


# --- several addresses -----------------------------------------------------------------------------------------------------


def refusing() -> Address:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return socket.AF_INET, sock.getsockname()


async def silent() -> tuple[socket.socket, Address, list[socket.socket]]:
    """An address that neither accepts nor refuses: its queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = (int(socket.AF_INET), listener.getsockname())
    fillers: list[socket.socket] = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(address[1])
        fillers.append(filler)
    await trio.sleep(0.01)
    return listener, address, fillers


async def test_the_next_address_is_tried_at_once_after_a_refusal() -> None:
    async with scripted_peer(always()) as peer:
        start = time.perf_counter()
        sock = await connect_tcp((*[refusing() for _ in range(8)], (socket.AF_INET, ("127.0.0.1", peer.port))))
        assert time.perf_counter() - start < 1, "eight head starts would be two seconds"
        assert sock.getpeername()[1] == peer.port
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()


async def test_a_silent_address_gets_a_head_start_only() -> None:
    listener, address, fillers = await silent()
    async with scripted_peer(always()) as peer:
        before = descriptors()
        with trio.fail_after(2):
            sock = await connect_tcp((address, (socket.AF_INET, ("127.0.0.1", peer.port))))
        assert sock.getpeername()[1] == peer.port
        sock.close()
        await eventually(lambda: descriptors() == before and peer.open == 0)
    for one in (listener, *fillers):
        one.close()


async def test_where_none_answers_the_first_error_counts() -> None:
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        await connect_tcp((refusing(), refusing(), refusing()))
    assert descriptors() == before


async def test_a_race_that_is_cancelled_leaves_no_socket() -> None:
    listener, address, fillers = await silent()
    before = descriptors()
    for seconds in (0, 0.01, 0.3):
        with trio.move_on_after(seconds) as scope:
            await connect_tcp((address, address, address))
        assert scope.cancelled_caught
        assert descriptors() == before
    for one in (listener, *fillers):
        one.close()
