"""Affinity on conversations of many turns, with providers that have prompt caches, under the virtual clock."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from clawproxy.config import ModelConfig, Price
from clawproxy.messages import ChatRequest, Message, Route
from clawproxy.scripted import PromptCache
from tests.plugins.routing import SEED, Served, poisson, price, routes, world

SEEDS = [SEED, SEED + 1, SEED + 2]
NAMES = "abcdef"
SYSTEM = " ".join(f"rule{number}" for number in range(1024))


class Chats:
    """Conversations of several turns each, all with one system prompt; what is asked again is what was asked before, and more.
    Each instance has a cache of its own."""

    def __init__(self, seed: int, *, turns: int = 10, system: str = SYSTEM, ttl: float = 300.0) -> None:
        self.random = Random(seed)
        self.turns = turns
        self.system = system
        self.caches = {name: PromptCache(ttl) for name in NAMES}
        self.again = self.asked = self.cached = 0
        """Words of later turns that the turn before had, words of all, and those of the former that a cache had."""
        self.now = self.peak = 0
        self.paid = 0.0

    def words(self, count: int) -> str:
        first = self.random.randrange(10**9)
        return " ".join(str(first + number) for number in range(count))

    def behave(self, route: Route, request: ChatRequest) -> Served:
        body = {"messages": [{"role": each.role, "content": each.text()} for each in request.messages]}
        cached, words = self.caches[route.provider].read(route.model, body, trio.current_time())
        self.asked += words
        return Served(0.5, self.random.uniform(0.5, 6.0), 100, input=words, cached=cached)

    async def talk(self, sim: Any, session: str | None = None, pause: float = 2.0) -> None:
        messages: list[Message] = [Message("system", self.system)]
        said = 0
        for _ in range(self.turns):
            messages.append(Message("user", self.words(300)))
            self.now += 1
            self.peak = max(self.peak, self.now)
            extra = {"prompt_cache_key": session} if session else {}
            answer = await sim.claw.ask(ChatRequest("test-model", tuple(messages), extra=extra, stream=True))
            self.now -= 1
            assert answer.error is None
            self.cached += min(answer.usage.cached_tokens, said)
            self.again += said
            said = sum(len(each.text().split()) for each in messages)
            messages.append(Message("assistant", self.words(200)))
            await trio.sleep(self.random.expovariate(1 / pause))


def model(affinity: str, strategy: str = "load", **changes: Any) -> dict[str, ModelConfig]:
    return {"test-model": ModelConfig(routes(NAMES, **changes), strategy, affinity=affinity)}


async def run(chats: Chats, models: dict[str, ModelConfig], seed: int, count: int = 120, **options: Any) -> Any:
    async with world(models, chats.behave, seed=seed, **options) as sim:

        async def one(number: int) -> None:
            await chats.talk(sim, f"session-{number}" if models["test-model"].affinity == "session" else None)

        await poisson(sim.random, count, 10.0, one)
        return sim


def fairness(chats: Chats, sim: Any) -> tuple[float, float]:
    """The most in flight at one instance, and the most requests that one took, each against its fair share."""
    fair = max(1.0, chats.peak / len(NAMES))
    taken = Counter(sim.taken)
    return max(sim.most.values()) / fair, max(taken.values()) * len(NAMES) / len(sim.taken)


def told(chats: Chats, sim: Any) -> tuple[float, float, float]:
    share, (flights, requests) = chats.cached / chats.again, fairness(chats, sim)
    print(f"cached {share:.3f} of what was asked before; against a fair share: in flight {flights:.2f}, requests {requests:.2f}")
    return share, flights, requests


@pytest.mark.parametrize(
    ("affinity", "seed"), [("prefix", SEEDS[0]), ("prefix", SEEDS[1]), ("prefix", SEEDS[2]), ("session", SEEDS[0])]
)
async def test_affinity_gets_nine_tenths_of_what_can_be_cached(seed: int, affinity: str, autojump_clock: MockClock) -> None:
    chats = Chats(seed)
    share, flights, requests = told(chats, await run(chats, model(affinity), seed))
    assert share > 0.9
    assert flights <= 1.5
    assert requests <= 1.5


async def test_without_affinity_most_is_read_anew(autojump_clock: MockClock) -> None:
    chats = Chats(SEED, system="")
    share, _, _ = told(chats, await run(chats, model("off"), SEED, 40))
    assert share < 0.5


async def test_one_prompt_for_all_makes_no_hot_spot(autojump_clock: MockClock) -> None:
    """Whoever has the system prompt attracts everybody: within bounds."""
    chats = Chats(SEED, turns=1)
    flights, requests = fairness(chats, await run(chats, model("prefix"), SEED, 400))
    assert max(flights, requests) <= 1.5


async def test_weights_are_shares_of_conversations(autojump_clock: MockClock) -> None:
    chats = Chats(SEED, turns=4, system="")
    sim = await run(chats, model("prefix", "weighted", weight=[4, 2, 1, 1, 0, 0]), SEED, 200)
    taken = Counter(sim.taken)
    print(taken)
    assert not taken["e"] + taken["f"]
    assert chats.cached / chats.again > 0.9
    for name, weight in zip("abcd", (4, 2, 1, 1), strict=True):
        assert abs(taken[name] / len(sim.taken) - weight / 8) < 0.06, name


async def test_cost_counts_what_is_cached(autojump_clock: MockClock) -> None:
    """The second is cheaper for a cold prompt, the first for one that it has in its cache: who began there, because the second
    had just failed, stays there."""
    paid = {}
    dear, cheap = evolve(price("2", "2"), cached_input=Price(200_000)), price("1.8", "2")
    for affinity in ("off", "prefix"):
        chats = Chats(SEED, system="")
        models = {"test-model": ModelConfig(routes("ab", price=[dear, cheap]), "cost", affinity=affinity)}
        async with world(models, chats.behave) as sim:
            spent = 0.0

            def behave(route: Route, request: ChatRequest, chats: Chats = chats) -> Served:
                nonlocal spent
                if route.provider == "b" and len(request.messages) == 2:
                    return Served(fails="provider_error.server")
                served = chats.behave(route, request)
                assert served.input is not None
                assert served.cached is not None
                each = dear if route.provider == "a" else cheap
                read = each.input if each.cached_input is None else each.cached_input
                spent += (served.input - served.cached) * each.input + served.cached * read
                return served

            sim.behaviour = behave
            for _ in range(5):
                await chats.talk(sim)
            paid[affinity] = spent
    print(paid)
    assert paid["prefix"] < 0.6 * paid["off"]


async def test_latency_leaves_a_cache_for_what_is_twice_as_fast(autojump_clock: MockClock) -> None:
    slow = {"a": 1.0, "b": 1.2}
    models = {"test-model": ModelConfig(routes("ab"), "latency", affinity="prefix")}
    messages = (Message("user", "word " * 2000),)
    async with world(models, lambda route, _: Served(slow[route.provider]), settings={"explore": 0.0}) as sim:
        for number in range(2):
            await sim.claw.ask(ChatRequest("test-model", (Message("user", f"{number} " * 2000),), stream=True))
        assert sim.taken == ["a", "b"]
        slow["a"] = 1.3
        await sim.claw.ask(ChatRequest("test-model", (Message("user", "0 " * 2000), *messages), stream=True))
        assert sim.taken[-1] == "a"  # a little slower by now, and it has the prompt
        slow["a"] = 9.0
        await sim.claw.ask(ChatRequest("test-model", (Message("user", "0 " * 2000), *messages, *messages), stream=True))
        assert sim.taken[-1] == "a"
        await sim.claw.ask(ChatRequest("test-model", (Message("user", "0 " * 2000), *messages, *messages), stream=True))
        assert sim.taken[-1] == "b"


async def test_a_place_that_fails_is_forgotten(autojump_clock: MockClock) -> None:
    down: set[str] = set()
    messages = [Message("user", "word " * 2000)]
    async with world(
        model("prefix"), lambda route, _: Served(fails="provider_error.server" if route.provider in down else "")
    ) as sim:

        async def turn() -> str:
            messages.append(Message("user", "more " * 300))
            answer = await sim.claw.ask(ChatRequest("test-model", tuple(messages), stream=True))
            assert answer.error is None
            return str(sim.taken[-1])

        first = await turn()
        assert await turn() == first
        down.add(first)
        other = await turn()
        assert other != first
        tried = len(sim.taken)
        assert await turn() == other
        assert len(sim.taken) == tried + 1


async def test_a_cache_that_did_not_hit_draws_no_more(autojump_clock: MockClock) -> None:
    """The second place is where the conversation belongs; after a failover the first had it, or so it seemed."""
    hits = {"cached": 0}
    down = {"x"}
    messages = [Message("user", "word " * 2000)]

    def behave(route: Route, _: ChatRequest) -> Served:
        return Served(fails="provider_error.server" if route.provider in down else "", input=2500, cached=hits["cached"])

    async with world(model("prefix"), behave) as sim:

        async def turn() -> str:
            messages.append(Message("user", "more " * 300))
            await sim.claw.ask(ChatRequest("test-model", tuple(messages), stream=True))
            return str(sim.taken[-1])

        home = await turn()
        down.add(home)
        away = await turn()
        down.clear()
        hits["cached"] = 2000
        assert await turn() == away != home
        hits["cached"] = 0
        assert await turn() == away
        assert await turn() == home
