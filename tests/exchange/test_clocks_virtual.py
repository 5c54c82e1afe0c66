"""The clocks that watch a provider, on the virtual clock at their real lengths: `stall` for models that reason, and `rate`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.clocks import CLIENTS_OWN, Deadlines, Rate
from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.config.schema import Duration
from clawproxy.config.units import parse_rate, render_rate
from clawproxy.context import Exchange
from clawproxy.events import Begin, KeepAlive, Reasoning, Text, ToolCallDelta
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.rate import RateWatch, tokens_of
from clawproxy.testing import Pause, claw


def config(deadlines: Deadlines, model: dict[str, Duration] | None = None, provider: dict[str, Duration] | None = None) -> Config:
    return Config(
        providers={"scripted": ProviderConfig(dialect="scripted", deadlines=provider or {})},
        models={"test-model": ModelConfig((RouteConfig("scripted", "m"),), deadlines=model or {})},
        deadlines=deadlines,
    )


@pytest.mark.parametrize("reasons", [None, "asked", "budget", "began"])
async def test_a_model_that_reasons_may_be_silent_twice_as_long(
    autojump_clock: trio.testing.MockClock, reasons: str | None
) -> None:
    known: dict[str, dict[str, Any]] = {"asked": {"reasoning_effort": "high"}, "budget": {"reasoning_budget": 1000}}
    asked = known.get(reasons or "", {})
    async with claw() as gateway:
        begins = Reasoning("hm") if reasons == "began" else "hm"
        gateway.upstream.will_say(begins, Pause(119), "so")
        gateway.upstream.will_say(begins, Pause(121), "so")
        one = await gateway.ask("Think.", **asked)
        two = await gateway.ask("Think.", **asked)
    assert one.outcome
    assert two.error
    if reasons is None:
        assert one.outcome.label == "timeout.stall"
        assert two.error.details.clock == "stall"
        assert two.error.details.limit_ms == 60_000
    else:
        assert one.outcome.label == "complete"
        assert two.error.slug == "timeout.stall"
        assert two.error.details.clock == "stall_reasoning"
        assert (two.error.details.limit_ms, two.error.details.setting) == (120_000, "deadlines.stall_reasoning")


async def test_no_effort_is_no_reasoning(autojump_clock: trio.testing.MockClock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", Pause(70), "b")
        answer = await gateway.ask("Hi", reasoning_effort="none", reasoning_budget=0)
    assert answer.error is not None
    assert answer.error.details.clock == "stall"


def test_whose_stall_it_is() -> None:
    """Twice `stall`, unless set; a provider's or model's own `stall` is for both; what stands nearest wins."""
    assert Deadlines(stall=30).stall_reasoning == 60
    assert Deadlines(stall=30, stall_reasoning=300).stall_reasoning == 300
    assert Deadlines(stall=math.inf).stall_reasoning == math.inf
    own = Deadlines().overridden({"stall": 10.0}, "models.m.deadlines")
    assert (own.stall, own.stall_reasoning) == (10, 10)
    assert own.stall.setting == "models.m.deadlines.stall"  # type: ignore[attr-defined]
    both = Deadlines().overridden({"stall": 10.0, "stall_reasoning": 90.0}, "models.m.deadlines")
    assert (both.stall, both.stall_reasoning) == (10, 90)
    assert Deadlines(total=5).shortened(9).total == 5
    assert Deadlines(total=5).shortened(3).total.setting == CLIENTS_OWN  # type: ignore[attr-defined]


# --- rate -----------------------------------------------------------------------------------------------------------------------


async def test_too_few_tokens_in_a_whole_window(autojump_clock: trio.testing.MockClock) -> None:
    slow = Deadlines(rate=Rate(30.0, 1.0))
    async with claw(config=config(slow)) as gateway:
        steps = [step for n in range(100) for step in (f" w{n}", Pause(2))]
        gateway.upstream.will_say(*steps)
        began = trio.current_time()
        answer = await gateway.ask("Go on.")
        took = trio.current_time() - began
    assert answer.error is not None
    assert answer.error.slug == "timeout.rate"
    details = answer.error.details
    assert (details.clock, details.limit_ms, details.setting) == ("rate", 30_000, "deadlines.rate")
    assert answer.error.fault == "provider"
    assert "fewer than 1 tokens a second" in answer.error.message
    assert 29.9 < took < 30.2


@pytest.mark.parametrize("every", [0.9, 0.5])
async def test_enough_tokens_go_on_for_ever(autojump_clock: trio.testing.MockClock, every: float) -> None:
    async with claw(config=config(Deadlines(rate=Rate(30.0, 1.0)))) as gateway:
        gateway.upstream.will_say(*[step for n in range(300) for step in (f" w{n}", Pause(every))])
        answer = await gateway.ask("Go on.")
    assert answer.outcome is not None
    assert answer.outcome.label == "complete"


async def test_a_slow_reader_is_not_its_providers_fault(autojump_clock: trio.testing.MockClock) -> None:
    """It takes 3 s for each piece: the provider, which had all of it ready, has as long as it needs."""
    async with claw(config=config(Deadlines(rate=Rate(10.0, 1.0)))) as gateway:
        gateway.upstream.will_say(*[f" w{n}" for n in range(100)])
        answer = await gateway.ask("Go on.", reads_for=3.0)
    assert answer.outcome is not None
    assert answer.outcome.label == "complete"


async def test_stall_still_rings_while_rate_is_on(autojump_clock: trio.testing.MockClock) -> None:
    async with claw(config=config(Deadlines(rate=Rate(300.0, 0.01), stall=60.0))) as gateway:
        gateway.upstream.will_say("a lot of words at once, which is fast enough", Pause(100), "b")
        answer = await gateway.ask("Go on.")
    assert answer.error is not None
    assert answer.error.details.clock == "stall"


class Greets:
    """A transform that says something before the provider does."""

    @hookimpl
    def tap_response(self, exchange: Exchange) -> Transform:
        return Transform(lambda events: [*events, Text("Well, ")] if type(events[0]) is Begin else events, None, "per_batch")


@pytest.mark.parametrize("rate", [math.inf, Rate(30.0, 1.0)])
async def test_before_its_first_content_a_provider_has_the_first_token_clock_whatever_a_transform_says(
    rate: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with claw({"greets": Greets()}, config=config(Deadlines(rate=rate))) as gateway:
        gateway.upstream.will_say(Pause(150), "late")
        answer = await gateway.ask("Hi")
    assert answer.text == "Well, "
    assert answer.error is not None
    assert answer.error.slug == "timeout.first_token"


async def test_a_models_own_rate_and_keep_alives_count_for_nothing(autojump_clock: trio.testing.MockClock) -> None:
    own = {"rate": Duration(Rate(20.0, 1.0))}
    async with claw(config=config(Deadlines(), model=own)) as gateway:
        gateway.upstream.will_say("a", *[step for _ in range(50) for step in (Pause(1), KeepAlive())], "b")
        answer = await gateway.ask("Go on.")
    assert answer.error is not None
    assert answer.error.slug == "timeout.rate"
    assert answer.error.details.setting == "models.test-model.deadlines.rate"


def test_what_is_counted() -> None:
    assert tokens_of([Text("a"), Text("b"), KeepAlive()]) == 2
    assert tokens_of([Text("x" * 400), Reasoning("y" * 40), ToolCallDelta(0, arguments="z" * 8)]) == 112


@given(st.floats(0.01, 999, allow_nan=False), st.sampled_from([1.0, 30.0, 90.0, 0.5]))
def test_a_rate_reads_as_it_is_written(tokens: float, window: float) -> None:
    rate = Rate(window, round(tokens, 2))
    assert parse_rate(render_rate(rate)) == rate
    assert parse_rate(render_rate(rate)).tokens == rate.tokens  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["5", "5 tokens", "0 tokens/s", "5 tokens/s over off", "-1 tokens/s", "30s", 5, True])
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match=r'write it like "5 tokens/s over 30s"|is no duration'):
        parse_rate(text)


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(0, 5)), min_size=1, max_size=40))
def test_time_that_the_client_takes_is_never_counted(turns: list[tuple[float, float]]) -> None:
    """Whatever the pauses, the window ends after exactly its length of the provider's own time."""
    watch, now, worked = RateWatch(Rate(1000.0, 1.0)), 0.0, 0.0
    watch.count([Text("a")], now)
    for works, reads in turns:
        now += works
        worked += works
        watch.pause(now)
        now += reads
        watch.resume(now, now + 60)
    assert watch.due - now == pytest.approx(1000.0 - worked)
