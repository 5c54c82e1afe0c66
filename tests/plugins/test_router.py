"""clawproxy_router: which routes, and which after what."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_router
from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.context import App, Attempt, Registry
from clawproxy.errors import KINDS, ClawError, ConfigError
from clawproxy.hookspecs import Plan
from clawproxy.messages import Route
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_attempt, make_exchange, make_principal, make_request, make_route
from clawproxy_router import PriorityPlan, RouterSettings, candidates_for
from clawproxy_router.plan import ELSEWHERE

ANYONE = make_principal()
TWO = Config(
    providers={"a": ProviderConfig(), "b": ProviderConfig()},
    models={"m": ModelConfig((RouteConfig("a", "m1", 1000, 100), RouteConfig("b", "m2")))},
)


def make_app(config: Config) -> App:
    return App(config=config, store=cast(Store, None), instance="test", state_dir=None)


def places(routes: Any) -> list[str]:
    return [f"{route.provider}/{route.model}" for route in routes]


def plan(count: int = 3, max_attempts: int = 3, providers: str = "abcdefgh") -> PriorityPlan:
    return PriorityPlan([make_route(provider=providers[n], model=f"m{n}") for n in range(count)], max_attempts)


def failed(route: Route | None, slug: str, **changes: Any) -> Attempt:
    assert route is not None
    return make_attempt(route=route, error=ClawError(slug), **({"sent": True} | changes))


# --- candidates --------------------------------------------------------------------------------------------------------


def test_a_configured_model_has_its_routes_in_order() -> None:
    assert candidates_for(TWO, "m", ANYONE) == (
        Route("a", "m1", "priority", "priority", 1000, 100),
        Route("b", "m2", "failover", "priority"),
    )


@pytest.mark.parametrize("model", ["a/m1", "m1", "", "M", "m "])
def test_with_models_no_other_name_exists(model: str) -> None:
    assert candidates_for(TWO, model, ANYONE) == ()


def test_without_models_a_provider_can_be_named() -> None:
    config = Config(providers={"a": ProviderConfig(), "b": ProviderConfig()})
    assert places(candidates_for(config, "b/meta/llama-3:8b", ANYONE)) == ["b/meta/llama-3:8b"]
    assert candidates_for(config, "llama", ANYONE) == ()


def test_without_models_a_bare_name_needs_one_provider_that_fits() -> None:
    config = Config(providers={"a": ProviderConfig(models=("x", "y")), "b": ProviderConfig(models=("y", "z"))})
    assert places(candidates_for(config, "x", ANYONE)) == ["a/x"]
    assert places(candidates_for(config, "z", ANYONE)) == ["b/z"]
    assert candidates_for(config, "y", ANYONE) == ()
    assert candidates_for(config, "w", ANYONE) == ()


def test_an_only_provider_fits_any_name() -> None:
    config = Config(providers={"a": ProviderConfig(models=("x",))})
    assert places(candidates_for(config, "w", ANYONE)) == ["a/w"]
    assert places(candidates_for(config, "meta/llama", ANYONE)) == ["a/meta/llama"]


@pytest.mark.parametrize(
    "model",
    ["../../admin", "a/../../admin", "gpt-4?key=x", "gpt-4#", "gpt-4%2f..%2f", "gpt-4\r\nX: y", "gpt-4\n", "\u2028", "x" * 10_240,
     "a//x", "a/", "/x", "a/x/", "", "\ud800", "é"],
)  # fmt: skip
def test_no_name_that_could_change_a_path_passes(model: str) -> None:
    assert candidates_for(Config(providers={"a": ProviderConfig()}), model, ANYONE) == ()


@given(st.text(max_size=40))
def test_what_passes_is_a_plain_path(model: str) -> None:
    for route in candidates_for(Config(providers={"a": ProviderConfig()}), model, ANYONE):
        assert route.model.isascii()
        assert not set(route.model) & set("?#%\\ \r\n\t\0")
        assert all(part not in ("", ".", "..") for part in route.model.split("/")) or route.model.strip(".") != ""


def test_a_principal_gets_only_its_models() -> None:
    bench = make_principal(models=("other", "n*"))
    assert candidates_for(TWO, "m", bench) == ()


# --- the hook ----------------------------------------------------------------------------------------------------------


def test_register_and_configure() -> None:
    registry = Registry()
    clawproxy_router.register(registry)
    assert registry.settings == {"router": RouterSettings}
    state = clawproxy_router.configure(RouterSettings(), make_app(TWO))
    assert state.config is TWO
    with pytest.raises(ValueError):
        RouterSettings(max_attempts=0)


def test_an_unknown_strategy_is_refused_at_load() -> None:
    config = Config(models={"m": ModelConfig((), strategy="cheap")})
    with pytest.raises(ConfigError, match=r'models."m".strategy'):
        clawproxy_router.configure(RouterSettings(), make_app(config))


async def test_choose_route() -> None:
    state = clawproxy_router.configure(RouterSettings(max_attempts=2), make_app(TWO))
    chosen = await clawproxy_router.choose_route(make_exchange(), make_request(model="m"), state)
    assert isinstance(chosen, PriorityPlan)
    assert chosen.max_attempts == 2
    assert places(chosen.candidates) == ["a/m1", "b/m2"]
    assert await clawproxy_router.choose_route(make_exchange(), make_request(model="unknown"), state) is None


async def test_a_model_one_may_not_use_looks_like_one_that_is_not_there() -> None:
    state = clawproxy_router.configure(RouterSettings(), make_app(TWO))
    exchange = make_exchange(principal=make_principal(models=("x",)))
    with pytest.raises(ClawError) as caught:
        await clawproxy_router.choose_route(exchange, make_request(model="m"), state)
    assert caught.value.slug == "model_not_found"
    assert caught.value.message == KINDS["model_not_found"].message


# --- the plan ----------------------------------------------------------------------------------------------------------


async def test_a_plan_is_made_once_for_whoever_may_use_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    state = clawproxy_router.configure(RouterSettings(), make_app(TWO))

    async def chosen(model: str, *models: str) -> Plan | None:
        exchange = make_exchange(principal=make_principal(models=models))
        return await clawproxy_router.choose_route(exchange, make_request(model=model), state)

    first = await chosen("m", "*")
    assert first == PriorityPlan(candidates_for(TWO, "m", ANYONE), 3)
    assert await chosen("m", "*") is first
    assert await chosen("m", "m") == first
    for _ in range(2):  # who may not use it is refused, whoever asked before
        with pytest.raises(ClawError, match="model"):
            await chosen("m", "other")
        assert await chosen("nothing", "*") is None
    assert set(state.plans) == {("m", ("*",), None), ("m", ("m",), None)}
    listed = cast(tuple[str, ...], ["*"])  # a plugin's principal may hold a list
    exchange = make_exchange(principal=make_principal(models=listed))
    assert await clawproxy_router.choose_route(exchange, make_request(model="m"), state) is first
    monkeypatch.setattr(clawproxy_router, "PLANS", 2)
    assert await chosen("m", "m", "n") == first
    assert len(state.plans) == 1  # full: begun anew, so that names that clients make up can not fill it for good
    alone = clawproxy_router.configure(RouterSettings(), make_app(Config(providers={"a": ProviderConfig()})))
    assert await clawproxy_router.choose_route(make_exchange(), make_request(model="any-name"), alone) is not None
    assert len(alone.plans) == 1


def test_priority_then_failover_then_nothing() -> None:
    routes = candidates_for(TWO, "m", ANYONE)
    chosen = PriorityPlan(routes)
    first = chosen.next([])
    assert first is not None
    assert (first.provider, first.reason) == ("a", "priority")
    second = chosen.next([failed(first, "provider_error.server")])
    assert second is not None
    assert (second.provider, second.reason) == ("b", "failover")
    assert chosen.next([failed(first, "provider_error.server"), failed(second, "provider_error.server")]) is None


@pytest.mark.parametrize("slug", sorted(KINDS))
def test_who_gets_another_route(slug: str) -> None:
    chosen = plan()
    first = chosen.next([])
    again = chosen.next([failed(first, slug)])
    assert (again is not None) == (slug in ELSEWHERE)
    if again is not None:
        assert KINDS[slug].fault == "provider" or slug == "timeout.queue"
    assert chosen.next([failed(first, slug, content=True)]) is None


def test_a_full_pool_sends_to_another_provider_and_is_not_waited_for_twice() -> None:
    routes = candidates_for(TWO, "m", ANYONE)
    chosen = PriorityPlan(routes)
    first = chosen.next([])
    waited = failed(first, "timeout.queue")
    waited.sent = False
    second = chosen.next([waited])
    assert second is not None
    assert second.provider == "b"
    assert PriorityPlan(routes[:1]).next([waited]) is None


def test_a_whole_answer_ends_the_plan() -> None:
    first = plan().next([])
    assert first is not None
    assert plan().next([make_attempt(route=first)]) is None


def test_max_attempts() -> None:
    chosen = plan(count=5, max_attempts=2)
    history = [failed(chosen.next([]), "provider_error.overloaded")]
    history.append(failed(chosen.next(history), "provider_error.overloaded"))
    assert chosen.next(history) is None


def test_a_request_that_may_have_been_worked_on_is_not_sent_there_again() -> None:
    chosen = plan(count=3, providers="aab")
    first = chosen.next([])
    for slug in ("provider_error.cut", "timeout.first_token", "provider_error.malformed"):
        again = chosen.next([failed(first, slug)])
        assert again is not None
        assert again.provider == "b"
    again = chosen.next([failed(first, "provider_error.rate_limited")])
    assert again is not None
    assert (again.provider, again.model) == ("a", "m1")


def test_a_single_route_is_retried_once_if_nothing_was_sent() -> None:
    chosen = plan(count=1)
    history = [failed(chosen.next([]), "provider_error.unreachable", sent=False)]
    again = chosen.next(history)
    assert again is not None
    assert again.reason == "retry"
    history.append(failed(again, "provider_error.unreachable", sent=False))
    assert chosen.next(history) is None
    assert chosen.next([failed(chosen.next([]), "provider_error.unreachable", sent=True)]) is None


def test_no_candidates_no_route() -> None:
    assert PriorityPlan([]).next([]) is None


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.booleans(), st.booleans()), min_size=8, max_size=8),
    st.text("ab", min_size=6, max_size=6),
)
def test_plans_end_and_repeat_nothing_unsafe(count: int, limit: int, fates: list[tuple[str, bool, bool]], providers: str) -> None:
    chosen = plan(count, limit, providers)
    history: list[Attempt] = []
    for slug, sent, content in fates:
        route = chosen.next(history)
        if route is None:
            break
        earlier = [attempt for attempt in history if attempt.route.provider == route.provider and attempt.sent]
        assert not any(attempt.error and attempt.error.slug == "provider_error.cut" for attempt in earlier)
        assert not any(attempt.content for attempt in history)
        history.append(failed(route, slug, sent=sent, content=content))
    assert len(history) <= limit
    tried = places(attempt.route for attempt in history)
    assert len(tried) <= len(set(tried)) + 1
