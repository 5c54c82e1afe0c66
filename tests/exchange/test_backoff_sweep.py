"""The wait before a retry: cancelled at every schedule point, bounded by what is left, ended by a client's word."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.lifetime import Lifetime
from clawproxy.testing import Answer, Claw, claw, sweep
from tests.exchange.talker import NOTHING_RESTS, Talker, turns, wait_for
from tests.exchange.test_outcomes import Closings

WAITS = {"router": {**NOTHING_RESTS["router"], "retries": {"first": "4s", "burst": 1000}, "max_attempts": 3}}


class Refusing:
    """An upstream whose next openings are refused with a status, as one over a socket would."""

    def __init__(self, gateway: Claw) -> None:
        self.times = 0
        self.asked: list[float] = []
        self._open = gateway.upstream.open
        gateway.upstream.open = self.open  # type: ignore[method-assign, assignment]

    def open(self, *args: Any) -> Any:
        self.asked.append(trio.current_time())
        if self.times:
            self.times -= 1
            return _Refused(args[3])
        return self._open(*args)


class _Refused:
    def __init__(self, phases: Any) -> None:
        self.phases = phases

    async def __aenter__(self) -> Any:
        self.phases.enter("first_token")
        self.phases.sent = True
        await trio.lowlevel.checkpoint()
        raise ProviderFault("provider_error.server", provider="first", provider_status=500)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        raise AssertionError("it was never entered")


CAUSES: dict[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "shutting_down": lambda lifetime: lifetime.cancel(ClawError("shutting_down")),
}


@pytest.mark.parametrize("cause", CAUSES)
async def test_the_invariants_hold_wherever_a_retry_is_cancelled(cause: str, autojump_clock: trio.testing.MockClock) -> None:
    closings = Closings()
    async with claw({"closings": closings}, settings=WAITS) as gateway:
        refusing = Refusing(gateway)
        lifetimes: list[Lifetime] = []
        answers: list[Answer] = []
        labels: set[str] = set()

        async def run(_: trio.CancelScope) -> None:
            closings.outcomes.clear()
            refusing.times = 2
            lifetimes.append(Lifetime())
            gateway.upstream.will_say("after", "all")
            answers.append(await gateway.ask("Hi", lifetime=lifetimes[-1]))

        async def check(point: int) -> None:
            gateway.upstream._scripts.clear()
            outcome = answers[-1].outcome
            assert outcome is not None
            labels.add(outcome.label)
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert closings.outcomes == [outcome.label], f"point {point}"
            rows = await gateway.store.rows()
            assert all(row.closed is not None for row in rows), f"point {point}: an attempt was never closed"

        assert await sweep(run, check, act=lambda _: CAUSES[cause](lifetimes[-1]) if lifetimes else None) > 8
        assert labels == {cause, "complete"}


async def test_a_retry_waits_and_the_wait_is_no_work_of_the_gateways(autojump_clock: trio.testing.MockClock) -> None:
    async with claw(settings=WAITS) as gateway:
        gateway.gateway.app.random.seed(1)
        refusing = Refusing(gateway)
        refusing.times = 2
        answer = await gateway.ask("Hi")
        assert answer.outcome is not None
        assert answer.outcome.label == "complete"
        first, second, third = refusing.asked
        assert 0.0 < second - first <= 4.0
        assert 0.0 < third - second <= 5.0
        assert answer.exchange is not None
        assert [attempt.reason for attempt in answer.exchange.attempts] == ["first", "retry", "retry"]
        assert answer.exchange.timing.queue == pytest.approx(third - first)
        assert (answer.exchange.timing.gateway() or 0.0) < 0.1


async def test_waiting_takes_no_more_than_its_share_of_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    config = Config(
        providers={"first": ProviderConfig(dialect="scripted")},
        models={"test-model": ModelConfig((RouteConfig("first", "m"),))},
        deadlines=attrs.evolve(Deadlines(), total=1.0),
        plugins={"router": {**WAITS["router"], "retries": {"first": "10m", "longest": "10m"}}},
    )
    async with claw(config=config) as gateway:
        refusing = Refusing(gateway)
        for _ in range(20):
            refusing.times, began = 9, trio.current_time()
            answer = await gateway.ask("Hi")
            assert answer.outcome is not None
            assert answer.outcome.label == "provider_error.server"
            assert trio.current_time() - began <= 0.6 + 0.6 * 0.4 + 1e-6


async def test_a_client_that_says_more_while_a_retry_waits_is_heard(autojump_clock: trio.testing.MockClock) -> None:
    async with claw(settings=WAITS) as gateway, trio.open_nursery() as nursery:
        refusing, talker = Refusing(gateway), Talker()
        refusing.times = 1
        nursery.start_soon(talker.ask, gateway)
        await wait_for(lambda: refusing.asked)
        await trio.sleep(0.0001)
        talker.append("more")
        with trio.fail_after(60):
            while talker.answer.outcome is None:
                await trio.sleep(1.0)
        assert talker.answer.outcome.label == "complete"
        assert ("user", "more") in turns(gateway.upstream.requests[-1])
