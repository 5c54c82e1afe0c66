"""What rests, and for how long: the guard of a plan, told of attempts one by one, under a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import Config, Duration, SecretRef
from clawproxy.context import App, Attempt
from clawproxy.errors import KINDS, ClawError
from clawproxy.messages import Route
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_attempt, make_exchange, make_route
from clawproxy_router.breakers import BreakerSettings
from clawproxy_router.credentials import CredentialSettings, Resting
from clawproxy_router.ejection import EjectionSettings
from clawproxy_router.plan import PriorityPlan, may_go_elsewhere, place_of, unknown_to
from clawproxy_router.resting import ANSWERED, BREAKING, SHORTENED, Guard
from clawproxy_router.retries import RetrySettings
from clawproxy_router.tree import WORDS


@define
class Desk:
    """A guard, its clock, and what it wrote down."""

    now: float = 1000.0
    counts: dict[tuple[str, ...], int] = field(factory=dict)
    logged: list[tuple[str, dict[str, Any]]] = field(factory=list)
    app: App = field(init=False)
    guard: Guard = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.app = App(config=Config(), store=cast(Store, None), instance="test", state_dir=None, count=self.count, log=self.log)
        self.guard = self.made()

    def made(self, **changes: Any) -> Guard:
        return Guard(self.app, lambda: self.now, **changes)

    def count(self, name: str, **labels: str) -> None:
        key = (name, *labels.values())
        self.counts[key] = self.counts.get(key, 0) + 1

    def log(self, name: str, level: str, **fields: Any) -> None:
        self.logged.append((name, fields))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for each, fields in self.logged if each == name]

    def plan(self, places: str = "ab", most: int = 3, guard: Guard | None = None) -> PriorityPlan:
        routes = [make_route(provider=name, model="m") for name in places]
        return PriorityPlan(routes, most, guard or self.guard)

    def ended(self, route: Route, slug: str = "", guard: Guard | None = None, **changes: Any) -> Attempt:
        details = {key: changes.pop(key) for key in ("retry_after_ms", "provider_status", "setting") if key in changes}
        error = ClawError(slug, **details) if slug else None
        attempt = make_attempt(**{"route": route, "error": error, "sent": True, "content": not slug, **changes})
        (guard or self.guard).finished(make_exchange(), attempt)
        return attempt

    def fail(self, place: str, slug: str = "provider_error.server", times: int = 1, **changes: Any) -> None:
        for _ in range(times):
            self.ended(make_route(provider=place, model="m"), slug, **changes)


def first(plan: PriorityPlan) -> str:
    route = plan.next([])
    assert route is not None
    return route.provider


def refusal(plan: PriorityPlan) -> ClawError:
    with pytest.raises(ClawError) as caught:
        plan.next([])
    return caught.value


# --- breakers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", sorted(KINDS))
def test_only_what_a_provider_did_counts_against_it(slug: str) -> None:
    desk = Desk()
    desk.fail("a", slug, 5)
    opened = desk.guard.health.breakers.get(("a", "m"))
    assert (opened is not None and opened.state == "open") == (slug in BREAKING)
    if slug in BREAKING:
        assert KINDS[slug].fault == "provider"
        assert desk.events("route.breaker")[0]["state"] == "open"


def test_a_clock_that_a_short_deadline_made_ring_early_does_not_count() -> None:
    desk = Desk()
    desk.fail("a", "timeout.first_token", 20, setting=SHORTENED)
    assert not desk.guard.health.breakers


def test_an_open_one_is_passed_by_then_probed_by_one_request_then_closed() -> None:
    desk, plan = Desk(), None
    plan = desk.plan()
    assert first(plan) == "a"
    assert not desk.guard.health.breakers, "a place without trouble has no record"
    desk.fail("a", times=5)
    assert first(plan) == "b"
    desk.now += 3.0
    probe = plan.next([])
    assert probe is not None
    assert probe.provider == "a"
    assert [first(plan) for _ in range(3)] == ["b"] * 3, "one live request at a time"
    desk.ended(probe)
    assert [first(plan) for _ in range(3)] == ["a"] * 3
    assert [each["state"] for each in desk.events("route.breaker")] == ["open", "half_open", "closed"]
    assert desk.counts["clawproxy_breaker_transitions_total", "a", "open"] == 1
    desk.now += 11.0
    desk.ended(make_route(provider="a", model="m"))
    assert not desk.guard.health.breakers, "nothing is left of it"


@pytest.mark.parametrize("slug", sorted(KINDS))
def test_a_probe_s_end_decides_or_leaves_it_to_the_next(slug: str) -> None:
    desk = Desk()
    desk.fail("a", times=5)
    desk.now += 3.0
    probe = desk.plan().next([])
    assert probe is not None
    desk.ended(probe, slug)
    state = desk.guard.health.breakers["a", "m"].state
    assert state == ("open" if slug in BREAKING else "closed" if slug in ANSWERED else "half_open")
    assert desk.guard.health.breakers["a", "m"].probe is None


def test_a_probe_that_has_content_closes_it_though_its_answer_is_long() -> None:
    desk, history = Desk(), list[Attempt]()
    desk.fail("a", times=5)
    desk.now += 3.0
    probe = desk.plan().next(history)
    assert probe is not None
    running = make_attempt(route=probe, sent=True)
    history.append(running)
    desk.now += 100.0
    assert first(desk.plan()) == "b", "however long it takes, there is one"
    running.content = True
    assert first(desk.plan()) == "a"
    assert [each["state"] for each in desk.events("route.breaker")] == ["open", "half_open", "closed"]


def test_where_all_are_open_it_is_said_at_once_and_when_to_come_back() -> None:
    desk = Desk()
    desk.fail("a", times=5)
    desk.now += 1.0
    desk.fail("b", times=5)
    error = refusal(desk.plan())
    assert error.slug == "provider_error.breaker_open"
    assert error.details.retry_after_ms == 1000, "the first may be tried sooner, but a second is the least one says"
    desk.now += 60.0
    assert first(desk.plan()) == "a"
    assert first(desk.plan()) == "b"
    assert refusal(desk.plan()).slug == "provider_error.breaker_open", "both have their probe"


def test_a_route_that_rests_is_no_failover_either() -> None:
    desk = Desk()
    desk.fail("b", times=5)
    plan = desk.plan("abc")
    route = plan.next([])
    assert route is not None
    after = plan.next([desk.ended(route, "provider_error.cut")])
    assert after is not None
    assert (after.provider, after.reason) == ("c", "failover")


def test_what_is_left_out_is_told_in_words_of_the_set() -> None:
    desk = Desk()
    desk.fail("a", times=5)
    desk.fail("b", "provider_error.rate_limited")
    exchange = make_exchange()
    desk.guard.told(exchange, desk.plan("abc"))
    assert [(each.provider, each.why) for each in exchange.considered] == [("c", ""), ("a", "breaker_open"), ("b", "cooling")]
    assert {each.why for each in exchange.considered} <= WORDS


# --- credentials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "rests"), [(3000, 3.0), (10, 1.0), (10_000_000_000, 600.0), (None, 1.0), (0, 1.0), (-5, 1.0)]
)  # fmt: skip
def test_a_rate_limit_rests_the_credential_as_long_as_was_said_within_bounds(said: int | None, rests: float) -> None:
    desk = Desk()
    desk.fail("a", "provider_error.rate_limited", retry_after_ms=said)
    assert first(desk.plan()) == "b"
    error = refusal(desk.plan("a"))
    assert (error.slug, error.details.retry_after_ms) == ("provider_error.rate_limited", round(rests * 1000))
    desk.now += rests + 0.001
    assert first(desk.plan()) == "a"


def test_without_a_word_it_rests_longer_each_time_and_one_burst_counts_once() -> None:
    desk = Desk()
    for expected in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        desk.fail("a", "provider_error.rate_limited", 3)
        wait = desk.guard.health.credentials["a", 0].wait(desk.now)
        assert wait == pytest.approx(expected)
        desk.now += wait
    desk.ended(make_route(provider="a", model="m"))
    assert not desk.guard.health.credentials
    assert desk.counts["clawproxy_credential_rests_total", "a", "cooling"] == 8


def test_an_answer_that_began_before_does_not_end_the_rest() -> None:
    desk = Desk()
    desk.fail("a", "provider_error.rate_limited", retry_after_ms=30_000)
    desk.ended(make_route(provider="a", model="m"))
    assert refusal(desk.plan("a")).slug == "provider_error.rate_limited"


def test_the_next_credential_then_the_next_route() -> None:
    desk = Desk()
    guard = desk.guard = desk.made(references={"a": (SecretRef("env", "A"), SecretRef("env", "B"))})
    plan = evolve(desk.plan(), turns=True)
    history: list[Attempt] = []
    taken = []
    for _ in range(3):
        route = plan.next(history)
        assert route is not None
        taken.append((route.provider, route.credential, route.reason))
        history.append(desk.ended(route, "provider_error.rate_limited", retry_after_ms=9000))
    assert taken == [("a", 0, ""), ("a", 1, "failover"), ("b", 0, "failover")]
    assert plan.next(history) is None
    assert refusal(plan).details.retry_after_ms == 9000
    assert set(guard.health.credentials) == {("a", 0), ("a", 1), ("b", 0)}


def test_credentials_take_turns_and_those_that_rest_are_passed_by() -> None:
    desk = Desk()
    desk.guard = desk.made(references={"a": tuple(SecretRef("env", name) for name in "ABC")})
    plan = evolve(desk.plan("a"), turns=True)

    def turns(count: int) -> list[int]:
        return [route.credential for _ in range(count) if (route := plan.next([])) is not None]

    assert turns(6) == [0, 1, 2, 0, 1, 2]
    desk.ended(make_route(provider="a", model="m", credential=1), "provider_error.rate_limited", retry_after_ms=5000)
    assert turns(4) == [0, 2, 0, 2]
    desk.now += 5.1
    assert set(turns(6)) == {0, 1, 2}


def test_money_that_is_spent_alerts_and_rests_long_and_a_refused_one_is_disabled_after_three() -> None:
    desk = Desk()
    desk.fail("a", "provider_error.quota")
    error = refusal(desk.plan("a"))
    assert (error.slug, error.status) == ("provider_error.quota", 503)
    assert desk.events("credential.spent")[0]["alert"]
    for _ in range(3):
        assert first(desk.plan("b")) == "b"
        desk.fail("b", "provider_error.auth")
    error = refusal(desk.plan("b"))
    assert (error.slug, error.status) == ("provider_error.auth", 502)
    assert [name for name, _ in desk.logged][1:] == ["credential.refused"] * 2 + ["credential.disabled"]
    assert desk.counts["clawproxy_credential_alerts_total", "b", "auth"] == 3
    desk.now += 599.0
    assert refusal(desk.plan("ab")).slug == "provider_error.quota"
    desk.now += 2.0
    assert first(desk.plan("b")) == "b", "it is tried again, once"
    desk.fail("b", "provider_error.auth")
    assert refusal(desk.plan("b")).slug == "provider_error.auth"


def test_two_refusals_and_a_good_answer_are_forgotten() -> None:
    desk = Desk()
    for _ in range(5):
        desk.fail("a", "provider_error.auth", 2)
        desk.ended(make_route(provider="a", model="m"))
    assert first(desk.plan("a")) == "a"


def test_a_reload_tries_a_disabled_one_again_and_keeps_what_rests() -> None:
    desk = Desk()
    desk.guard = desk.made(references={"a": (SecretRef("env", "A"),), "b": (SecretRef("env", "B"),)})
    desk.fail("a", "provider_error.auth", 3)
    desk.fail("b", "provider_error.rate_limited", retry_after_ms=60_000)
    desk.fail("c", times=5)
    same = desk.made(references=desk.guard.references)
    assert first(desk.plan("bca", guard=same)) == "a"
    other = desk.made(references={**desk.guard.references, "b": (SecretRef("env", "ANOTHER"),)})
    assert first(desk.plan("cb", guard=other)) == "b", "another one in its place is not this one"


@given(st.lists(st.tuples(st.one_of(st.none(), st.floats(-1e9, 1e9)), st.floats(0.0, 100.0)), max_size=30))
def test_no_rest_is_shorter_or_longer_than_it_may_be(told: list[tuple[float | None, float]]) -> None:
    record, now, settings = Resting(), 0.0, CredentialSettings()
    for said, passed in told:
        now += passed
        before = record.until
        record.limited(said, now, settings)
        assert now < record.until <= max(before, now + 600.0)


# --- retries -----------------------------------------------------------------------------------------------------------


def test_one_route_is_tried_again_after_a_drawn_wait_within_a_budget() -> None:
    desk = Desk()
    desk.guard = desk.made(retrying=RetrySettings(burst=3, floor=0.0, share=0.5), breaking=BreakerSettings(enabled=False))
    plan = desk.plan("a", 9)
    history: list[Attempt] = []
    while (route := plan.next(history)) is not None:
        history.append(desk.ended(route, "provider_error.server", provider_status=500))
    assert [attempt.route.reason for attempt in history] == ["", "retry", "retry"]
    assert 0.0 < history[1].route.after <= 0.25
    assert 0.0 < history[2].route.after <= 0.5
    assert desk.counts["clawproxy_retries_total", "server"] == 2
    assert plan.next(history[:1]) is not None
    assert plan.next(history[:1]) is None, "the budget is used up"
    assert desk.counts["clawproxy_retry_budget_exhausted_total",] == 1
    desk.guard.health.requests += 2
    assert plan.next(history[:1]) is not None


@pytest.mark.parametrize(
    ("slug", "changes", "again"),
    [
        ("provider_error.server", {"provider_status": 500}, True),
        ("provider_error.server", {"provider_status": 502}, True),
        ("provider_error.overloaded", {"provider_status": 529}, True),
        ("provider_error.overloaded", {"provider_status": 503, "retry_after_ms": 2000}, True),
        ("provider_error.overloaded", {"provider_status": 503, "retry_after_ms": 60_000}, False),
        ("provider_error.server", {"provider_status": 501}, False),
        ("provider_error.server", {"provider_status": 500, "status": 200}, False),
        ("provider_error.server", {}, False),
        ("provider_error.unreachable", {"sent": False}, True),
        ("provider_error.unreachable", {}, False),
        ("provider_error.cut", {}, False),
        ("timeout.connect", {"sent": False}, True),
        ("timeout.first_token", {}, False),
        ("timeout.queue", {"sent": False}, False),
        ("provider_error.rate_limited", {"provider_status": 429}, False),
        ("provider_error.quota", {"provider_status": 429}, False),
        ("provider_error.rejected", {"provider_status": 400}, False),
    ],
)  # fmt: skip
def test_what_is_sent_again_to_the_same_route(slug: str, changes: dict[str, Any], again: bool) -> None:
    desk = Desk()
    plan = desk.plan("a")
    route = plan.next([])
    assert route is not None
    found = plan.next([desk.ended(route, slug, **changes)])
    assert (found is not None) == again
    if found is not None and changes.get("retry_after_ms"):
        assert found.after >= 2.0


# --- outliers ----------------------------------------------------------------------------------------------------------


def mixed(desk: Desk, place: str, rounds: int, bad: int, of: int) -> None:
    for at in range(rounds):
        desk.ended(make_route(provider=place, model="m"), "provider_error.server" if at % of < bad else "")


def test_a_place_that_fails_more_than_its_siblings_is_tried_last_and_never_more_than_half() -> None:
    desk = Desk()
    places = [(name, "m") for name in "abcd"]
    desk.guard = desk.made(models={place: [places] for place in places}, ejecting=EjectionSettings(time=Duration(30.0)))
    mixed(desk, "a", 40, 1, 3)
    assert [each["provider"] for each in desk.events("route.ejected")] == ["a"]
    assert desk.guard.health.breakers["a", "m"].state == "closed"
    assert first(desk.plan("abcd")) == "b"
    exchange = make_exchange()
    desk.guard.told(exchange, desk.plan("ab"))
    assert [(each.provider, each.why) for each in exchange.considered] == [("b", ""), ("a", "ejected")]
    for name in "bcd":
        desk.guard.eject((name, "m"), desk.now + ord(name), "failures")
    assert first(desk.plan("abcd")) == "c", "two of four at the most: those that were first"
    assert first(desk.plan("a")) == "a", "an only route is no outlier"
    desk.now += 30.1
    assert first(desk.plan("acd")) == "a"


def test_where_all_do_badly_nobody_is_an_outlier() -> None:
    desk = Desk()
    places = [(name, "m") for name in "ab"]
    desk.guard = desk.made(models={place: [places] for place in places})
    for at in range(60):
        desk.ended(make_route(provider="ab"[at % 2], model="m"), "provider_error.server" if at % 6 < 2 else "")
    assert not desk.events("route.ejected")


# --- laws --------------------------------------------------------------------------------------------------------------


def asked(plan: PriorityPlan, history: Sequence[Attempt]) -> tuple[Route | None, ClawError | None]:
    try:
        return plan.next(history), None
    except ClawError as refused:
        return None, refused


FATE = st.tuples(st.sampled_from(sorted(KINDS)), st.booleans(), st.booleans(), st.sampled_from([None, 400, 429, 500, 503]))


@given(st.text("abc", min_size=1, max_size=4), st.integers(1, 6), st.lists(st.lists(FATE, max_size=7), max_size=12), st.data())
def test_whatever_happens_plans_end_and_repeat_nothing_unsafe(
    places: str, most: int, requests: Sequence[Sequence[tuple[str, bool, bool, int | None]]], data: st.DataObject
) -> None:
    desk = Desk()
    desk.guard = desk.made(references={"a": (SecretRef("env", "A"), SecretRef("env", "B"))})
    plan = PriorityPlan([make_route(provider=p, model=f"m{n}") for n, p in enumerate(places)], most, desk.guard, True)
    for fates in requests:
        history: list[Attempt] = []
        for slug, sent, content, status in fates:
            route, refused = asked(plan, history)
            if route is None:
                assert refused is None or not history
                assert refused is None or refused.kind.fault == "provider"
                assert refused is None or 1000 <= (refused.details.retry_after_ms or 1000) <= 600_000
                break
            if history:
                assert may_go_elsewhere(history[-1])
            assert route.provider not in unknown_to(history)
            assert route.credential in ((0, 1) if route.provider == "a" else (0,))
            assert 0.0 <= route.after <= 5.0
            earlier = [each for each in history if place_of(each.route) == place_of(route)]
            if earlier and route.reason != "retry":
                assert all(each.route.credential != route.credential for each in earlier)
            history.append(desk.ended(route, slug, sent=sent, content=content, provider_status=status))
        assert len(history) <= most
        desk.now += data.draw(st.floats(0.0, 5.0))
