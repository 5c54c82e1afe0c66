"""Introspection under junk: what strangers show, however much of it, keeps no honest token out (A-18)."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qs

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import clawproxy_auth
from clawproxy.config import Config, SecretRef
from clawproxy.context import App
from clawproxy.errors import ClawError
from clawproxy.fetch import Fetched
from clawproxy.keys import generate
from clawproxy.secrets import Secret
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_credentials
from clawproxy_auth import introspection
from clawproxy_auth.introspection import IntrospectionSettings
from clawproxy_auth.keyring import AuthSettings
from clawproxy_auth.places import MOST_AT_ONCE, MOST_KNOWN, Place, Places

SETTINGS = AuthSettings(introspection=IntrospectionSettings("https://oauth.example/", "gw", SecretRef("", "s")))
STRANGER = "203.0.113.9"
TAKES, HONEST = 3.0, 0.1
"""Seconds for a look-up of junk, and of a token that is good."""


class NoStore:
    async def find_key(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()


class Server:
    """The authorization server: it knows tokens that begin with `good`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.broken = False

    async def fetch(self, _: str, *, body: bytes, **__: Any) -> Fetched:
        [token] = parse_qs(body.decode())["token"]
        good = token.startswith("good")
        self.asked.append(token)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await trio.sleep(HONEST if good else TAKES)
        finally:
            self.at_once -= 1
        if self.broken:
            raise ZeroDivisionError
        return Fetched(200, {}, json.dumps({"active": good, "sub": token}).encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(introspection, "fetch", server.fetch)
    return server


class Door:
    """A gateway's auth plugin, with one generation's state."""

    def __init__(self, nursery: trio.Nursery) -> None:
        resolve = lambda ref: Secret(ref.value)  # noqa: E731
        self.app = App(Config(), cast(Store, NoStore()), "t", None, resolve_secret=resolve, pepper=b"p" * 32, nursery=nursery)
        self.state = clawproxy_auth.configure(SETTINGS, self.app)

    async def verdict(self, token: str, peer: str = "198.51.100.1") -> str:
        try:
            principal = await clawproxy_auth.authenticate(make_credentials(token, peer=peer), self.state, self.app)
        except ClawError as error:
            return error.slug
        assert principal is not None
        return "in"

    async def junk(self, number: int, peer: str) -> None:
        await self.verdict(f"junk-{number}-{peer}", peer)


async def flooded(nursery: trio.Nursery, door: Door, peers: list[str], each: int = MOST_AT_ONCE + 6) -> None:
    for peer in peers:
        for number in range(each):
            nursery.start_soon(door.junk, number, peer)
    await trio.testing.wait_all_tasks_blocked()


async def test_a18_a_strangers_junk_keeps_nobody_else_out(server: Server, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        await flooded(nursery, door, [STRANGER])
        assert server.at_once == MOST_AT_ONCE, "whoever is alone has all of it"
        assert await door.verdict("good-new") == "in"
        await flooded(nursery, door, [f"203.0.113.{number}" for number in range(MOST_AT_ONCE - 1)])
        assert server.at_once == MOST_AT_ONCE
        assert await door.verdict("good-newer") == "in"
        nursery.cancel_scope.cancel()


async def test_a18_nor_whoever_was_let_in_before(server: Server, autojump_clock: MockClock) -> None:
    """From as many addresses as there are, and from the same as the junk."""
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        assert await door.verdict("good-old") == "in"
        door.state = clawproxy_auth.configure(SETTINGS, door.app)  # a reload forgets nobody
        await flooded(nursery, door, [f"203.0.113.{number}" for number in range(200)], each=10)
        assert await door.verdict("good-new") == "overloaded"
        assert await door.verdict("good-old", STRANGER) == "in"
        nursery.cancel_scope.cancel()


async def test_who_has_to_give_up_its_place_is_told_to_come_again(server: Server, autojump_clock: MockClock) -> None:
    told = []
    async with trio.open_nursery() as nursery:
        door = Door(nursery)

        async def junk(number: int) -> None:
            told.append(await door.verdict(f"junk-{number}", STRANGER))

        async with trio.open_nursery() as clients:
            for number in range(MOST_AT_ONCE):
                clients.start_soon(junk, number)
            await trio.testing.wait_all_tasks_blocked()
            assert await door.verdict("good") == "in"
        assert told.count("overloaded") == 1
        assert told.count("auth.invalid") + told.count("auth.throttled") == MOST_AT_ONCE - 1
        assert not door.app.shared["auth.places"]._taken


async def test_who_shows_one_token_many_times_is_asked_for_once(server: Server, autojump_clock: MockClock) -> None:
    verdicts = []
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        async with trio.open_nursery() as clients:

            async def client() -> None:
                verdicts.append(await door.verdict("good"))

            for _ in range(MOST_AT_ONCE * 3):
                clients.start_soon(client)
    assert verdicts == ["in"] * MOST_AT_ONCE * 3
    assert server.asked == ["good"]


async def test_who_leaves_takes_no_answer_with_it_and_the_last_one_ends_the_question(
    server: Server, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        first, second = trio.CancelScope(), trio.CancelScope()

        async def client(scope: trio.CancelScope) -> None:
            with scope:
                await door.verdict("junk")

        nursery.start_soon(client, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client, second)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert server.at_once == 1, "somebody waits for it"
        second.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert server.at_once == 0, "its place is free again"
        assert await door.verdict("junk") == "auth.invalid"
        assert server.asked == ["junk", "junk"]
        assert door.app.shared["auth.places"]._taken == 0


async def test_a_no_holds_for_a_moment_and_a_yes_is_not_kept_here(server: Server, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        for _ in range(3):
            assert await door.verdict("junk") == "auth.invalid"
            assert await door.verdict("good") == "in"
        assert server.asked == ["junk", "good", "good", "good"]
        await trio.sleep(introspection.REFUSED)
        assert await door.verdict("junk") == "auth.invalid"
        assert server.asked.count("junk") == 2


async def test_what_was_refused_is_bounded(server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introspection, "MOST_REFUSED", 5)
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        async with trio.open_nursery() as clients:
            for number in range(9):
                clients.start_soon(door.junk, number, STRANGER)
        state = door.state.introspection
        assert state is not None
        assert len(state._refused) == 5


async def test_a_gateways_own_key_is_shown_to_no_other_server(server: Server, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        assert await Door(nursery).verdict(generate().reveal()) == "auth.invalid"
    assert server.asked == []


async def test_a_defect_in_asking_is_as_harmless_as_a_server_that_is_down(server: Server, autojump_clock: MockClock) -> None:
    server.broken = True
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        assert await door.verdict("good") == "overloaded"
        server.broken = False
        assert await door.verdict("good") == "in"


@given(st.lists(st.tuples(st.integers(0, 62), st.integers(-40, 40), st.booleans()), max_size=40))
def test_fewer_addresses_than_places_leave_one(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever they take and give back; nobody's last one is taken away, and what is given back is free again."""
    places, lost = Places(), list[int]()
    taken: dict[int, tuple[int, Place]] = {}
    """By a number of its own: whose it is, and the place."""
    ids = iter(range(10_000))
    places.vouched(b"known", True)

    def holders() -> list[int]:
        return [number for one, (number, _) in taken.items() if one not in lost]

    for number, count, known in steps:
        for _ in range(count):
            before = set(holders())
            one = next(ids)
            place = places.take(b"known" if known else b"new", f"192.0.2.{number}", partial(lost.append, one))
            if place is not None:
                assert known or set(holders()) == before
                taken[one] = number, place
            assert len(holders()) == places._taken <= MOST_AT_ONCE
        for _ in range(-count):
            if taken:
                places.leave(taken.popitem()[1][1])
        if not any(place.network is None for _, place in taken.values()):
            another = places.take(b"new", "198.51.100.1", partial(lost.append, next(ids)))
            assert another is not None
            places.leave(another)
    for _, each in taken.values():
        places.leave(each)
    assert places._taken == 0
    assert not places._strangers


def test_known_tokens_are_bounded() -> None:
    places = Places()
    for number in range(MOST_KNOWN + 100):
        places.vouched(str(number).encode(), True)
    assert len(places._known) == MOST_KNOWN
    places.vouched(b"10050", False)
    assert b"10050" not in places._known
