"""A client that says more at every schedule point of a request that is hedged, whose answer may go on, under a budget.

Whatever the point: what was accepted is answered, each attempt has an id of its own and a closed row, nothing is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import trio
import trio.testing

from clawproxy.config import BudgetConfig, Config, Duration, Hedge, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.errors import ClawError
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing import Claw, Fail, Pause, claw, sweep
from tests.exchange.talker import NOTHING_RESTS, Talker, turns
from tests.exchange.test_outcomes import Closings

CUT = Fail("provider_error.cut")
ROUTER = {"router": {**NOTHING_RESTS["router"], "hedge_share": 1.0, "max_attempts": 5}}


def both_speak(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(3), "w ", "x ", Pause(1), "y ")
    gateway.upstream.will_say(Pause(1), "w ", "x ", Pause(1), "y ")


def both_are_cut(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(3), "w ", CUT)
    gateway.upstream.will_say(Pause(1.5), "w ", Pause(1), CUT)


def neither_speaks(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(500), "w ")
    gateway.upstream.will_say(Pause(500), "w ")


@pytest.mark.parametrize("budgets", [{}, {"one": BudgetConfig("global", "1 concurrent", action="throttle")}], ids=["free", "one"])
@pytest.mark.parametrize("scenario", [both_speak, both_are_cut, neither_speaks], ids=lambda scenario: scenario.__name__)
async def test_more_is_said_at_every_point_of_a_race(
    scenario: Callable[[Claw], None], budgets: Mapping[str, BudgetConfig], autojump_clock: trio.testing.MockClock
) -> None:
    closings, names = Closings(), ("first", "second", "third")
    model = ModelConfig(tuple(RouteConfig(name, "m") for name in names), hedge=Hedge(Duration(1.0)), continuation=True)
    providers = {name: ProviderConfig("scripted") for name in names}
    config = Config(providers=providers, models={"test-model": model}, plugins=ROUTER, budgets=budgets)
    clients: list[Talker] = []
    accepted: list[bool] = []
    seen: set[bool] = set()

    async def run(scope: trio.CancelScope) -> None:
        gateway.upstream._scripts.clear()
        gateway.upstream.requests.clear()
        gateway.store = gateway.gateway.app.store = MemoryStore()
        closings.outcomes.clear()
        accepted.clear()
        scenario(gateway)
        for _ in range(4):
            gateway.upstream.will_say("and more")
        clients.append(Talker())
        await clients[-1].ask(gateway, "0")

    def say_more(_: trio.CancelScope) -> None:
        if clients:
            try:
                clients[-1].append("go on")
                accepted.append(True)
            except ClawError:
                accepted.append(False)

    async def check(point: int) -> None:
        answer = clients[-1].answer
        assert answer.outcome is not None
        assert answer.outcome.label == "complete", point
        assert closings.outcomes == ["complete"], point
        assert gateway.at_rest(), point
        assert await gateway.store.holding() == 0, point
        assert answer.exchange is not None
        ids = [attempt.id for attempt in answer.exchange.attempts]
        assert len(set(ids)) == len(ids), point
        closed = {row.opened.id: row.closed for row in await gateway.store.rows()}
        assert all(closed.values()), point
        for attempt in answer.exchange.attempts:
            row = closed.get(attempt.id)
            assert row.outcome == attempt.outcome if row is not None else not attempt.sent, point
        said = [text for request in gateway.upstream.requests for _, text in turns(request)]
        assert ("go on" in said) == (accepted == [True]), point
        seen.update(accepted)

    async with claw({"closings": closings}, config=config) as gateway:
        assert await sweep(run, check, act=say_more, all_tasks=True) > 20
    assert seen == {True, False}
