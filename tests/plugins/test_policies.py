"""Policies: each condition, each action, and what they come to together, in the order they are written."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_router
from clawproxy.config import (
    Config,
    ModelConfig,
    Moment,
    PolicyConfig,
    ProviderConfig,
    RestrictConfig,
    RouteConfig,
    SizeConfig,
    TimeConfig,
    WhenConfig,
    Words,
)
from clawproxy.context import App, Exchange
from clawproxy.errors import ClawError, ConfigError, Refusal
from clawproxy.messages import ImagePart, Message, TextPart, Tool
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_exchange, make_principal, make_request
from clawproxy_router.policies import RequestFacts, RowFacts, Verdict, compiled
from clawproxy_router.policies.conditions import both, condition
from clawproxy_router.policies.facts import SCANNED, newest
from clawproxy_router.policies.verdict import policies_of


def words(*said: str) -> Words:
    return Words(said)


def facts(
    prompt: str = "Say hello.", *, at: float | None = None, exchange: dict[str, Any] | None = None, **changes: Any
) -> RequestFacts:
    principal = make_principal(key="k", user="ann", team="blue", roles=("dev", "admin"), tags=("gold",))
    when = {} if at is None else {"started_unix": at}
    return RequestFacts(make_exchange(**({"principal": principal} | when | (exchange or {}))), make_request(prompt, **changes))


def holds(when: WhenConfig, asked: Any = None, **shares: float) -> bool | None:
    return condition(when, lambda name, _: shares.get(name))(asked if asked is not None else facts())


def verdict(policies: dict[str, PolicyConfig], asked: Any = None, *assumed: str) -> Verdict:
    return policies_of(policies, lambda *_: None).verdict(asked if asked is not None else facts(), assumed)


def said(made: Verdict) -> list[tuple[str, str]]:
    return [(hit.rule + ("?" if hit.shadow else ""), hit.action) for hit in made.rules]


# --- conditions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("user", "ann", "bob"), ("team", "blue", "red"), ("role", "admin", "boss"), ("key", "k", "kk"), ("tag", "gold", "tin"),
        ("model", "test-*", "gpt-*"), ("surface", "openai_chat", "claw"), ("operation", "chat", "embeddings"), ("user", "*", "a"),
    ],
)  # fmt: skip
def test_words(name: str, good: str, bad: str) -> None:
    one: dict[str, Any] = {name: words(good)}
    other: dict[str, Any] = {name: words(bad)}
    either: dict[str, Any] = {name: words(bad, good)}
    assert holds(WhenConfig(**one)) is True
    assert holds(WhenConfig(**other)) is False
    assert holds(WhenConfig(**either)) is True, "a list means any of"
    assert holds(WhenConfig(**one, app=words("*"))) is False, "all that is given must hold"


def test_a_clients_own_word_for_who_it_is_counts_only_through_the_exchange() -> None:
    """`Generation.describe` puts it there where the key may assert it, and nowhere else."""
    assert holds(WhenConfig(user=words("eve")), facts(user="eve", metadata={"user_id": "eve", "app": "x"})) is False
    assert holds(WhenConfig(app=words("x")), facts(metadata={"app": "x"})) is False
    assert holds(WhenConfig(user=words("eve")), facts(exchange={"user": "eve"})) is True


@pytest.mark.parametrize("value", ["high", 5, 1.5, True])
def test_metadata(value: object) -> None:
    word = {True: "true"}.get(value is True, str(value))
    when = WhenConfig(metadata={"priority": words(word)})
    assert holds(when, facts(metadata={"priority": value})) is True
    assert holds(when, facts(metadata={"priority": "other"})) is False
    assert holds(when, facts(metadata={"priority": ["high"]})) is False
    assert holds(when) is False


def test_sizes() -> None:
    asked = facts(messages=(Message("user", "é" * 400), Message("user", (TextPart("ab"), ImagePart(data="AAAA")))))
    assert asked.size("messages") == 2
    assert asked.size("bytes") == 806
    assert holds(WhenConfig(size=SizeConfig(bytes=">= 806, < 807", messages="> 1")), asked) is True
    assert holds(WhenConfig(size=SizeConfig(bytes="> 1KiB")), asked) is False
    assert holds(WhenConfig(size=SizeConfig(input_tokens="< 10")), facts("short")) is True
    assert holds(WhenConfig(size=SizeConfig(input_tokens="> 1000")), facts("x" * 5000)) is True


def test_needs_are_read_off_the_request_and_not_off_what_it_says_of_itself() -> None:
    when = WhenConfig(needs=words("tools", "images"))
    assert holds(when) is False
    assert holds(when, facts(tools=(Tool("f"),))) is True
    assert holds(when, facts(messages=(Message("user", (ImagePart(url="x"),)),))) is True
    assert holds(when, facts(dialect="claw", metadata={"capabilities": "tools", "quality": "nonsense"})) is False


def test_content() -> None:
    when = WhenConfig(content=words("(?i)project nightingale", r"\bsecret\d+\b"))
    assert holds(when, facts("About Project NIGHTINGALE.")) is True
    assert holds(when, facts("secret12 and so on")) is True
    assert holds(when, facts("nothing")) is False
    earlier = facts(messages=(Message("user", "secret1"), Message("assistant", "x"), Message("user", "y")))
    assert holds(when, earlier) is True
    assert holds(when, facts("\ud800 secret1")) is True


def test_content_is_bounded_the_newest_first() -> None:
    texts = newest(["first " + "x" * SCANNED, "last"])
    assert texts[0] == b"last"
    assert sum(map(len, texts)) == SCANNED
    assert newest(["é" * SCANNED])[0][-2:] == "é".encode()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*)*x", "(x+x+)+y", "([a-z]+)*[0-9]"])
@pytest.mark.parametrize("text", ["a" * 100_000 + "!", "x" * 100_000, "é" * 50_000])
def test_patterns_take_linear_time(pattern: str, text: str) -> None:
    """Those that stop `re` for ages; the worst takes some ms here, and the bound leaves room for a busy machine."""
    check = condition(WhenConfig(content=words(pattern)), lambda *_: None)
    began = time.process_time()
    check(facts(text))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("when", "there", "expected"),
    [
        (TimeConfig(days=words("sat", "sun")), "2026-11-22T10:00", True),
        (TimeConfig(days=words("mon")), "2026-11-22T23:30", False),
        (TimeConfig(days=words("mon"), zone="Europe/Vienna"), "2026-11-22T23:30", True),
        (TimeConfig(hours=words("09:00-17:30")), "2026-11-22T09:00", True),
        (TimeConfig(hours=words("09:00-17:30")), "2026-11-22T17:30", False),
        (TimeConfig(hours=words("22:00-06:00")), "2026-11-22T05:59", True),
        (TimeConfig(hours=words("22:00-06:00")), "2026-11-22T06:00", False),
        (TimeConfig(hours=words("22:00-24:00", "01:00-02:00")), "2026-11-22T23:59", True),
        (TimeConfig(hours=words("12:00-13:00"), zone="America/New_York"), "2026-07-01T16:30", True),
        (TimeConfig(after=Moment(datetime(2026, 1, 1, tzinfo=UTC).timestamp())), "2025-12-31T23:59", False),
        (TimeConfig(before=Moment(datetime(2026, 1, 1, tzinfo=UTC).timestamp())), "2025-12-31T23:59", True),
    ],
)  # fmt: skip
def test_time(when: TimeConfig, there: str, expected: bool) -> None:
    moment = datetime.fromisoformat(there).replace(tzinfo=UTC).timestamp()
    assert holds(WhenConfig(time=when), facts(at=moment)) is expected


@given(st.integers(1_577_836_800, 2_051_222_400), st.integers(0, 1439), st.integers(0, 1439))
def test_hours_and_the_hours_between_them_make_a_day(at: int, begin: int, end: int) -> None:
    if begin == end:
        return
    clock = [f"{minute // 60:02}:{minute % 60:02}" for minute in (begin, end)]
    there, back = (
        holds(WhenConfig(time=TimeConfig(hours=words(f"{one}-{two}"), zone="Europe/Vienna")), facts(at=at))
        for one, two in (clock, clock[::-1])
    )
    assert there is not back


def test_budgets() -> None:
    when = WhenConfig(budget=words("day >= 80%"))
    assert holds(when) is None
    assert holds(when, None, day=0.8) is True
    assert holds(when, None, day=0.79) is False


@given(st.lists(st.sampled_from([True, False, None])))
def test_and_is_kleenes(answers: list[bool | None]) -> None:
    expected = False if False in answers else None if None in answers else True
    assert both(answers) is expected


def test_a_past_request_does_not_know_everything() -> None:
    row = {
        "time": "2026-11-23T00:05:00.000+00:00",
        "timing_ms": {"total": 600_000.0},
        "user": "ann",
        "team": None,
        "usage": {"input_tokens": 9},
        "roles": ["dev"],
    }
    asked = RowFacts(row)
    for when, expected in (
        (WhenConfig(user=words("ann")), True),
        (WhenConfig(team=words("*")), False),
        (WhenConfig(role=words("dev"), tag=words("x")), False),
        (WhenConfig(app=words("x")), None),
        (WhenConfig(user=words("ann"), content=words("x")), None),
        (WhenConfig(user=words("bob"), content=words("x")), False),
        (WhenConfig(size=SizeConfig(input_tokens="> 8")), True),
        (WhenConfig(size=SizeConfig(messages="> 8")), None),
        (WhenConfig(needs=words("tools")), None),
        (WhenConfig(metadata={"a": words("b")}), None),
        (WhenConfig(time=TimeConfig(days=words("sun"))), True),
        (WhenConfig(time=TimeConfig(hours=words("23:55-24:00"))), True),
        (WhenConfig(operation=words("chat")), True),
    ):
        assert holds(when, asked) is expected, when


# --- together -------------------------------------------------------------------------------------------------------------


def test_all_that_apply_do_what_they_say() -> None:
    made = verdict({
        "caps": PolicyConfig(cap=100),
        "other": PolicyConfig(WhenConfig(user=words("bob")), cap=1),
        "lower": PolicyConfig(cap=50),
        "higher": PolicyConfig(cap=70),
        "names": PolicyConfig(model="small"),
        "too-late": PolicyConfig(choose="big"),
        "here": PolicyConfig(restrict=RestrictConfig(region=words("eu"))),
        "there": PolicyConfig(restrict=RestrictConfig(provider=words("p"))),
    })  # fmt: skip
    assert (made.cap, made.model, made.choose, made.refused) == (50, "small", None, None)
    assert [name for name, _ in made.restrictions] == ["here", "there"]
    assert said(made) == [("caps", "cap"), ("lower", "cap"), ("names", "model"), ("here", "restrict"), ("there", "restrict")]


def test_refuse_and_final_end_the_list() -> None:
    assert said(verdict({"a": PolicyConfig(refuse="No."), "b": PolicyConfig(cap=1)})) == [("a", "refuse")]
    assert said(verdict({"a": PolicyConfig(cap=2, final=True), "b": PolicyConfig(refuse="No.")})) == [("a", "cap")]
    exempt = PolicyConfig(WhenConfig(role=words("admin")), final=True)
    assert said(verdict({"a": exempt, "b": PolicyConfig(refuse="No.")})) == [("a", "final")]


def test_unless() -> None:
    night = PolicyConfig(WhenConfig(model=words("test-*")), WhenConfig(role=words("admin"), team=words("red")), refuse="No.")
    assert said(verdict({"a": night})) == [("a", "refuse")], "all of `unless` must hold for it to count"
    only = PolicyConfig(unless=WhenConfig(role=words("admin")), refuse="No.")
    assert said(verdict({"a": only})) == []


def test_what_changes_nothing_is_no_hit() -> None:
    assert said(verdict({"a": PolicyConfig(model="test-model")})) == []
    assert said(verdict({"a": PolicyConfig(cap=5), "b": PolicyConfig(cap=10)})) == [("a", "cap")]


def test_a_shadow_is_recorded_and_changes_nothing() -> None:
    made = verdict({
        "a": PolicyConfig(refuse="No.", shadow=True),
        "b": PolicyConfig(cap=5, final=True, shadow=True),
        "c": PolicyConfig(model="small", shadow=True),
        "d": PolicyConfig(cap=10),
        "e": PolicyConfig(cap=20, shadow=True),
    })  # fmt: skip
    assert said(made) == [("a?", "refuse"), ("b?", "cap"), ("c?", "model"), ("d", "cap")]
    assert (made.refused, made.cap, made.moves) == (None, 10, False)


def test_what_is_not_known_applies_nothing() -> None:
    made = verdict({"a": PolicyConfig(WhenConfig(content=words("x")), refuse="No."), "b": PolicyConfig(cap=1)}, RowFacts({}))
    assert (made.unknown, said(made)) == (["a"], [("b", "cap")])
    assumed = verdict(
        {"a": PolicyConfig(WhenConfig(content=words("x")), refuse="No."), "b": PolicyConfig(cap=1)}, RowFacts({}), "a"
    )
    assert (assumed.unknown, said(assumed)) == (["a"], [("a", "refuse")])
    unsure = PolicyConfig(unless=WhenConfig(content=words("x")), refuse="No.")
    assert verdict({"a": unsure}, RowFacts({})).unknown == ["a"]


ACTIONS = st.sampled_from([
    {"refuse": "No."}, {"cap": 5}, {"cap": 9, "final": True}, {"model": "small"}, {"choose": "big"}, {"final": True},
    {"restrict": RestrictConfig(region=words("eu"))},
])  # fmt: skip
MADE = st.builds(
    lambda action, fit, shadow: PolicyConfig(WhenConfig(user=words("ann" if fit else "bob")), shadow=shadow, **action),
    ACTIONS, st.booleans(), st.booleans(),
)  # fmt: skip


@given(st.lists(MADE, max_size=8))
def test_the_laws_of_order(policies: list[PolicyConfig]) -> None:
    named = {f"p{number}": policy for number, policy in enumerate(policies)}
    made = verdict(named)
    order = [int(hit.rule[1:]) for hit in made.rules]
    assert order == sorted(order), "in the order they are written"
    live = {name: policy for name, policy in named.items() if not policy.shadow}
    alone = verdict(live)
    assert alone.rules == [hit for hit in made.rules if not hit.shadow], "without its shadows it is the same"
    assert (alone.refused, alone.model, alone.choose, alone.cap) == (made.refused, made.model, made.choose, made.cap)
    caps = [policies[int(hit.rule[1:])].cap for hit in made.rules if hit.action == "cap" and not hit.shadow]
    assert made.cap == (caps[-1] if caps else None)
    assert sum(hit.action in ("model", "choose") for hit in alone.rules) <= 1
    ends = [hit for hit in alone.rules if hit.action in ("refuse", "final")]
    assert not ends or ends == alone.rules[-1:]
    fits = [name for name, policy in live.items() if policy.when == WhenConfig(user=words("ann"))]
    ended = next((name for name in fits if named[name].final or named[name].refuse), "p99")
    assert {hit.rule for hit in made.rules} <= set(list(named)[: int(ended[1:]) + 1]), "nothing after the end"


def test_what_was_never_checked_is_refused_all_the_same() -> None:
    bad = Config(policies={"a": PolicyConfig(WhenConfig(content=words("(?=x)")), cap=1)})
    with pytest.raises(ConfigError, match=r"policies\.a: RE2 refuses"):
        compiled(bad)
    assert compiled(Config()) is None


# --- in the router --------------------------------------------------------------------------------------------------------


def router(policies: dict[str, PolicyConfig], models: dict[str, ModelConfig] | None = None) -> Any:
    models = models or {
        "test-model": ModelConfig((RouteConfig("a", "x", 100, region="us"), RouteConfig("b", "x", 200, region="eu"))),
        "small": ModelConfig((RouteConfig("b", "s", 50),)),
        "group": ModelConfig((RouteConfig(model="small"), RouteConfig(model="test-model")), "load"),
    }
    config = Config(providers={"a": ProviderConfig(), "b": ProviderConfig()}, models=models, policies=policies)
    return clawproxy_router.configure(clawproxy_router.RouterSettings(), App(config, MemoryStore(), "test", None))


async def routed(state: Any, exchange: Any = None, **changes: Any) -> list[str]:
    exchange, request = exchange or make_exchange(), make_request(**changes)
    request = await clawproxy_router.prepare_request(exchange, request, state) or request
    plan = await clawproxy_router.choose_route(exchange, request, state)
    return [] if plan is None else [f"{route.provider}/{route.model}" for route in plan.candidates]


async def test_candidates_are_those_that_are_left() -> None:
    """So that what comes after the router fits the prompt to them."""
    exchange = make_exchange()
    state = router({"eu": PolicyConfig(restrict=RestrictConfig(region=words("e*")))})
    assert await routed(state, exchange) == ["b/x"]
    assert [route.context_tokens for route in exchange.candidates] == [200]
    assert [(each.provider, each.why) for each in exchange.considered] == [("b", "priority"), ("a", "policy")]


async def test_restrictions_reach_into_groups() -> None:
    state = router({"b": PolicyConfig(restrict=RestrictConfig(provider=words("b"), route=words("b/x", "a/x")))})
    assert await routed(state, model="group") == ["b/x"]
    with pytest.raises(Refusal, match="leave no route") as caught:
        await routed(state, model="small")
    assert caught.value.details.policy == "b"
    assert await routed(state, model="unknown") == []


async def test_choosing_a_group_and_a_route() -> None:
    assert await routed(router({"g": PolicyConfig(choose="small")})) == ["b/s"]
    assert await routed(router({"r": PolicyConfig(choose="b/x")})) == ["b/x"]
    assert sorted(await routed(router({"g": PolicyConfig(choose="group")}))) == ["a/x", "b/s", "b/x"]


async def test_what_a_key_may_not_ask_for_no_policy_looks_at() -> None:
    state = router({"no": PolicyConfig(refuse="No.")})
    exchange = make_exchange(principal=make_principal(models=("small",)))
    with pytest.raises(ClawError) as caught:
        await routed(state, exchange)
    assert (caught.value.slug, exchange.rules) == ("model_not_found", ())


async def test_asked_again_where_the_client_says_more() -> None:
    """What is said meanwhile is looked at; what applied before is not counted twice, and what no longer does is over."""
    state = router({
        "no": PolicyConfig(WhenConfig(content=words("secret")), refuse="No."),
        "short": PolicyConfig(WhenConfig(size=SizeConfig(messages="< 2")), choose="small"),
        "cap": PolicyConfig(cap=5),
    })  # fmt: skip
    exchange = make_exchange()
    assert await routed(state, exchange) == ["b/s"]
    assert await routed(state, exchange, messages=(Message("user", "a"), Message("user", "b"))) == ["a/x", "b/x"]
    assert [hit.rule for hit in exchange.rules] == ["short", "cap"]
    with pytest.raises(Refusal):
        await routed(state, exchange, messages=(Message("user", "a"), Message("user", "secret")))
    assert [hit.rule for hit in exchange.rules] == ["short", "cap", "no"]


def test_budgets_are_looked_up_where_they_will_be() -> None:
    class Half:
        def used(self, name: str, exchange: Exchange) -> float | None:
            return 0.5 if (name, exchange.principal.key) == ("day", "k") else None

    app = App(Config(policies={"a": PolicyConfig(WhenConfig(budget=words("day >= 50%")), cap=1)}), MemoryStore(), "test", None)
    policies = compiled(app.config, app)
    assert policies is not None
    assert policies.verdict(facts()).unknown == ["a"]
    app.shared["budgets"] = Half()
    assert said(policies.verdict(facts())) == [("a", "cap")]
    assert policies.verdict(RowFacts({"key": "k"})).unknown == ["a"]


def test_without_policies_the_hook_is_unused() -> None:
    assert router({}).unused_hooks == {"prepare_request"}
    assert "prepare_request" not in router({"a": PolicyConfig(cap=1)}).unused_hooks
