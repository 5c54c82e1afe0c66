"""clawproxy_router.affinity: what a prompt is known by, what is remembered of caches, and for how long."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_router
from clawproxy.config import Config, ModelConfig
from clawproxy.context import App
from clawproxy.messages import ChatRequest, FilePart, ImagePart, Message, TextPart, Thinking, Tool, ToolCall, Usage
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_exchange, make_principal, make_request
from clawproxy_router import RouterSettings
from clawproxy_router.affinity import BLOCK, MOST_BLOCKS, MOST_KNOWN, Memory, Trail, learn, prefix_of, rank, trail_of, with_room
from tests.plugins.routing import routes

A, B = ("a", "m"), ("b", "m")
KEY = b"k" * 32


def app_of(**models: ModelConfig) -> App:
    return App(Config(models=models), cast(Store, None), "test", None, pepper=b"pepper")


def prompt(*texts: str, **changes: Any) -> ChatRequest:
    return make_request(messages=tuple(Message("user", text) for text in texts), **changes)


def prefix(request: ChatRequest) -> Trail:
    trail = prefix_of(request, KEY)
    assert trail is not None
    return trail


# --- what a prompt is known by ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "é"])
def test_of_one_message_of_many_mebibytes_only_the_beginning_is_read(letter: str) -> None:
    whole = prompt("", letter * (16 << 20))
    tracemalloc.start()
    try:
        trail = prefix(whole)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 << 20
    assert len(trail.blocks) == MOST_BLOCKS
    assert trail.blocks == prefix(prompt("", letter * (2 << 20))).blocks
    assert trail.size >= 16 << 20


def test_what_is_said_later_changes_nothing_of_what_was_said_before() -> None:
    first, second = prefix(prompt("x" * 5000)), prefix(prompt("x" * 5000, "y" * 3000))
    assert len(first.blocks) == 4
    assert second.blocks[:4] == first.blocks
    assert len(second.blocks) == 7
    assert first.root == second.root
    assert second.size > 8000


@pytest.mark.parametrize(
    "other",
    [
        prompt("y" + "x" * 4999),
        prompt("x" * 5000, model="other"),
        prompt("x" * 5000, tools=(Tool("t"),)),
        make_request(messages=(Message("assistant", "x" * 5000),)),
        make_request(messages=(Message("system", ""), Message("user", "x" * 5000))),
        make_request(messages=(Message("user", (TextPart("x" * 2000), ImagePart(url="u"), TextPart("x" * 3000))),)),
    ],
)
def test_what_is_different_at_the_beginning_is_different(other: ChatRequest) -> None:
    first, second = prefix(prompt("x" * 5000)), prefix(other)
    assert first.blocks[2:] != second.blocks[2:4]
    assert first.root != second.root


def test_everything_a_model_reads_counts() -> None:
    """And a block is known only with all that stands before it."""
    tail = "z" * 3000
    changes: list[dict[str, Any]] = [
        {"thinking": (Thinking("thought"),)},
        {"tool_calls": (ToolCall("1", "f", "{}"),)},
        {"content": (FilePart(file_id="file"), TextPart("said"))},
        {"tool_call_id": "call"},
        {"name": "somebody"},
        {"content": "said\ud800"},
    ]
    known = [prefix(make_request(messages=(Message("assistant", "said"), Message("user", tail))))]
    for change in changes:
        values = {"role": "assistant", "content": "said", **change}
        known.append(prefix(make_request(messages=(Message(**values), Message("user", tail)))))
    assert len({trail.blocks[-1] for trail in known}) == len(known)


def test_a_short_prompt_is_known_by_nothing() -> None:
    assert prefix_of(prompt("x" * 500), KEY) is None


def test_a_huge_prompt_is_known_by_its_beginning_in_time() -> None:
    request = prompt(*["x" * 10_000] * 800)
    began = time.process_time()
    trail = prefix(request)
    assert time.process_time() - began < 0.25  # 8 MB; 1 MiB of it hashed
    assert len(trail.blocks) == MOST_BLOCKS
    assert trail.size >= 8_000_000


def trail(kind: str, request: ChatRequest, key: str = "one", session: str | None = None, **changes: Any) -> Trail | None:
    exchange = make_exchange(principal=make_principal(key=key, **changes), session_id=session)
    return trail_of(kind, exchange, request, app_of())


def test_no_key_learns_of_anothers_prompts() -> None:
    mine, theirs = trail("prefix", prompt("x" * 2000), "one"), trail("prefix", prompt("x" * 2000), "two")
    assert mine is not None
    assert theirs is not None
    assert not set(mine.blocks) & set(theirs.blocks)
    memory = Memory()
    memory.keep(mine, A, 10.0, 0.0)
    assert memory.recall(theirs, 1.0) == {}


def test_sessions_are_named_by_their_clients() -> None:
    request = prompt("hello")
    named = attrs.evolve(request, extra={"prompt_cache_key": "s1"})
    asserted = attrs.evolve(request, metadata={"user_id": "s1"})
    assert trail("session", request) is None
    assert trail("session", named) == trail("session", request, session="s1")
    assert trail("session", named, "two") != trail("session", named)
    assert trail("session", asserted) is None
    assert trail("session", asserted, may_assert=True) == trail("session", named)
    assert trail("session", attrs.evolve(request, user="s1"), may_assert=True) == trail("session", named)
    assert trail("session", attrs.evolve(request, extra={"prompt_cache_key": ["s1"]})) is None


# --- what is remembered ----------------------------------------------------------------------------------------------------


def test_the_longest_that_each_place_has() -> None:
    memory = Memory()
    short, long = prefix(prompt("x" * 4000)), prefix(prompt("x" * 4000, "y" * 4000))
    memory.keep(short, A, 300.0, 0.0)
    memory.keep(long, B, 200.0, 0.0)
    found = memory.recall(long, 100.0)
    assert found[A] == pytest.approx(3 * BLOCK / long.size)
    assert found[B] == pytest.approx(7 * BLOCK / long.size)
    assert set(memory.recall(long, 250.0)) == {A}
    assert memory.recall(long, 300.0) == {}
    memory.forget(long, A)
    assert set(memory.recall(long, 100.0)) == {B}
    memory.forget(long, B, 3.5 * BLOCK / long.size)
    assert memory.recall(long, 100.0)[B] == pytest.approx(3 * BLOCK / long.size)
    memory.forget(long, B)
    assert not memory.known


def test_it_is_bounded_and_the_beginnings_stay() -> None:
    memory = Memory()
    first = prefix(prompt("x" * 4000))
    for number in range(MOST_KNOWN // MOST_BLOCKS + 2):
        memory.keep(first, A, 1e9, 0.0)
        memory.keep(prefix(prompt("x" * 4000, f"{number} " * 600_000)), A, 1e9, 0.0)
    assert len(memory.known) == MOST_KNOWN
    assert memory.recall(first, 1.0)[A] == pytest.approx(3 * BLOCK / first.size)


@given(st.lists(st.tuples(st.sampled_from("kfr"), st.sampled_from([A, B]), st.integers(0, 4), st.integers(1, 5)), max_size=40))
def test_a_place_is_said_to_have_only_what_it_was_given(steps: list[tuple[str, tuple[str, str], int, int]]) -> None:
    """Against a plain model: what each place was given of each conversation, and until when."""
    memory, given_ = Memory(), dict[tuple[tuple[str, str], bytes], float]()
    talks = [prefix(prompt(f"{talk} " * 600, *[f"{turn}" * 1500 for turn in range(4)])) for talk in range(2)]
    for now, (what, key, turn, ttl) in enumerate(steps):
        talk = talks[turn % 2]
        part = Trail(talk.blocks[: turn + 1], talk.root, talk.size)
        if what == "k":
            memory.keep(part, key, now + ttl, now)
            given_.update({(key, block): float(now + ttl) for block in part.blocks})
        elif what == "f":
            memory.forget(part, key)
            for block in part.blocks:
                given_.pop((key, block), None)
        for each, share in memory.recall(talk, now).items():
            for block in talk.blocks[: round(share * talk.size / BLOCK)]:
                assert given_[each, block] > now


@pytest.mark.parametrize(
    ("expected", "usage", "kept"),
    [
        (0.8, Usage(1000, 5, 790), True),
        (0.8, Usage(1000, 5, 410), True),
        (0.8, Usage(1000, 5, 390), False),
        (0.8, Usage(1000, 5, 0), False),
        (0.0, Usage(1000, 5, 0), True),
        (0.8, Usage(1000, 5, None), True),
        (0.8, Usage(0, 5, 0), True),
        (0.8, Usage(None, 5, 0), True),
        (0.8, None, True),
    ],
)
def test_what_the_provider_reports_is_believed(expected: float, usage: Usage | None, kept: bool) -> None:
    memory, talk = Memory(), prefix(prompt("x" * 20_000))
    if expected:
        memory.keep(talk, A, 10.0, 0.0)
        talk.expected[A] = expected
    learn(memory, talk, A, 300.0, 5.0, usage)
    share = memory.recall(talk, 9.0).get(A, 0.0)
    assert share > 0.9 if kept else share < 0.5
    assert bool(memory.recall(talk, 300.0)) is kept


# --- where a cold one goes -------------------------------------------------------------------------------------------------


def test_rendezvous_moves_only_what_it_has_to() -> None:
    roots = [prefix(prompt(f"{number} " * 1000)).root for number in range(400)]
    places = [(name, "m") for name in "abcd"]

    def home(root: bytes, among: list[tuple[str, str]]) -> tuple[str, str]:
        return min(among, key=lambda key: rank(root, key, 2 if key[0] == "a" else 1))

    before = [home(root, places) for root in roots]
    after = [home(root, places[:3]) for root in roots]
    assert all(first == second for first, second in zip(before, after, strict=True) if first[0] != "d")
    assert abs(sum(key[0] == "a" for key in before) / 400 - 2 / 5) < 0.08
    assert rank(roots[0], A, 0) == float("inf")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=12), st.floats(1.0, 3.0))
def test_somebody_has_room_and_nobody_has_too_much(places: list[tuple[int, int]], bound: float) -> None:
    loads, weights = [load for load, _ in places], [weight for _, weight in places]
    room = with_room(loads, weights, bound)
    total, shares = sum(loads) + 1, sum(weights)
    if not shares:
        assert all(room)
        return
    for load, weight, free in zip(loads, weights, room, strict=True):
        assert not free or load + 1 <= bound * total * weight / shares + 1
    if all(weights):
        assert any(room)


async def test_what_was_expected_is_told() -> None:
    app = app_of(**{"test-model": ModelConfig(routes("ab"), "load", affinity="prefix")})
    state = clawproxy_router.configure(RouterSettings(), app)
    request = prompt("x" * 8000)
    exchange = make_exchange()
    plan = await clawproxy_router.choose_route(exchange, request, state)
    assert plan is not None
    assert [each.cached for each in exchange.considered] == [None, None]
    asked = trail_of("prefix", exchange, request, app)
    assert asked is not None
    state.learned().caches.keep(asked, ("b", "m"), 1e12, 0.0)
    plan = await clawproxy_router.choose_route(exchange, request, state)
    assert plan is not None
    assert (plan.candidates[0].provider, plan.candidates[0].reason) == ("b", "cached")
    assert 1700 < (exchange.considered[0].cached or 0) <= 2000
    assert exchange.considered[1].cached is None


async def test_off_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(clawproxy_router, "trail_of", refuse)
    state = clawproxy_router.configure(RouterSettings(), app_of(**{"test-model": ModelConfig(routes("ab"), "load")}))
    assert await clawproxy_router.choose_route(make_exchange(), prompt("x" * 8000), state) is not None
