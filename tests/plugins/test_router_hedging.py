"""What a model's `hedge` and `continuation` come to in the router: when, where, and how often at most."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_router
from clawproxy.config import Config, Duration, Hedge, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.context import Attempt, Timing
from clawproxy.errors import ClawError
from clawproxy.hookspecs import Plan
from clawproxy.messages import Route
from clawproxy.testing.factories import make_attempt, make_exchange, make_request, make_route
from clawproxy_router import PriorityPlan, Router, RouterSettings
from clawproxy_router.continuing import Continuing
from clawproxy_router.hedging import ENOUGH, KEPT, MOST_HELD, FirstTokens, Hedges, Hedging, raced_last
from tests.plugins.routing import SEED, Served, world
from tests.plugins.test_router import make_app

THREE = PriorityPlan([make_route(provider=name, model="m") for name in "abc"])
P95 = Hedge(quantile=0.95)


def config(hedge: Hedge | None = P95, **changes: Any) -> Config:
    model = ModelConfig((RouteConfig("a", "m"), RouteConfig("b", "m")), hedge=hedge, **changes)
    return Config(providers={"a": ProviderConfig("scripted"), "b": ProviderConfig("scripted")}, models={"m": model})


def hedging(hedge: Hedge | None = None, held: float = MOST_HELD, plan: Plan = THREE, floor: float = 0.1) -> Hedging:
    return Hedging(plan, Hedges(held=held), hedge or Hedge(Duration(0.8)), floor, lambda *_a, **_k: None)


def running(route: Route, **changes: Any) -> Attempt:
    return make_attempt(route=route, **{"sent": True, "outcome": None, "error": None} | changes)


# --- when ------------------------------------------------------------------------------------------------------------------


def test_after_a_fixed_time() -> None:
    first = hedging().next([])
    assert first is not None
    assert (first.provider, first.hedge_after) == ("a", 0.8)


def test_after_a_learnt_time_once_enough_was_seen() -> None:
    plan = hedging(P95)
    place = plan.hedges.place(("a", "m"))
    for at in range(100):
        first = plan.next([])
        assert first is not None
        assert (first.hedge_after is None) == (at < ENOUGH), at
        place.tell(1.0 + at / 100)
    first = plan.next([])
    assert first is not None
    assert first.hedge_after == pytest.approx(1.95)


def test_never_below_the_floor() -> None:
    plan = hedging(P95, floor=0.25)
    for _ in range(ENOUGH):
        plan.hedges.place(("a", "m")).tell(0.01)
    first = plan.next([])
    assert first is not None
    assert first.hedge_after == 0.25


def test_a_recorded_answer_is_not_hedged() -> None:
    recorded = PriorityPlan([make_route(provider="a", recorded=()), make_route(provider="b")])
    first = hedging(plan=recorded).next([])
    assert first is not None
    assert first.hedge_after is None


@given(st.lists(st.floats(0.0, 1e6), min_size=ENOUGH, max_size=2 * KEPT), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_quantile_is_one_of_the_latest(figures: list[float], share: float) -> None:
    seen = FirstTokens()
    for figure in figures:
        seen.tell(figure)
    latest = figures[-KEPT:]
    quantile = seen.quantile(share)
    assert quantile in latest
    below = sum(figure <= quantile for figure in latest)
    assert below >= share * len(latest)
    assert seen.ordered == sorted(latest)


# --- where -----------------------------------------------------------------------------------------------------------------


def test_beside_an_attempt_under_way_at_another_provider() -> None:
    plan = hedging()
    first = plan.next([])
    assert first is not None
    hedge = plan.next([running(first)])
    assert hedge is not None
    assert (hedge.provider, hedge.reason, hedge.hedge_after) == ("b", "hedge", None)
    assert plan.hedges.held == MOST_HELD - 1


def test_never_at_the_same_provider() -> None:
    plan = hedging(plan=PriorityPlan([make_route(provider="a", model="m"), make_route(provider="a", model="other")]))
    first = plan.next([])
    assert first is not None
    assert plan.next([running(first)]) is None
    assert plan.next([running(first, sent=False)]) is None


def test_not_beyond_max_attempts() -> None:
    plan = hedging(plan=evolve(THREE, max_attempts=1))
    first = plan.next([])
    assert first is not None
    assert plan.next([running(first)]) is None


def raced(name: str, slug: str) -> Attempt:
    return make_attempt(
        route=make_route(provider=name, model="m"), error=ClawError(slug), outcome=slug, sent=True, timing=Timing()
    )


@pytest.mark.parametrize("beaten", ["cancelled", "budget.exhausted"])
@pytest.mark.parametrize("turned", [False, True])
def test_after_a_race_it_goes_by_the_fault_of_a_provider(beaten: str, turned: bool) -> None:
    history = [raced("a", "provider_error.overloaded"), raced("b", beaten)]
    if turned:
        history.reverse()
    assert [attempt.error.slug for attempt in raced_last(history) if attempt.error][-1] == "provider_error.overloaded"
    route = hedging().next(history)
    assert route is not None
    assert (route.provider, route.reason) == ("c", "failover")


# --- how often -------------------------------------------------------------------------------------------------------------


def test_hedges_are_paid_for() -> None:
    plan = hedging(held=0.0)
    first = plan.next([])
    assert first is not None
    assert plan.next([running(first)]) is None
    for _ in range(10):
        plan.hedges.pay(0.125)
    assert plan.next([running(first)]) is not None
    assert plan.next([running(first)]) is None


@given(st.lists(st.booleans(), max_size=300), st.floats(0.0, 1.0))
def test_the_share_holds_over_any_run(slow: list[bool], share: float) -> None:
    hedges, bought = Hedges(), 0
    for each in slow:
        hedges.pay(share)
        bought += each and hedges.buy()
    assert bought <= MOST_HELD + share * len(slow) + 1e-6


async def test_off_it_costs_nothing_and_plans_are_kept() -> None:
    state = clawproxy_router.configure(RouterSettings(), make_app(config(None)))
    assert {"open_attempt", "prepare_request"} <= state.unused_hooks
    plan = await clawproxy_router.choose_route(make_exchange(), make_request(model="m"), state)
    assert type(plan) is PriorityPlan
    assert await clawproxy_router.choose_route(make_exchange(), make_request(model="m"), state) is plan


async def chosen(state: Router, **changes: Any) -> Plan | None:
    return await clawproxy_router.choose_route(make_exchange(), make_request(model="m", **changes), state)


async def test_only_answers_are_hedged() -> None:
    state = clawproxy_router.configure(RouterSettings(), make_app(config()))
    assert isinstance(await chosen(state), Hedging)
    for operation in ("embeddings", "count_tokens"):
        assert not isinstance(await chosen(state, operation=operation), Hedging)


async def test_a_reload_forgets_nothing() -> None:
    app = make_app(config())
    before, after = (clawproxy_router.configure(RouterSettings(), app) for _ in range(2))
    one, other = await chosen(before), await chosen(after)
    assert isinstance(one, Hedging)
    assert isinstance(other, Hedging)
    assert one.hedges is other.hedges


# --- what is learnt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "slug", "waited", "counts"),
    [
        (True, None, 0.5, True),
        (True, "provider_error.cut", 0.5, True),
        (False, "timeout.first_token", 0.5, True),
        (False, "cancelled", 2.0, True),
        (False, "cancelled", 0.5, False),
        (False, "provider_error.server", 0.5, False),
    ],
)
def test_what_an_attempt_tells(content: bool, slug: str | None, waited: float, counts: bool) -> None:
    hedges = Hedges()
    place = hedges.place(("a", "m"))
    for _ in range(ENOUGH):
        place.tell(1.0)
    error = None if slug is None else ClawError(slug)
    route = make_route(provider="a", model="m")
    attempt = make_attempt(route=route, content=content, error=error, sent=True, started=100.0, closed_at=100.0 + waited)
    hedges.learn(make_exchange(timing=Timing(first_token=waited if content else None)), attempt, 0.95)
    assert len(place.latest) == ENOUGH + counts


async def test_the_learnt_time_does_not_sink_with_each_hedge(autojump_clock: object) -> None:
    """A tenth of the answers take 10 s. Were the beaten ones left out, p90 of the others would fall, and fall again."""
    random = Random(SEED)

    def behaviour(route: Route, request: Any) -> Served:
        slow = route.provider == "a" and random.random() < 0.08
        return Served(first=10.0 if slow else random.uniform(0.5, 1.0))

    async with world(dict(config().models), behaviour, settings={"hedge_share": 1.0}) as made:
        for _ in range(400):
            answer = await made.claw.ask("Hi", model="m")
            assert answer.outcome is not None
            assert answer.outcome.label == "complete"
        share = made.taken.count("b") / 400
        assert 0.02 < share < 0.16, f"seed {SEED}: {share}"


# --- continuation ----------------------------------------------------------------------------------------------------------


def cut(name: str, slug: str = "provider_error.cut", reason: str = "priority", *, content: bool = True) -> Attempt:
    route = make_route(provider=name, model="m", reason=reason)
    return make_attempt(route=route, error=ClawError(slug), outcome=slug, content=content, sent=True)


def test_it_goes_on_at_another_provider_then_where_it_was() -> None:
    plan = Continuing(THREE, 9)
    route = plan.next([cut("a")])
    assert route is not None
    assert (route.provider, route.reason) == ("b", "continue")
    alone = Continuing(PriorityPlan([make_route(provider="a", model="m")]), 3)
    route = alone.next([cut("a")])
    assert route is not None
    assert (route.provider, route.reason) == ("a", "continue")


@pytest.mark.parametrize("slug", ["provider_error.rejected", "client_gone", "internal", "timeout.total"])
def test_it_does_not_go_on_after_what_is_no_fault_of_the_providers(slug: str) -> None:
    assert Continuing(THREE, 9).next([cut("a", slug)]) is None


def test_it_goes_on_twice_at_most_and_never_beyond_max_attempts() -> None:
    history = [cut("a"), cut("b", reason="continue")]
    assert Continuing(THREE, 9).next(history) is not None
    assert Continuing(THREE, 2).next(history) is None
    assert Continuing(THREE, 9).next([*history, cut("c", reason="continue")]) is None


def test_before_any_content_it_is_a_failover() -> None:
    route = Continuing(THREE, 9).next([cut("a", content=False)])
    assert route is not None
    assert route.reason == "failover"


async def test_both_at_once() -> None:
    state = clawproxy_router.configure(RouterSettings(), make_app(config(Hedge(Duration(1.0)), continuation=True)))
    plan = await chosen(state)
    assert plan is not None
    first = plan.next([])
    assert first is not None
    assert first.goes_on
    assert first.hedge_after == 1.0
    assert all(route.goes_on for route in plan.candidates)
