"""Turns in a plugin's queue: each is left once it is of no more use, whatever the plugin's own code does then."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import define

from clawproxy.config import Config, LimitsConfig, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.hookspecs import Detour, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.testing import claw


@define(eq=False)
class Place:
    """A turn that comes after a second, or never."""

    comes: bool = True
    broken: bool = False
    left: int = 0

    async def wait(self) -> None:
        await trio.sleep(1.0 if self.comes else 1e6)

    def leave(self) -> None:
        self.left += 1
        if self.broken:
            raise ZeroDivisionError


class Queue:
    """Each attempt is sent to the next of these places, then let through."""

    def __init__(self, *places: Place) -> None:
        self.places = list(places)
        self.closed: list[str] = []

    @hookimpl
    def open_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        if self.places:
            raise Detour(ClawError("budget.exhausted"), turn=self.places.pop(0))

    @hookimpl
    def exchange_closed(self, outcome: Outcome) -> None:
        self.closed.append(outcome.label)


async def test_a_place_is_left_when_another_takes_its_place_and_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Place(), Place()
    queue = Queue(first, first, second)
    async with claw({"queue": queue}) as gateway:
        gateway.upstream.will_say("ok")
        assert (await gateway.ask()).text == "ok"
        assert gateway.at_rest()
    assert first.left
    assert second.left
    assert queue.closed == ["complete"]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_place_that_can_not_be_left_costs_nothing_but_a_line_in_the_log(
    gone: bool, autojump_clock: trio.testing.MockClock
) -> None:
    queue = Queue(Place(broken=True), Place(comes=not gone, broken=True))
    models = {"test-model": ModelConfig((RouteConfig("scripted", "test-model"),))}
    config = Config(providers={"scripted": ProviderConfig("scripted")}, models=models, limits=LimitsConfig(in_flight=1))
    async with claw({"queue": queue}, config=config) as gateway:
        lifetime = Lifetime()
        async with trio.open_nursery() as nursery:
            if gone:
                nursery.start_soon(_hang_up, lifetime)
            answer = await gateway.ask(lifetime=lifetime)
        assert answer.outcome is not None
        assert answer.outcome.label == ("client_gone" if gone else "complete")
        assert queue.closed == [answer.outcome.label]
        assert (await gateway.ask()).text == "ok"  # the only place is free again
        assert gateway.at_rest()


async def _hang_up(lifetime: Lifetime) -> None:
    await trio.sleep(1.5)
    lifetime.hang_up()
