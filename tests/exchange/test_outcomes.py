"""Every way an exchange can end, through the real pipeline: the outcome, what the client got, and books closed exactly once."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from clawproxy.config import Config, ModelConfig, PipelineConfig, ProviderConfig, RouteConfig
from clawproxy.context import Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Finish, Outcome, Text
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest
from clawproxy.testing import Answer, Claw, Fail, Pause, claw
from clawproxy.testing.upstream import Step


class Closings:
    """Counts what must happen exactly once."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.attempts: list[str | None] = []

    @hookimpl
    async def exchange_closed(self, exchange: Exchange, outcome: Outcome) -> None:
        await trio.lowlevel.checkpoint()
        self.outcomes.append(outcome.label)
        self.attempts += [attempt.outcome for attempt in exchange.attempts]


async def ledger(gateway: Claw) -> list[tuple[str, str | None]]:
    return [(row.opened.provider, row.closed.outcome if row.closed else None) for row in await gateway.store.rows()]


async def test_complete(autojump_clock: trio.testing.MockClock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        gateway.upstream.will_say("Hello", Pause(30), " world")
        answer = await gateway.ask("Hi")
        assert answer.text == "Hello world"
        assert answer.outcome == Outcome("complete", None, "stop")
        assert answer.usage is not None
        assert answer.usage.source == "measured"
        assert closings.outcomes == ["complete"]
        assert await ledger(gateway) == [("scripted", "complete")]
        assert gateway.at_rest()


async def test_truncated(autojump_clock: trio.testing.MockClock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("Hel", Finish("length", "length"))
        answer = await gateway.ask("Hi", max_tokens=1)
        assert answer.outcome is not None
        assert answer.outcome.label == "truncated"
        assert await ledger(gateway) == [("scripted", "truncated")]


@pytest.mark.parametrize(
    ("pause_first", "clock", "at_fault", "setting"),
    [(True, "first_token", "provider", "deadlines.first_token"), (False, "stall", "provider", "deadlines.stall")],
)
async def test_a_provider_that_goes_silent(
    autojump_clock: trio.testing.MockClock, pause_first: bool, clock: str, at_fault: str, setting: str
) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        steps: list[Step] = [Pause(10_000), "late"] if pause_first else ["early", Pause(10_000)]
        gateway.upstream.will_say(*steps)
        began = trio.current_time()
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == f"timeout.{clock}"
        assert (answer.error.details.clock, answer.error.details.setting) == (clock, setting)
        assert answer.error.kind.fault == at_fault
        assert trio.current_time() - began == pytest.approx({"first_token": 120, "stall": 60}[clock], abs=1)
        assert closings.outcomes == [f"timeout.{clock}"]
        [row] = await gateway.store.rows()
        assert row.closed is not None
        assert row.closed.source == "estimated", "it was sent, so it is never free"
        assert gateway.at_rest()


async def test_total_spans_everything(autojump_clock: trio.testing.MockClock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say(*[step for _ in range(100) for step in ("tok", Pause(29))])
        began = trio.current_time()
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "timeout.total"
        assert answer.error.message.endswith("Last held by provider `scripted`.")
        assert trio.current_time() - began == pytest.approx(600, abs=1)


async def test_total_names_a_client_that_held_it(autojump_clock: trio.testing.MockClock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", "b", "c")
        answer = await gateway.ask("Hi", reads_for=350)
        assert answer.error is not None
        assert answer.error.slug == "timeout.total"
        assert answer.error.message.endswith("Last held by the client, which was slow to read.")


async def test_a_slow_client_is_not_the_providers_stall(autojump_clock: trio.testing.MockClock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", "b", "c")
        answer = await gateway.ask("Hi", reads_for=90)
        assert answer.text == "abc"
        assert answer.outcome is not None
        assert answer.outcome.label == "complete"


async def test_the_client_leaves(autojump_clock: trio.testing.MockClock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say("a", Pause(50), "b")
        lifetime = Lifetime()
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await gateway.ask("Hi", lifetime=lifetime))

        nursery.start_soon(ask)
        await trio.sleep(1)
        assert gateway.upstream.open_streams == 1
        lifetime.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert answers[0].outcome is not None
        assert answers[0].outcome.label == "client_gone"
        assert answers[0].error is None, "nobody is there to be told"
        assert closings.outcomes == closings.attempts == ["client_gone"]
        [row] = await gateway.store.rows()
        assert row.closed is not None
        assert row.closed.outcome == "client_gone"
        assert row.closed.output_tokens, "a cut stream is never free"
        assert gateway.at_rest()


async def test_failover_before_content_and_never_after(autojump_clock: trio.testing.MockClock) -> None:
    closings = Closings()
    async with claw({"closings": closings}, routes=("first", "second")) as gateway:
        gateway.upstream.will_fail("provider_error.overloaded")
        gateway.upstream.will_say("from the second")
        answer = await gateway.ask("Hi")
        assert answer.text == "from the second"
        assert [notice.code for notice in answer.notices] == ["fallback"]
        assert await ledger(gateway) == [("first", "provider_error.overloaded"), ("second", "complete")]
        assert closings.outcomes == ["complete"]

        gateway.upstream.will_say("half an ", Fail("provider_error.cut"))
        gateway.upstream.will_say("must not be asked")
        answer = await gateway.ask("Hi")
        assert answer.text == "half an "
        assert answer.error is not None
        assert answer.error.slug == "provider_error.cut"
        assert gateway.at_rest()


async def test_a_silent_first_route_leaves_time_for_the_second(autojump_clock: trio.testing.MockClock) -> None:
    async with claw(routes=("first", "second")) as gateway:
        config = attrs.evolve(gateway.gateway.config.deadlines, total=10.0)
        generation = gateway.gateway.current
        generation.config = attrs.evolve(generation.config, deadlines=config)
        gateway.upstream.will_say(Pause(1000), "never")
        gateway.upstream.will_say("in time")
        answer = await gateway.ask("Hi")
        assert answer.text == "in time"
        assert gateway.upstream.routes[1].provider == "second"
        assert answer.exchange is not None
        error = answer.exchange.attempts[0].error
        assert error is not None
        assert error.details.setting == "deadlines.total"
        assert "setting deadlines.total, of which" in error.message


async def test_every_route_fails(autojump_clock: trio.testing.MockClock) -> None:
    async with claw(routes=("first", "second")) as gateway:
        gateway.upstream.will_fail("provider_error.unreachable")
        gateway.upstream.will_fail("provider_error.server")
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "provider_error.server"
        assert len(await ledger(gateway)) == 2


class Shouts:
    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])


async def test_a_silent_transform_holds_the_whole_answer_back(autojump_clock: trio.testing.MockClock) -> None:
    async with claw({"shouts": Shouts()}, routes=("first", "second")) as gateway:
        gateway.upstream.will_say("half", Fail("provider_error.cut"))
        gateway.upstream.will_say("all", " of it")
        answer = await gateway.ask("Hi")
        assert answer.text == "ALL OF IT", "nothing had been released, so another route could take over"


class Refuses:
    @hookimpl
    async def prepare_request(self) -> None:
        raise ClawError("refused.plugin", "Not on Sundays.", policy="refuses")


class Breaks:
    @hookimpl
    async def prepare_request(self) -> None:
        raise RuntimeError("internals")


class Hangs:
    @hookimpl
    async def prepare_request(self) -> None:
        await trio.sleep_forever()


class OpensNever:
    """Its open_attempt never comes to an end."""

    async def __aenter__(self) -> None:
        await trio.sleep_forever()

    async def __aexit__(self, *_: object) -> None: ...

    @hookimpl
    def open_attempt(self) -> OpensNever:
        return self


@pytest.mark.parametrize(
    ("plugin", "slug"),
    [(Refuses(), "refused.plugin"), (Breaks(), "internal"), (Hangs(), "internal"), (OpensNever(), "internal")],
    ids=["refuses", "breaks", "hangs", "opens-never"],
)
async def test_plugins_that_say_no_break_or_hang(autojump_clock: trio.testing.MockClock, plugin: object, slug: str) -> None:
    closings = Closings()
    async with claw({"closings": closings, "plugin": plugin}) as gateway:
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == slug
        assert "internals" not in answer.error.message
        assert not gateway.upstream.requests
        assert len(closings.outcomes) == 1
        assert await ledger(gateway) == []
        assert gateway.at_rest()


async def test_a_full_house_queues_fairly_and_the_queue_has_a_clock(autojump_clock: trio.testing.MockClock) -> None:
    config = Config(
        providers={"scripted": ProviderConfig(dialect="scripted")},
        models={"test-model": ModelConfig((RouteConfig("scripted", "test-model"),))},
        limits=attrs.evolve(Config().limits, in_flight=1),
        pipeline=PipelineConfig(),
    )
    async with claw(config=config) as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say(Pause(30), "slow")
        nursery.start_soon(gateway.ask, "first")
        await trio.sleep(1)
        answer = await gateway.ask("second")
        assert answer.error is not None
        assert answer.error.slug == "timeout.queue"
        assert answer.error.details.retry_after_ms
        assert len(gateway.upstream.requests) == 1


async def test_a_hook_sees_what_the_one_before_it_made(autojump_clock: trio.testing.MockClock) -> None:
    class Renames:
        @hookimpl
        async def prepare_request(self, request: ChatRequest) -> ChatRequest:
            return attrs.evolve(request, temperature=0.5)

    async with claw({"renames": Renames()}) as gateway:
        await gateway.ask("Hi")
        assert gateway.upstream.requests[0].temperature == 0.5
