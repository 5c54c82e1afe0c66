"""Where two of the router's mechanisms meet: hedges, continued answers, policies, budgets and affinity, each with breakers.

Everything runs in the real pipeline, under the virtual clock. A place is brought down as a provider does it: by failing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve
from trio.testing import MockClock

from clawproxy.config import BudgetConfig, Config, Duration, Hedge, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.config.policies import PolicyConfig, RestrictConfig, Words
from clawproxy.context import Attempt
from clawproxy.errors import ClawError, Refusal
from clawproxy.hookspecs import hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import Route
from clawproxy.stores.base import Account, Standing
from clawproxy.testing import Answer, Claw, Fail, Pause, claw, sweep
from clawproxy.testing.upstream import Step
from clawproxy_router.health import Health, health_of
from clawproxy_router.hedging import hedges_of

DOWN = "provider_error.server"
BREAKER: Mapping[str, Any] = {"open": "1000s", "longest": "1000s"}
HEDGED = Hedge(Duration(1.0))


@define
class Crossing:
    claw: Claw

    @property
    def health(self) -> Health:
        return health_of(self.claw.gateway.app)

    def state(self, provider: str) -> str:
        breaker = self.health.breakers.get((provider, "m"))
        return "closed" if breaker is None else breaker.state

    def bring_down(self, provider: str, *, half_open: bool = False) -> None:
        """As five failures in a row do; `half_open`: and its time is over."""
        breaker = self.health.breaker((provider, "m"))
        guard_now = trio.current_time()
        breaker.state, breaker.until, breaker.noted = "open", guard_now + (0.0 if half_open else 1000.0), guard_now

    async def ask(self, prompt: str = "Hi", **changes: Any) -> Answer:
        return await self.claw.ask(prompt, model="both", **changes)


@asynccontextmanager
async def crossing(
    names: str = "ab", plugins: dict[str, object] | None = None, *, config: Mapping[str, Any] | None = None, **model: Any
) -> AsyncIterator[Crossing]:
    """A model `both` with a place at each of the providers."""
    both = ModelConfig(tuple(RouteConfig(name, "m") for name in names), **model)
    settings = {
        "providers": {name: ProviderConfig("scripted") for name in names},
        "models": {"both": both},
        "plugins": {"router": {"breaker": BREAKER, "retries": {"most": 0}}},
        **(config or {}),
    }
    async with claw(plugins, config=Config(**settings)) as running:
        running.gateway.app.random.seed(1)
        yield Crossing(running)
        assert running.at_rest()


def story(answer: Answer) -> list[tuple[str, str, str | None]]:
    assert answer.exchange is not None
    return [(attempt.route.provider, attempt.reason, attempt.outcome) for attempt in answer.exchange.attempts]


# --- hedges and breakers -----------------------------------------------------------------------------------------------


async def test_a_hedge_does_not_go_to_what_rests(autojump_clock: MockClock) -> None:
    async with crossing(hedge=HEDGED) as it:
        it.bring_down("b")
        it.claw.upstream.will_say(Pause(5), "slow")
        answer = await it.ask()
        assert (answer.text, story(answer)) == ("slow", [("a", "first", "complete")])
        assert it.state("b") == "open"
        assert hedges_of(it.claw.gateway.app).held == 10.0, "nothing was paid for it"
    async with crossing("abc", hedge=HEDGED) as it:
        it.bring_down("b")
        it.claw.upstream.will_say(Pause(5), "slow")
        it.claw.upstream.will_say("c answers")
        answer = await it.ask()
        assert story(answer) == [("a", "first", "cancelled"), ("c", "hedge", "complete")]


async def test_a_hedge_that_is_withheld_takes_neither_a_probe_nor_a_turn_nor_a_retry(autojump_clock: MockClock) -> None:
    async with crossing(hedge=HEDGED) as it:
        it.bring_down("b", half_open=True)
        purse = hedges_of(it.claw.gateway.app)
        purse.held = 0.0
        it.claw.upstream.will_say(Pause(5), "slow")
        answer = await it.ask()
        assert story(answer) == [("a", "first", "complete")]
        assert it.health.breakers["b", "m"].probe is None
        assert it.health.budget.tokens is None, "nobody asked for a retry"
        assert it.health.turns == {}
        assert it.claw.gateway.metrics.value("clawproxy_hedges_total", result="withheld") == 1


@pytest.mark.parametrize("good", [True, False])
async def test_a_hedge_may_be_the_probe(autojump_clock: MockClock, good: bool) -> None:
    async with crossing(hedge=HEDGED) as it:
        it.bring_down("b", half_open=True)
        it.claw.upstream.will_say(Pause(5), "slow")
        it.claw.upstream.will_say(*(["b answers"] if good else [Fail(DOWN)]))
        answer = await it.ask()
        assert story(answer)[1] == ("b", "hedge", "complete" if good else DOWN)
        assert it.state("b") == ("closed" if good else "open")


async def test_a_beaten_probe_gives_its_place_back(autojump_clock: MockClock) -> None:
    async with crossing(hedge=HEDGED) as it:
        it.bring_down("b", half_open=True)
        it.claw.upstream.will_say(Pause(2), "first after all")
        it.claw.upstream.will_say(Pause(5), "late")
        answer = await it.ask()
        assert story(answer) == [("a", "first", "complete"), ("b", "hedge", "cancelled")]
        assert (it.state("b"), it.health.breakers["b", "m"].probe) == ("half_open", None)


@pytest.mark.parametrize("model", [{"hedge": HEDGED}, {"continuation": True}, {"hedge": HEDGED, "continuation": True}])
async def test_a_route_that_may_be_hedged_or_go_on_is_known_again_as_the_probe(
    autojump_clock: MockClock, model: dict[str, Any]
) -> None:
    async with crossing(**model) as it:
        it.bring_down("a", half_open=True)
        it.claw.upstream.will_say("well again")
        assert story(await it.ask()) == [("a", "first", "complete")]
        assert it.state("a") == "closed"


@pytest.mark.parametrize("way", ["hedge", "continue"])
@pytest.mark.parametrize("seconds", [5, 20])
async def test_a_probe_that_races_or_goes_on_is_seen_at_work(autojump_clock: MockClock, way: str, seconds: int) -> None:
    """Once it says something the place is well; until then it stays the only one, however long it takes to."""
    model: dict[str, Any] = {"hedge": HEDGED} if way == "hedge" else {"continuation": True}
    speaks = seconds == 5
    async with crossing(**model) as it:
        it.bring_down("b", half_open=True)
        upstream = it.claw.upstream
        first: list[Step] = [Pause(90)] if way == "hedge" else ["Once ", Fail("provider_error.cut")]
        probe: list[Step] = ["b ", Pause(60), "answers"] if speaks else [Pause(60), "b answers"]
        upstream.will_say(*first)
        upstream.will_say(*probe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.ask)
            await trio.sleep(seconds)
            upstream.will_fail(DOWN)
            upstream.will_say("b again")
            story_now = [provider for provider, *_ in story(await it.ask())]
        assert story_now == (["a", "b"] if speaks else ["a"])


class Refuses:
    """Attempts at `b`: another plugin does not let them through."""

    def __init__(self, error: ClawError) -> None:
        self.error = error

    @hookimpl
    def open_attempt(self, route: Route) -> None:
        if route.provider == "b":
            raise self.error


@pytest.mark.parametrize("slug", ["provider_error.server", "timeout.queue", "timeout.first_token"])
async def test_a_hedge_that_a_plugin_refused_does_not_end_the_failover_of_the_first(autojump_clock: MockClock, slug: str) -> None:
    refusal = Refusal("refused.plugin", policy="refuses")
    async with crossing("abc", {"refuses": Refuses(refusal)}, hedge=HEDGED) as it:
        it.claw.upstream.will_say(Pause(2), Fail(slug))
        it.claw.upstream.will_say("c answers")
        answer = await it.ask()
        assert answer.text == "c answers"
        assert story(answer) == [("a", "first", slug), ("b", "hedge", "refused.plugin"), ("c", "failover", "complete")]
        assert it.state("b") == "closed", "that says nothing of the provider"


# --- continued answers and breakers --------------------------------------------------------------------------------------


async def test_an_answer_does_not_go_on_at_what_rests(autojump_clock: MockClock) -> None:
    async with crossing("abc", continuation=True) as it:
        it.bring_down("b")
        it.claw.upstream.will_say("Once ", Fail("provider_error.cut"))
        it.claw.upstream.will_say("upon a time")
        answer = await it.ask()
        assert answer.text == "Once upon a time"
        assert story(answer) == [("a", "first", "provider_error.cut"), ("c", "continue", "complete")]


async def test_nor_where_it_began_once_that_rests(autojump_clock: MockClock) -> None:
    """The cut was its fifth failure: the breaker is open, and nobody asks it for the rest."""
    async with crossing("a", continuation=True) as it:
        for _ in range(4):
            it.claw.upstream.will_say(Fail("provider_error.cut"))
            await it.ask()
        it.claw.upstream.will_say("Once ", Fail("provider_error.cut"))
        it.claw.upstream.will_say("never asked")
        answer = await it.ask()
        assert answer.text == "Once "
        assert story(answer) == [("a", "first", "provider_error.cut")]
        assert it.state("a") == "open"


async def test_the_rest_of_an_answer_may_be_the_probe(autojump_clock: MockClock) -> None:
    async with crossing(continuation=True) as it:
        it.bring_down("b", half_open=True)
        it.claw.upstream.will_say("Once ", Fail("provider_error.cut"))
        it.claw.upstream.will_say("upon a time")
        answer = await it.ask()
        assert story(answer)[1] == ("b", "continue", "complete")
        assert it.state("b") == "closed"


# --- policies and breakers -----------------------------------------------------------------------------------------------


async def test_a_policy_that_left_only_what_rests_is_not_gone_round(autojump_clock: MockClock) -> None:
    only_b = PolicyConfig(restrict=RestrictConfig(provider=Words(("b",))))
    async with crossing(config={"policies": {"only-b": only_b}}) as it:
        it.bring_down("b")
        answer = await it.ask()
        assert answer.error is not None
        assert answer.error.slug == "provider_error.breaker_open"
        assert story(answer) == []
        assert answer.exchange is not None
        assert {(each.provider, each.why) for each in answer.exchange.considered} == {("a", "policy"), ("b", "breaker_open")}
        assert answer.error.details.retry_after_ms


# --- budgets and failover --------------------------------------------------------------------------------------------------


async def test_each_attempt_is_reserved_and_settled_by_itself(autojump_clock: MockClock) -> None:
    budgets = {"all": BudgetConfig("global", "100000 tokens", "total"), "few": BudgetConfig("global", "3 concurrent")}
    async with crossing("abc", config={"budgets": budgets}, hedge=HEDGED) as it:
        it.claw.upstream.will_say(Fail(DOWN))
        it.claw.upstream.will_say(Fail(DOWN))
        it.claw.upstream.will_say("c answers")
        answer = await it.ask()
        assert [row[:2] for row in story(answer)] == [("a", "first"), ("b", "failover"), ("c", "failover")]
        rows = sorted(await it.claw.store.rows(), key=lambda row: row.opened.number)
        assert [row.closed is not None for row in rows] == [True] * 3
        it.claw.upstream.will_say(Pause(5), "slow")
        it.claw.upstream.will_say("hedged")
        assert len(story(await it.ask())) == 2
        rows = list(await it.claw.store.rows())
        used = sum((row.closed.input_tokens or 0) + (row.closed.output_tokens or 0) for row in rows if row.closed)
        tokens, concurrent = await standing(it.claw)
        assert (tokens.held, concurrent.held) == (0, 0), "nothing stays held"
        assert tokens.used == used, "each attempt counts once, the beaten and the failed too"


async def standing(gateway: Claw) -> tuple[Standing, Standing]:
    accounts = [Account("global", "tokens", "total", False), Account("global", "concurrent", "total", False)]
    one, other = await gateway.store.standing(accounts, 0.0)
    return one, other


# --- affinity and breakers -------------------------------------------------------------------------------------------------


async def test_affinity_draws_nobody_to_what_rests_and_back_afterwards(autojump_clock: MockClock) -> None:
    prompt = "the same long beginning of a conversation " * 200
    async with crossing("ab", strategy="load", affinity="prefix") as it:
        first = story(await it.ask(prompt))[0][0]
        other = "b" if first == "a" else "a"
        assert story(await it.ask(prompt)) == [(first, "first", "complete")]
        it.bring_down(first)
        assert story(await it.ask(prompt)) == [(other, "first", "complete")]
        it.health.breakers.clear()
        it.bring_down(other)
        assert story(await it.ask(prompt)) == [(first, "first", "complete")]


# --- all of it -------------------------------------------------------------------------------------------------------------


class Watching:
    def __init__(self) -> None:
        self.finished: list[str] = []

    @hookimpl
    def attempt_finished(self, attempt: Attempt) -> None:
        self.finished.append(attempt.id)


async def test_a_sweep_over_one_exchange_with_all_of_them(autojump_clock: MockClock) -> None:
    """A hedge wins, is cut, and its answer goes on, with budgets, a policy, affinity and a half-open breaker: wherever the client
    leaves, nothing stays held."""
    watching = Watching()
    config = {
        "budgets": {"all": BudgetConfig("global", "100000000 tokens", "total"), "few": BudgetConfig("global", "4 concurrent")},
        "policies": {"not-z": PolicyConfig(restrict=RestrictConfig(provider=Words(("a", "b", "c"))))},
        "plugins": {"router": {"breaker": BREAKER, "retries": {"most": 1}, "hedge_share": 1.0}},
    }
    async with crossing(
        "abcz", {"watching": watching}, config=config, hedge=HEDGED, continuation=True, strategy="load", affinity="prefix"
    ) as it:
        lifetimes: list[Lifetime] = []
        last: list[Answer] = []

        async def scenario(_: trio.CancelScope) -> None:
            it.claw.upstream.__init__()  # type: ignore[misc]
            it.health.breakers.clear()
            for name in "abc":
                it.bring_down(name, half_open=True)
            it.claw.upstream.will_say(Pause(5), "slow")
            it.claw.upstream.will_say("Once ", Fail("provider_error.cut"))
            it.claw.upstream.will_say("upon a time")
            lifetimes.append(Lifetime())
            last[:] = [await it.ask("a prompt " * 300, lifetime=lifetimes[-1])]

        async def check(point: int) -> None:
            await trio.lowlevel.checkpoint()
            assert it.claw.at_rest(), point
            assert all(breaker.probe is None for breaker in it.health.breakers.values()), point
            learned: Any = it.claw.gateway.app.shared["router"]
            assert not any(place.in_flight for place in learned.places.values()), point
            assert all(each.held == 0 for each in await standing(it.claw)), point
            assert all(row.closed is not None for row in await it.claw.store.rows()), point
            assert len(watching.finished) == len(set(watching.finished)), point

        points = await sweep(scenario, check, act=lambda _: lifetimes[-1].hang_up() if lifetimes else None, all_tasks=True)
        assert points > 20
        assert last[0].text == "Once upon a time"
        assert [reason for _, reason, _ in story(last[0])] == ["first", "hedge", "continue"]


def test_a_mark_survives_whoever_changes_a_route() -> None:
    assert evolve(Route("a", "m", mark=7), reason="hedge", hedge_after=None).mark == 7
