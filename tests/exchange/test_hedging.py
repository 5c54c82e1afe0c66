"""Two attempts at once: the first to speak wins, the other is let go at once, and both are billed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, Duration, Hedge, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Begin, End, Finish, Outcome, Text
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Route
from clawproxy.testing import Answer, Claw, Fail, Pause, claw
from tests.exchange.talker import Talker
from tests.exchange.test_outcomes import Closings

Clock = trio.testing.MockClock
NAMES = ("first", "second", "third")


def hedged(after: float = 1.0, names: Sequence[str] = NAMES[:2], **changes: Any) -> Config:
    model = ModelConfig(tuple(RouteConfig(name, "test-model") for name in names), hedge=Hedge(Duration(after)))
    return Config(providers={name: ProviderConfig(dialect="scripted") for name in names}, models={"test-model": model}, **changes)


def story(answer: Answer) -> list[tuple[str, str, str | None]]:
    assert answer.exchange is not None
    return [(attempt.route.provider, attempt.reason, attempt.outcome) for attempt in answer.exchange.attempts]


class Contexts:
    """How many attempts' contexts are entered, and the most that ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.finished: list[str] = []

    @hookimpl
    def open_attempt(self) -> Any:
        return self._context()

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[None]:
        self.now += 1
        self.most = max(self.now, self.most)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.now -= 1

    @hookimpl
    def attempt_finished(self, attempt: Attempt) -> None:
        self.finished.append(attempt.id)


async def rows(gateway: Claw) -> list[tuple[str, str, bool, int | None]]:
    found = sorted(await gateway.store.rows(), key=lambda row: row.opened.number)
    assert all(row.closed is not None for row in found)
    return [(r.opened.reason, r.closed.outcome, r.closed.sent, r.closed.input_tokens) for r in found if r.closed is not None]


async def test_the_hedge_wins(autojump_clock: Clock) -> None:
    contexts, closings = Contexts(), Closings()
    async with claw({"contexts": contexts, "closings": closings}, config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(100), "late")
        gateway.upstream.will_say(Pause(0.5), "in ", "time")
        answer = await gateway.ask("Hi")
        assert answer.text == "in time"
        assert answer.outcome == Outcome("complete", None, "stop")
        assert 1.5 <= trio.current_time() < 1.6
        assert story(answer) == [("first", "first", "cancelled"), ("second", "hedge", "complete")]
        exchange = answer.exchange
        assert exchange is not None
        assert [attempt.id for attempt in exchange.attempts] == [exchange.request_id, f"{exchange.request_id}.2"]
        assert exchange.route is exchange.attempts[1].route
        assert not exchange.attempts[0].content
        assert contexts.most == 2, "each attempt has its own contexts"
        assert contexts.now == 0
        assert contexts.finished == [exchange.request_id, f"{exchange.request_id}.2"]
        assert closings.outcomes == ["complete"]
        assert await rows(gateway) == [("first", "cancelled", True, 3), ("hedge", "complete", True, 1)]
        assert exchange.timing.first_token == pytest.approx(0.5)
        assert exchange.timing.upstream == pytest.approx(1.5), "the first one's second was spent waiting for a provider, too"
        assert (exchange.timing.gateway() or 0.0) < 0.01
        assert gateway.at_rest()


async def test_the_first_wins_after_all(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1.2), "first ", Pause(3), "after all")
        gateway.upstream.will_say(Pause(1), "late")
        answer = await gateway.ask("Hi")
        assert answer.text == "first after all"
        assert story(answer) == [("first", "first", "complete"), ("second", "hedge", "cancelled")]
        assert answer.exchange is not None
        assert answer.exchange.route is answer.exchange.attempts[0].route
        assert [row[:3] for row in await rows(gateway)] == [("first", "complete", True), ("hedge", "cancelled", True)]


async def test_the_loser_is_let_go_in_the_moment_somebody_speaks(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(100), "late")
        gateway.upstream.will_say("now", Pause(50), " and then")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.ask, "Hi")
            await trio.sleep(1.1)
            assert gateway.upstream.open_streams == 1
            assert gateway.upstream.routes[-1].provider == "second"
            closed = sum(row.closed is not None for row in await gateway.store.rows())
            assert closed == 1, "its row is closed, too, and not only at the end"


async def test_who_answers_in_time_is_alone(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(0.9), "in time", Pause(30), ".")
        answer = await gateway.ask("Hi")
        assert story(answer) == [("first", "first", "complete")]
        assert len(gateway.upstream.requests) == 1


async def test_both_speak_in_the_same_moment(autojump_clock: Clock) -> None:
    for _ in range(30):
        async with claw(config=hedged()) as gateway:
            gateway.upstream.will_say(Pause(2), "one", "one")
            gateway.upstream.will_say(Pause(1), "two", "two")
            answer = await gateway.ask("Hi")
            assert answer.text in ("oneone", "twotwo")
            outcomes = sorted(outcome or "" for _, _, outcome in story(answer))
            assert outcomes == ["cancelled", "complete"]
            assert answer.exchange is not None
            assert [attempt.content for attempt in answer.exchange.attempts].count(True) == 1


@pytest.mark.parametrize("quicker", [0, 1])
async def test_one_fails_and_the_other_goes_on(quicker: int, autojump_clock: Clock) -> None:
    async with claw(config=hedged(names=NAMES)) as gateway:
        scripts: list[Any] = [(Pause(1.5), Fail("provider_error.overloaded")), (Pause(3), "here")]
        for script in reversed(scripts) if quicker else scripts:
            gateway.upstream.will_say(*script)
        answer = await gateway.ask("Hi")
        assert answer.text == "here"
        assert answer.outcome == Outcome("complete", None, "stop")
        assert [outcome for _, _, outcome in story(answer)] == (
            ["complete", "provider_error.overloaded"] if quicker else ["provider_error.overloaded", "complete"]
        )


async def test_both_fail_and_failover_follows(autojump_clock: Clock) -> None:
    async with claw(config=hedged(names=NAMES)) as gateway:
        gateway.upstream.will_say(Pause(2), Fail("provider_error.overloaded"))
        gateway.upstream.will_say(Pause(3), Fail("provider_error.server"))
        gateway.upstream.will_say("third")
        answer = await gateway.ask("Hi")
        assert answer.text == "third"
        assert story(answer) == [
            ("first", "first", "provider_error.overloaded"),
            ("second", "hedge", "provider_error.server"),
            ("third", "failover", "complete"),
        ]
        assert [notice.code for notice in answer.notices] == ["fallback"]


async def test_nobody_is_left(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(4), Fail("provider_error.overloaded"))
        gateway.upstream.will_say(Pause(1), Fail("provider_error.server"))
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "provider_error.overloaded", "what was said last"
        assert len(gateway.upstream.requests) == 2


async def test_a_fault_before_the_hedge_is_a_failover(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(0.5), Fail("provider_error.overloaded"))
        gateway.upstream.will_say(Pause(20), "there")
        answer = await gateway.ask("Hi")
        assert story(answer) == [("first", "first", "provider_error.overloaded"), ("second", "failover", "complete")]


async def test_each_has_its_own_clocks(autojump_clock: Clock) -> None:
    config = hedged(names=NAMES, deadlines=evolve(Deadlines(), first_token=5.0, stall=4.0))
    async with claw(config=config) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say(Pause(5.5), "never")
        gateway.upstream.will_say("third ", Pause(3), "then")
        answer = await gateway.ask("Hi")
        assert answer.text == "third then"
        assert [outcome for _, _, outcome in story(answer)] == ["timeout.first_token", "timeout.first_token", "complete"]
        assert trio.current_time() == pytest.approx(1 + 5 + 3, abs=0.01), "the hedge's time began a second later"


async def test_the_winner_stalls(autojump_clock: Clock) -> None:
    async with claw(config=hedged(deadlines=evolve(Deadlines(), stall=4.0))) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say("half", Pause(1000), "never")
        answer = await gateway.ask("Hi")
        assert answer.text == "half"
        assert answer.error is not None
        assert answer.error.slug == "timeout.stall"
        assert answer.error.details.provider == "second"
        assert story(answer) == [("first", "first", "cancelled"), ("second", "hedge", "timeout.stall")]


async def test_total_ends_both_and_names_who_held_it(autojump_clock: Clock) -> None:
    async with claw(config=hedged(deadlines=evolve(Deadlines(), total=3.0, first_token=100.0))) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say(Pause(1000), "never")
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "timeout.total"
        assert "second" in answer.error.message
        assert trio.current_time() == pytest.approx(3.0, abs=0.01)
        assert [outcome for _, _, outcome in story(answer)] == ["timeout.total", "timeout.total"]
        assert gateway.at_rest()


@pytest.mark.parametrize("slug", ["client_gone", "cancelled", "shutting_down"])
async def test_whatever_ends_the_request_ends_both(slug: str, autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say(Pause(1000), "never")
        lifetime, answers = Lifetime(), []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await gateway.ask("Hi", lifetime=lifetime))

            nursery.start_soon(ask)
            await trio.sleep(2)
            assert gateway.upstream.open_streams == 2
            lifetime.cancel(ClawError(slug))
        assert [outcome for _, _, outcome in story(answers[0])] == [ClawError(slug).kind.outcome] * 2
        assert trio.current_time() < 2.1
        assert [row[:3] for row in await rows(gateway)] == [("first", slug, True), ("hedge", slug, True)]
        assert gateway.at_rest()


async def test_a_client_that_says_more_interrupts_both(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say("that, too")
        client = Talker()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ask, gateway, "Hi")
            await trio.sleep(2)
            client.append("And?")
        assert client.answer.text == "that, too"
        assert [(reason, outcome) for _, reason, outcome in story(client.answer)] == [
            ("first", "cancelled"), ("hedge", "cancelled"), ("steer", "complete"),
        ]  # fmt: skip
        with pytest.raises(ClawError):
            client.append("too late")


async def test_nothing_is_added_once_the_winner_is_whole(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say("said", Finish("stop"), End(), Pause(5), Text(""))
        client = Talker()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ask, gateway, "Hi")
            await trio.sleep(2)
            with pytest.raises(ClawError):
                client.append("too late")
        assert client.answer.text == "said"


async def test_an_empty_answer_wins_too(autojump_clock: Clock) -> None:
    async with claw(config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say(Begin())
        answer = await gateway.ask("Hi")
        assert answer.text == ""
        assert answer.outcome == Outcome("complete", None, "stop")
        assert story(answer) == [("first", "first", "cancelled"), ("second", "hedge", "complete")]


class HoldsBack:
    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])


async def test_what_is_held_back_wins_by_its_first_content(autojump_clock: Clock) -> None:
    async with claw({"holds": HoldsBack()}, config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1.5), "a", Pause(10), "b")
        gateway.upstream.will_say(Pause(1), "quicker to its end")
        answer = await gateway.ask("Hi")
        assert answer.text == "AB"
        assert story(answer) == [("first", "first", "complete"), ("second", "hedge", "cancelled")]


class Refuses:
    def __init__(self, provider: str) -> None:
        self.provider = provider

    @hookimpl
    def open_attempt(self, exchange: Exchange, request: ChatRequest, route: Route) -> None:
        if route.provider == self.provider:
            raise ClawError("budget.exhausted")


async def test_a_hedge_that_is_refused_costs_the_first_nothing(autojump_clock: Clock) -> None:
    async with claw({"refuses": Refuses("second")}, config=hedged(names=NAMES)) as gateway:
        gateway.upstream.will_say(Pause(5), "first")
        answer = await gateway.ask("Hi")
        assert answer.text == "first"
        assert story(answer) == [("first", "first", "complete"), ("second", "hedge", "refused.budget")]
        gateway.upstream.will_say(Pause(5), Fail("provider_error.overloaded"))
        gateway.upstream.will_say("third")
        answer = await gateway.ask("Hi")
        assert answer.text == "third", "and it does not stand in the way of a failover"


async def test_a_refused_first_ends_the_request_as_it_would_alone(autojump_clock: Clock) -> None:
    async with claw({"refuses": Refuses("first")}, config=hedged()) as gateway:
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "budget.exhausted"
        assert len(story(answer)) == 1


class Refusing:
    """A plan that has one route, and says why there is no other."""

    def __init__(self, error: Exception) -> None:
        self.candidates = [Route("first", "test-model", hedge_after=1.0), Route("second", "test-model")]
        self.error = error

    def next(self, history: Sequence[Attempt]) -> Route | None:
        if history:
            raise self.error
        return self.candidates[0]

    @hookimpl
    async def choose_route(self) -> Refusing:
        return self


@pytest.mark.parametrize("error", [ClawError("provider_error.breaker_open"), RuntimeError("a defect")])
async def test_a_plan_that_raises_costs_the_first_nothing(error: Exception, autojump_clock: Clock) -> None:
    async with claw({"router2": Refusing(error)}, config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(5), "first")
        answer = await gateway.ask("Hi")
        assert answer.text == "first"
        assert story(answer) == [("first", "first", "complete")]


class Breaks:
    @hookimpl
    def tap_response(self, route: Route) -> Transform | None:
        if route.provider != "second":
            return None

        def change(events: Any) -> Any:
            if any(isinstance(event, Text) for event in events):
                raise RuntimeError("a defect")
            return events

        return Transform(change, streams="per_batch")


async def test_a_defect_of_the_winner_is_the_requests(autojump_clock: Clock) -> None:
    async with claw({"breaks": Breaks()}, config=hedged()) as gateway:
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say("x")
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "internal"
        assert gateway.at_rest()
