"""clawproxy_router's strategies: what is left out, what comes first, why, and that they all fail over alike."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any, cast

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import clawproxy_router
from clawproxy.config import Config, ModelConfig, RouteConfig
from clawproxy.context import App, Attempt
from clawproxy.errors import KINDS, ClawError
from clawproxy.lifetime import Lifetime
from clawproxy.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    Route,
    TextPart,
    Tool,
)
from clawproxy.stores.base import Store
from clawproxy.testing import Fail
from clawproxy.testing.factories import make_attempt, make_exchange, make_principal, make_request
from clawproxy_audit.rows import audit_row
from clawproxy_router import PriorityPlan, RouterSettings
from clawproxy_router.learned import MOST_PLACES, MOST_SORTS, Average, Learned
from clawproxy_router.needs import needs_of
from clawproxy_router.tree import WORDS
from tests.plugins.routing import Behaviour, Served, price, routes, world

STRATEGIES = ("weighted", "cost", "latency", "load", "capability", "region")
CHEAP = [price("1", "1"), price("2", "2"), price("3", "3"), price("4", "4")]


def app_of(models: dict[str, ModelConfig], seed: int = 1) -> App:
    return App(Config(models=models), cast(Store, None), "test", None, random=Random(seed))


async def chosen(models: dict[str, ModelConfig], request: ChatRequest | None = None, *tags: str, app: App | None = None) -> Any:
    """The plan, and the exchange."""
    app = app or app_of(models)
    exchange = make_exchange(principal=make_principal(tags=tags))
    state = clawproxy_router.configure(RouterSettings(), app)
    plan = await clawproxy_router.choose_route(exchange, request or make_request(), state)
    assert plan is not None
    return plan, exchange


async def order(model: ModelConfig, request: ChatRequest | None = None, *tags: str, **more: ModelConfig) -> str:
    plan, _ = await chosen({"test-model": model, **more}, request, *tags)
    return "".join(route.provider for route in plan.candidates)


def failing(down: set[str]) -> Behaviour:
    """Those that are `down` fail."""
    return lambda route, _: Served(fails="provider_error.server" if route.provider in down else "")


def asking(*parts: Any, **changes: Any) -> ChatRequest:
    return make_request(messages=(Message("user", parts or "hello"),), **changes)


# --- what a request needs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "needed"),
    [
        (asking(), set()),
        (asking(TextPart("a"), ImagePart("https://x.example/a.png")), {"images"}),
        (asking(AudioPart("AA==", "wav")), {"audio"}),
        (asking(FilePart("AA==")), {"files"}),
        (asking(tools=(Tool("t", parameters={"type": "object"}),)), {"tools"}),
        (make_request(messages=(Message("tool", "4", tool_call_id="a"),)), {"tools"}),
        (asking(response_format=ResponseFormat("json_schema", {"schema": {}})), {"json_schema"}),
        (asking(response_format=ResponseFormat("json_object")), set()),
        (asking(dialect="claw", metadata={"capabilities": "tools, own-tag"}), {"tools", "own-tag"}),
        (asking(metadata={"capabilities": "tools", "quality": "best", "region": 4}), set()),
    ],
)
def test_needs_are_read_off_the_request(request_: ChatRequest, needed: set[str]) -> None:
    assert needs_of(request_, make_principal()).capabilities == needed


@pytest.mark.parametrize(
    "metadata", [{"capabilities": 4}, {"capabilities": "Tools!"}, {"quality": "best"}, {"quality": -1}, {"quality": True},
                 {"region": ""}, {"region": 3}, {"capabilities": ",".join(f"t{n}" for n in range(33))}],
)  # fmt: skip
def test_metadata_that_can_not_be_meant_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(ClawError, match=f"metadata.{next(iter(metadata))}") as caught:
        needs_of(asking(dialect="claw", metadata=metadata), make_principal())
    assert caught.value.slug == "invalid_request"


def test_the_operators_region_binds_and_the_clients_does_not() -> None:
    request = asking(dialect="claw", metadata={"region": "us", "quality": "3"})
    ours, theirs = needs_of(request, make_principal(tags=("x", "region:eu"))), needs_of(request, make_principal())
    assert (ours.region, ours.bound, ours.quality) == ("eu", True, 3)
    assert (theirs.region, theirs.bound) == ("us", False)


# --- what is left out --------------------------------------------------------------------------------------------------

ABLE = routes("abc", capabilities=[("images",), ("tools", "images", "own"), None], price=CHEAP[:3], region=["eu", "eu", "us"])


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_every_strategy_leaves_out_what_can_not_serve_the_request(strategy: str) -> None:
    model = ModelConfig(ABLE, strategy)
    assert set(await order(model)) == set("abc")
    assert set(await order(model, asking(tools=(Tool("t"),)))) == set("bc")
    assert await order(model, asking(dialect="claw", metadata={"capabilities": "own"})) == "b"
    assert set(await order(model, None, "region:eu")) == set("ab")
    windows = zip(ABLE, (10, 4000, None), strict=True)
    small = ModelConfig(tuple(evolve(route, context_tokens=window) for route, window in windows), strategy)
    assert set(await order(small, asking(max_tokens=100))) == set("bc")
    tiers = ModelConfig(tuple(evolve(route, quality=tier) for tier, route in enumerate(ABLE)), strategy, quality=1)
    assert set(await order(tiers)) == set("bc")
    assert await order(tiers, asking(dialect="claw", metadata={"quality": 2})) == "c"


@pytest.mark.parametrize(
    ("request_", "tags", "slug", "param"),
    [
        (asking(AudioPart("AA==", "wav")), (), "unsupported_parameter", "messages"),
        (asking(tools=(Tool("t"),)), ("region:us",), "no_route", None),
        (make_request("x" * 50_000), (), "context_length_exceeded", None),
        (asking(dialect="claw", metadata={"quality": 9}), (), "unsupported_parameter", "quality"),
    ],
)
async def test_where_none_is_left_it_says_what_is_lacking(
    request_: ChatRequest, tags: tuple[str, ...], slug: str, param: str | None
) -> None:
    model = ModelConfig(routes("ab", capabilities=[("tools",)] * 2, region=["eu"] * 2, context_tokens=[1000] * 2), "capability")
    with pytest.raises(ClawError) as caught:
        await chosen({"test-model": model}, request_, *tags)
    assert (caught.value.slug, caught.value.details.param) == (slug, param)


# --- what comes first ----------------------------------------------------------------------------------------------------


async def test_each_has_its_reason_and_says_what_it_weighed() -> None:
    seen = {}
    for strategy in STRATEGIES:
        plan, exchange = await chosen({"test-model": ModelConfig(ABLE, strategy)}, asking(tools=(Tool("t"),)))
        first = plan.candidates[0]
        assert {route.reason for route in plan.candidates[1:]} <= {"failover"}
        assert {route.strategy for route in plan.candidates} == {strategy}
        assert {each.why for each in exchange.considered} | {first.reason} <= WORDS
        assert [each.provider for each in exchange.considered] == [*(r.provider for r in plan.candidates), "a"]
        assert exchange.considered[-1].why == "incapable"
        seen[strategy] = first.reason
    assert seen == {"weighted": "weighted", "cost": "cheapest", "latency": "explore", "load": "least_loaded",
                    "capability": "capable", "region": "region"}  # fmt: skip


async def test_cost_goes_by_the_prompt_and_the_likely_answer() -> None:
    model = ModelConfig(routes("ab", price=[price("1", "10"), price("5", "1")]), "cost")
    assert await order(model, make_request("x" * 40_000, max_tokens=10)) == "ab"
    assert await order(model, make_request("x", max_tokens=200)) == "ba"
    plan, exchange = await chosen({"test-model": model}, make_request("x" * 400, max_tokens=100))
    assert [route.price for route in plan.candidates] == [model.routes[1].price, model.routes[0].price]
    assert exchange.considered[0].score == pytest.approx((104 * 5 + 100 * 1) / 1e6)


async def test_the_region_asked_for_comes_first_and_does_not_bind() -> None:
    model = ModelConfig(routes("abc", region=["us", None, "eu"]), "region")
    assert await order(model) == "abc"
    assert await order(model, asking(dialect="claw", metadata={"region": "eu"})) == "cab"


# --- groups ---------------------------------------------------------------------------------------------------------------


async def test_a_route_may_lead_to_another_model() -> None:
    inner = ModelConfig(routes("ab", price=[CHEAP[2], CHEAP[1]]), "cost")
    outer = ModelConfig((RouteConfig(model="inner"), RouteConfig("c", "m", price=CHEAP[0])), "cost")
    assert await order(outer, inner=inner) == "cba"
    assert await order(evolve(outer, strategy="priority"), inner=inner) == "bac"
    assert await order(evolve(outer, strategy="priority"), inner=evolve(inner, strategy="priority")) == "abc"
    plan, _ = await chosen({"test-model": evolve(outer, strategy="priority"), "inner": inner})
    assert [(route.strategy, route.reason) for route in plan.candidates] == [
        ("cost", "cheapest"), ("cost", "failover"), ("priority", "failover")]  # fmt: skip


async def test_a_region_binds_below_the_group_that_looks_at_it() -> None:
    outer = ModelConfig((RouteConfig(model="eu"), RouteConfig("c", "m", region="us")), "region")
    for strategy in ("load", "priority"):
        eu = ModelConfig(routes("ab", region=["eu", "eu"]), strategy)
        assert set(await order(outer, None, "region:eu", eu=eu)) == set("ab")
        assert await order(outer, None, "region:us", eu=eu) == "c"
        assert set(await order(evolve(outer, strategy="priority"), None, "region:us", eu=eu)) == set(
            "c" if strategy == "load" else "abc"
        )


# --- they all fail over alike --------------------------------------------------------------------------------------------


@given(
    st.sampled_from(STRATEGIES),
    st.integers(0, 2**32),
    st.text("ab", min_size=4, max_size=4),
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.booleans(), st.booleans()), min_size=8, max_size=8),
)
def test_whatever_the_strategy_nothing_unsafe_is_repeated(
    strategy: str, seed: int, providers: str, fates: list[tuple[str, bool, bool]]
) -> None:
    ways = tuple(RouteConfig(name, f"m{at}", price=CHEAP[at], region="eu") for at, name in enumerate(providers))
    models = {"test-model": ModelConfig(ways, strategy)}

    async def plan_of() -> PriorityPlan:
        plan, _ = await chosen(models, app=app_of(models, seed))
        return cast(PriorityPlan, plan)

    plan = evolve(trio.run(plan_of), guard=None)
    assert sorted(route.model for route in plan.candidates) == ["m0", "m1", "m2", "m3"]
    history: list[Attempt] = []
    for slug, sent, content in fates:
        route: Route | None = plan.next(history)
        assert route == PriorityPlan(plan.candidates).next(history)
        if route is None:
            break
        earlier = [attempt for attempt in history if attempt.route.provider == route.provider and attempt.sent]
        assert not any(attempt.error and attempt.error.slug == "provider_error.cut" for attempt in earlier)
        assert not any(attempt.content for attempt in history)
        assert (route.reason in ("failover", "retry")) == bool(history)
        history.append(make_attempt(route=route, error=ClawError(slug), sent=sent, content=content))
    assert len(history) <= 3


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_next_route_answers_where_the_first_fails(strategy: str, autojump_clock: MockClock) -> None:
    down: set[str] = set()
    model = ModelConfig(routes("abc", price=CHEAP[:3], region=["eu"] * 3), strategy)
    async with world({"test-model": model}, failing(down)) as sim:
        down |= set("ab")
        answer = await sim.claw.ask()
        assert answer.text == "x"
        assert answer.exchange is not None
        assert answer.exchange.attempts[-1].route.provider == "c"
        row = json.loads(audit_row(answer.exchange, cast(Any, answer.outcome)))
        assert len(row["considered"]) == 3
        down |= {"c"}
        assert (await sim.claw.ask()).error is not None
        down.clear()
        sim.claw.upstream.open = lambda *args: type(sim.claw.upstream).open(sim.claw.upstream, *args)  # type: ignore[method-assign]
        sim.claw.upstream.will_say("begun", Fail("provider_error.cut"))
        before = len(sim.claw.upstream.routes)
        cut = await sim.claw.ask()
        assert cut.text == "begun"
        assert cut.error is not None
        assert len(sim.claw.upstream.routes) == before + 1


# --- what is learnt ----------------------------------------------------------------------------------------------------------


async def test_failing_fast_draws_no_requests(autojump_clock: MockClock) -> None:
    def behave(route: Route, _: ChatRequest) -> Served:
        return Served(0.001, fails="provider_error.server") if route.provider == "a" else Served(0.3, 0.2)

    async with world({"test-model": ModelConfig(routes("ab"), "latency")}, behave) as sim:
        for _ in range(200):
            assert (await sim.claw.ask()).error is None
        assert sim.taken.count("a") <= 8


async def test_a_client_that_leaves_gives_its_place_back_and_teaches_no_lie(autojump_clock: MockClock) -> None:
    async with world({"test-model": ModelConfig(routes("ab"), "load")}, lambda *_: Served(5.0, 5.0)) as sim:
        learned = cast(Learned, sim.claw.gateway.app.shared.setdefault("router", Learned(trio.current_time, Random(1))))

        async def leave_late(lifetime: Lifetime) -> None:
            await sim.claw.ask(lifetime=lifetime)

        for after in (1.0, 7.0):
            lifetime = Lifetime()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave_late, lifetime)
                await trio.sleep(after)
                assert sum(place.in_flight for place in learned.places.values()) == 1
                lifetime.cancel(ClawError("client_gone"))
        assert sum(place.in_flight for place in learned.places.values()) == 0
        assert all(place.per_token.at == -math.inf for place in learned.places.values())


async def test_a_slow_one_is_left_and_found_again(autojump_clock: MockClock) -> None:
    slow = {"a"}

    def behave(route: Route, _: ChatRequest) -> Served:
        return Served(4.0 if route.provider in slow else 0.5, 0.5)

    async with world({"test-model": ModelConfig(routes("ab"), "latency")}, behave) as sim:
        for _ in range(30):
            await sim.claw.ask()
        assert sim.taken[2:] == ["b"] * 28
        slow.clear()
        slow.add("b")
        for _ in range(20):
            await sim.claw.ask()
        assert sim.taken[-15:].count("a") >= 14


async def test_what_is_learnt_outlives_a_reload_and_is_bounded() -> None:
    app = app_of({"test-model": ModelConfig(routes("ab"), "latency")})
    first = clawproxy_router.configure(RouterSettings(), app)
    second = clawproxy_router.configure(RouterSettings(), evolve(app, config=app.config))
    assert not app.shared, "configure touches nothing shared"
    learned = first.learned()
    assert second.learned() is learned
    learned.place(("busy", "m")).in_flight = 1
    for number in range(2 * MOST_PLACES):
        learned.place((str(number), "m"))
    for number in range(2 * MOST_SORTS):
        learned.tell_output(str(number), 1, None, 5)
    assert len(learned.places) <= MOST_PLACES
    assert len(learned.outputs) <= MOST_SORTS
    assert learned.places["busy", "m"].in_flight == 1


def test_a_peak_rises_at_once_and_fades_within_memory() -> None:
    average = Average()
    for now in range(20):
        average.tell(1.0, float(now), 30.0)
    average.tell(9.0, 20.0, 30.0)
    average.tell(1.0, 21.0, 30.0)
    assert average.peak_at(21.0, 30.0) > 8.0
    assert average.mean < 2.0
    assert average.peak_at(21.0 + 90.0, 30.0) < average.mean + 0.5


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=30), st.floats(0.1, 1e4))
def test_an_average_lies_between_what_it_was_told_and_its_peak_above(told: list[tuple[float, float]], memory: float) -> None:
    average, now = Average(), 0.0
    for figure, later in told:
        now += later
        average.tell(figure, now, memory)
        assert average.peak_at(now, memory) >= figure * (1 - 1e-9)
    figures = [figure for figure, _ in told]
    assert min(figures) * 0.999 - 1e-9 <= average.mean <= max(figures) * 1.001 + 1e-9
    assert average.peak_at(now + 1e9, memory) == pytest.approx(average.mean)


# --- what is off costs nothing -------------------------------------------------------------------------------------------------


async def test_with_priority_alone_nothing_is_watched(autojump_clock: MockClock) -> None:
    for strategy, watching in (("priority", False), ("weighted", False), ("load", True)):
        async with world({"test-model": ModelConfig(routes("ab"), strategy)}, lambda *_: Served()) as sim:
            answer = await sim.claw.ask()
            assert ("router" in [name for name, _ in sim.claw.gateway.current.pipeline._open]) is watching
            assert answer.exchange is not None
            assert bool(answer.exchange.considered) is (strategy != "priority")
            row = json.loads(audit_row(answer.exchange, cast(Any, answer.outcome)))
            assert ("considered" in row) is (strategy != "priority")


async def test_the_ledger_goes_by_the_price_of_the_route(autojump_clock: MockClock) -> None:
    models = {"test-model": ModelConfig(routes("ab", price=[price("9", "9"), price("1", "2")]), "cost", price=price("5", "5"))}
    async with world(models, lambda *_: Served(tokens=10)) as sim:
        answer = await sim.claw.ask("x" * 400)
        assert answer.exchange is not None
        assert answer.exchange.cost_nano == 104 * 1000 + 10 * 2000
        assert answer.exchange.route is not None
        assert (answer.exchange.route.provider, answer.exchange.route.reason) == ("b", "cheapest")


async def test_no_weight_means_only_if_all_others_fail(autojump_clock: MockClock) -> None:
    down: set[str] = set()
    for strategy in ("weighted", "load"):
        model = ModelConfig(routes("abc", weight=[0, 1, 0]), strategy)
        async with world({"test-model": model}, failing(down)) as sim:
            for _ in range(20):
                await sim.claw.ask()
            assert set(sim.taken) == {"b"}
            down.add("b")
            assert (await sim.claw.ask()).text == "x"
            down.clear()
