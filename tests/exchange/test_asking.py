"""`App.ask`: a plugin's own question to a model is a whole exchange of the same caller, inside the one it is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve, field, frozen
from trio.testing import MockClock

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, ModelConfig, PipelineConfig, PriceConfig, ProviderConfig, RouteConfig
from clawproxy.config.prices import Price
from clawproxy.config.schema import LimitsConfig
from clawproxy.context import App, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.hookspecs import hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Message
from clawproxy.testing import Claw, Fail, Pause, claw
from clawproxy.testing.factories import make_principal


@frozen
class State:
    app: App
    said: list[str | BaseException] = field(factory=list)
    parents: list[str | None] = field(factory=list)


class Asks:
    """Asks `cheap` about each prompt but its own questions."""

    def __init__(self, *, bound: float = 100.0, again: bool = False) -> None:
        self.bound = bound
        self.again = again
        self.state: State

    @hookimpl
    def configure(self, app: App) -> State:
        self.state = State(app)
        return self.state

    @hookimpl
    async def prepare_request(self, exchange: Exchange, request: ChatRequest, state: State) -> ChatRequest | None:
        state.parents.append(exchange.parent)
        if exchange.parent is not None and not self.again:
            return None
        with trio.move_on_after(self.bound) as scope:
            try:
                state.said.append(await state.app.ask(exchange, ChatRequest("cheap", (Message("user", "Hm?"),), stream=True)))
            except (ClawError, RuntimeError) as error:
                state.said.append(error)
        if scope.cancelled_caught:
            state.said.append("too late")
        return evolve(request, messages=(Message("user", f"I heard: {state.said[-1]}"),))


@asynccontextmanager
async def asking(plugin: Asks, **changes: Any) -> AsyncIterator[Claw]:
    price = PriceConfig(Price(1_000_000), Price(1_000_000))
    config = Config(
        providers={"scripted": ProviderConfig(dialect="scripted")},
        models={name: ModelConfig((RouteConfig("scripted", name),), price=price) for name in ("test-model", "cheap")},
        **changes,
    )
    async with claw({"asks": plugin}, config=config) as running:
        yield running
        assert running.at_rest()


async def test_it_is_an_exchange_of_the_same_caller() -> None:
    plugin = Asks()
    async with asking(plugin) as running:
        running.upstream.will_say("well", " said")
        running.upstream.will_say("answer")
        principal = make_principal(models=("test-model",), user="ann")  # who may not ask `cheap` itself
        answer = await running.ask(principal=principal)
        assert answer.error is None
        assert answer.text == "answer"
        assert plugin.state.said == ["well said"]
        parent, child = plugin.state.parents
        assert parent is None
        assert child is not None
        first, second = await running.store.rows()
        assert {row.opened.model for row in (first, second)} == {"cheap", "test-model"}
        assert all(row.opened.user == "ann" for row in (first, second))


async def test_whom_the_client_asks_for_counts_there_too() -> None:
    async with asking(Asks()) as running:
        running.upstream.will_say("well")
        running.upstream.will_say("answer")
        await running.ask(principal=make_principal(may_assert=True), user="bob", metadata={"app": "desk"})
        rows = await running.store.rows()
        assert [(row.opened.user, row.opened.app) for row in rows] == [("bob", "desk")] * 2


async def test_a_question_asks_no_other() -> None:
    plugin = Asks(again=True)
    async with asking(plugin) as running:
        running.upstream.will_say("well")
        running.upstream.will_say("answer")
        assert (await running.ask()).text == "answer"
        error, said = plugin.state.said
        assert isinstance(error, RuntimeError)
        assert said == "well"


async def test_its_failure_is_raised() -> None:
    plugin = Asks()
    async with asking(plugin) as running:
        running.upstream.will_say(Fail("provider_error.rejected"))
        running.upstream.will_say("answer")
        assert (await running.ask()).text == "answer"
        [error] = plugin.state.said
        assert isinstance(error, ClawError)
        assert error.slug == "provider_error.rejected"


async def test_it_takes_no_place_and_no_hooks_time(autojump_clock: MockClock) -> None:
    plugin = Asks()
    limits = LimitsConfig(in_flight=1, in_flight_per_key=1)
    async with asking(plugin, limits=limits, pipeline=PipelineConfig()) as running:
        running.upstream.will_say(Pause(8.0), "well")
        running.upstream.will_say("answer")
        began = trio.current_time()
        answer = await running.ask()
        assert answer.error is None
        assert trio.current_time() - began == pytest.approx(8.0)


async def test_its_caller_bounds_it(autojump_clock: MockClock) -> None:
    plugin = Asks(bound=3.0)
    async with asking(plugin) as running:
        running.upstream.will_say(Pause(8.0), "well")
        running.upstream.will_say("answer")
        assert (await running.ask()).text == "answer"
        assert plugin.state.said == ["too late"]
        assert running.upstream.open_streams == 0


async def test_what_ends_the_request_ends_it(autojump_clock: MockClock) -> None:
    plugin = Asks()
    async with asking(plugin) as running:
        running.upstream.will_say(Pause(8.0), "well")
        lifetime = Lifetime()
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await trio.sleep(2.0)
                lifetime.hang_up()

            nursery.start_soon(leave)
            answer = await running.ask(lifetime=lifetime)
        assert answer.outcome is not None
        assert answer.outcome.label == "client_gone"
        assert plugin.state.said == []
        assert trio.current_time() < 2.1 + running.gateway.app.config.deadlines.total


class Notes(Asks):
    """Begins later than the request, and notes what each exchange, and its last attempt, came to: the question's first."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[tuple[bool, str, str | None]] = []

    @hookimpl
    async def prepare_request(self, exchange: Exchange, request: ChatRequest, state: State) -> ChatRequest | None:
        if exchange.parent is None:
            await trio.sleep(0.3)
        return await super().prepare_request(exchange, request, state)

    @hookimpl
    async def exchange_closed(self, exchange: Exchange, outcome: Outcome, state: State) -> None:
        last = exchange.attempts[-1].outcome if exchange.attempts else None
        self.closed.append((exchange.parent is not None, outcome.label, last))


CAUSES = {
    "timeout.total": None,
    "client_gone": ClawError("client_gone"),
    "cancelled": ClawError("cancelled"),
    "shutting_down": ClawError("shutting_down"),
    "refused.auth": ClawError("auth.expired"),
}


@pytest.mark.parametrize("label", CAUSES)
async def test_it_is_booked_as_what_ended_the_request(label: str, autojump_clock: MockClock) -> None:
    plugin = Notes()
    async with asking(plugin, deadlines=Deadlines(total=5.0)) as running:
        running.upstream.will_say(Pause(60.0), "well")
        lifetime = Lifetime()

        async def end() -> None:
            await trio.sleep(2.0)
            cause = CAUSES[label]
            if cause is not None:
                lifetime.cancel(cause)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            answer = await running.ask(lifetime=lifetime)
        assert answer.outcome is not None
        assert answer.outcome.label == label
        assert plugin.closed == [(True, label, label), (False, label, None)]
        [row] = await running.store.rows()
        assert row.closed is not None
        assert row.closed.outcome == label


async def test_a_hook_that_only_waits_is_still_stopped(autojump_clock: MockClock) -> None:
    class Slow(Asks):
        @hookimpl
        async def prepare_request(self, exchange: Exchange, request: ChatRequest, state: State) -> ChatRequest | None:
            if exchange.parent is None:
                await state.app.ask(exchange, ChatRequest("cheap", (Message("user", "Hm?"),), stream=True))
                await trio.sleep(60)
            return None

    async with asking(Slow()) as running:
        running.upstream.will_say(Pause(3.0), "well")
        began = trio.current_time()
        answer = await running.ask()
        assert answer.error is not None
        assert answer.error.slug == "internal"
        assert trio.current_time() - began < 6.0
