"""The narrow cases of an exchange's end: whose clock it was, whose fault, what was delivered, and books closed all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trio
import trio.testing

from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.config.schema import Duration
from clawproxy.context import new_id
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Event, KeepAlive, Outcome, Text
from clawproxy.hookspecs import Observe, Transform, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import Usage
from clawproxy.service import Call
from clawproxy.testing import Answer, Claw, Pause, claw
from clawproxy.testing.factories import make_principal, make_request
from clawproxy.testing.harness import RecordingClient
from tests.exchange.test_outcomes import Closings, ledger

Clock = trio.testing.MockClock


async def handle(gateway: Claw, client: RecordingClient, *, lifetime: Lifetime | None = None, **changes: object) -> Answer:
    request = make_request("Hi", **{"stream": True, **changes})
    call = Call(
        request_id=new_id(),
        surface=request.dialect,
        principal=make_principal(),
        decode=lambda: request,
        lifetime=lifetime or Lifetime(),
    )
    client.answer.outcome = await gateway.gateway.handle(call, client)
    return client.answer


# --- clocks --------------------------------------------------------------------------------------------------------------


def model_with(**deadlines: float) -> Config:
    own = {name: Duration(value) for name, value in deadlines.items()}
    return Config(
        providers={"scripted": ProviderConfig(dialect="scripted")},
        models={"test-model": ModelConfig((RouteConfig("scripted", "test-model"),), deadlines=own)},
    )


async def test_a_models_own_total_is_the_clock_that_runs(autojump_clock: Clock) -> None:
    async with claw(config=model_with(total=5)) as gateway:
        gateway.upstream.will_say("a", Pause(30), "b")
        began = trio.current_time()
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert (answer.error.slug, answer.error.details.limit_ms) == ("timeout.total", 5000)
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)


async def test_a_models_own_total_may_be_longer_too(autojump_clock: Clock) -> None:
    async with claw(config=model_with(total=1200)) as gateway:
        gateway.upstream.will_say(*[step for _ in range(25) for step in ("a", Pause(30))])
        answer = await gateway.ask("Hi")
        assert answer.outcome is not None
        assert answer.outcome.label == "complete", "750 s: more than the general total, less than the model's"


async def test_keep_alives_do_not_hide_a_stall(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", *[step for _ in range(15) for step in (Pause(10), KeepAlive())])
        began = trio.current_time()
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "timeout.stall"
        assert trio.current_time() - began == pytest.approx(60, abs=1)


async def test_a_client_slow_to_take_a_keep_alive_is_not_the_providers_stall(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", KeepAlive(), Pause(40), "b")
        answer = await gateway.ask("Hi", reads_for=30)
        assert answer.outcome is not None
        assert answer.outcome.label == "complete", "40 s of the provider's silence, 30 s of the client's own"


# --- the last words --------------------------------------------------------------------------------------------------------


class SlowToFinish(RecordingClient):
    """As a large answer without `stream` on a slow line: all of it is written at the end."""

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        await trio.sleep(20)
        await super().finish(outcome, usage)


async def test_the_last_write_has_the_exchanges_clocks_not_a_few_seconds(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        answer = await handle(gateway, SlowToFinish(), stream=False)
        assert answer.usage is not None, "it was cut off in the middle of its own answer"


async def test_a_client_that_leaves_during_the_last_write_is_let_go_at_once(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway, trio.open_nursery() as nursery:
        lifetime = Lifetime()
        client = SlowToFinish()
        nursery.start_soon(lambda: handle(gateway, client, lifetime=lifetime))
        await trio.sleep(2)
        began = trio.current_time()
        lifetime.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert trio.current_time() - began < 1
        assert closings.outcomes == ["complete"], "the provider's last word was heard"
        assert gateway.at_rest()


class Raises(RecordingClient):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.raises = error

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        await trio.lowlevel.checkpoint()
        raise self.raises


async def test_an_answer_that_can_not_be_put_into_the_clients_format_is_its_error(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        answer = await handle(gateway, Raises(ClawError("unsupported_parameter", param="n")))
        assert answer.error is not None
        assert answer.error.slug == "unsupported_parameter"
        assert closings.outcomes == ["refused.request"]


async def test_a_defect_in_the_last_words_leaves_no_book_open(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        answer = await handle(gateway, Raises(RuntimeError("a defect of an encoder")))
        assert answer.error is not None
        assert answer.error.slug == "internal"
        assert closings.outcomes == ["internal"]
        assert gateway.at_rest()


class LeavesAtTheEnd(RecordingClient):
    async def send(self, batch: Batch) -> None:
        await super().send(batch)
        if any(isinstance(event, End) for event in batch.events):
            raise ClawError("client_gone")


async def test_complete_once_the_terminal_marker_was_seen_though_the_write_of_it_failed(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        await handle(gateway, LeavesAtTheEnd())
        assert closings.outcomes == ["complete"]
        assert await ledger(gateway) == [("scripted", "complete")]
        [row] = await gateway.store.rows()
        assert row.closed is not None
        assert row.closed.source == "measured"


async def test_an_answer_still_held_when_its_request_is_cancelled_is_not_complete(autojump_clock: Clock) -> None:
    """The terminal marker came, but a window's last words never reached the client."""

    class Window:
        @hookimpl
        def tap_response(self) -> Transform:
            kept: list[Event] = []

            def change(events: Sequence[Event]) -> Sequence[Event]:
                kept.extend(event for event in events if isinstance(event, Text))
                return [event for event in events if not isinstance(event, Text)] + kept[:-1][-1:]

            return Transform(change, lambda: kept[-1:], streams="window")

    closings = Closings()
    async with claw({"closings": closings, "window": Window()}) as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say("a", "b", "c")
        lifetime = Lifetime()
        client = RecordingClient()

        async def slow(batch: Batch) -> None:
            client.answer.events += batch.events
            if any(isinstance(event, End) for event in batch.events):
                lifetime.cancel(ClawError("shutting_down"))
            await trio.lowlevel.checkpoint()

        client.send = slow  # type: ignore[method-assign]
        nursery.start_soon(lambda: handle(gateway, client, lifetime=lifetime))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client.answer.error is not None, "half an answer must not end as a whole one"
        assert closings.outcomes == ["shutting_down"]


# --- plugins ---------------------------------------------------------------------------------------------------------------


def leaves(error: BaseException) -> Callable[[], NoReturn]:
    def leave() -> NoReturn:
        raise error

    return leave


async def in_a_nursery(error: BaseException) -> None:
    async def child() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.sleep_forever()


class NurseryInPrepare:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    async def prepare_request(self) -> None:
        await in_a_nursery(self.error)


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (ClawError("refused.plugin", policy="p"), "refused.plugin"),
        (ValueError("x"), "internal"),
        (SystemExit(3), "internal"),
    ],
    ids=["refusal", "defect", "exit"],
)
async def test_what_a_plugins_nursery_raises_is_what_the_plugin_raised(
    autojump_clock: Clock, error: BaseException, slug: str
) -> None:
    closings = Closings()
    async with claw({"closings": closings, "plugin": NurseryInPrepare(error)}) as gateway:
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == slug
        assert answer.error.details.policy in ("p", "plugin")
        assert len(closings.outcomes) == 1
        assert gateway.at_rest()


class NurseryInAttempt:
    """Its context waits inside a nursery, and raises when it is cancelled there."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    @hookimpl
    def open_attempt(self) -> object:
        return self._context()

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[None]:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if self.error is not None:
                    raise self.error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.Event().wait()
        yield


@pytest.mark.parametrize("error", [None, ValueError("while cleaning up"), SystemExit(3)], ids=["clean", "defect", "exit"])
async def test_a_group_of_cancellations_is_a_cancellation(autojump_clock: Clock, error: BaseException | None) -> None:
    closings = Closings()
    async with claw({"closings": closings, "plugin": NurseryInAttempt(error)}) as gateway, trio.open_nursery() as nursery:
        lifetime = Lifetime()
        nursery.start_soon(lambda: gateway.ask("Hi", lifetime=lifetime))
        await trio.sleep(0.5)
        lifetime.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert closings.outcomes == closings.attempts == ["client_gone"]
        assert gateway.at_rest()


class ClosesBadly:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    async def exchange_closed(self) -> None:
        await in_a_nursery(self.error)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
async def test_a_closing_hooks_nursery_does_not_stop_the_other_closings(autojump_clock: Clock, error: BaseException) -> None:
    closings = Closings()
    async with claw({"bad": ClosesBadly(error), "closings": closings}) as gateway:
        answer = await gateway.ask("Hi")
        assert answer.text == "ok"
        assert closings.outcomes == ["complete"]


async def test_each_closing_hook_has_its_own_five_seconds(autojump_clock: Clock) -> None:
    done: list[str] = []

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        async def exchange_closed(self) -> None:
            await trio.sleep(4)
            done.append(self.name)

    async with claw({"one": Slow("one"), "two": Slow("two")}) as gateway:
        await gateway.ask("Hi")
    assert done == ["one", "two"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
@pytest.mark.parametrize("kind", ["observe", "transform", "end"])
async def test_a_tap_that_exits_does_not_end_the_gateway(autojump_clock: Clock, kind: str, error: BaseException) -> None:
    fail = leaves(error)

    class Taps:
        @hookimpl
        def tap_response(self) -> Observe | Transform:
            if kind == "observe":
                return Observe(lambda _: fail())
            if kind == "end":
                return Transform(lambda events: events, fail, streams="per_batch")
            return Transform(lambda _: fail(), streams="per_batch")

    closings = Closings()
    async with claw({"closings": closings, "taps": Taps()}) as gateway:
        answer = await gateway.ask("Hi")
        assert closings.outcomes == ["complete" if kind == "observe" else "internal"]
        assert (answer.text == "ok") is (kind != "transform")
        assert gateway.at_rest()


async def test_every_observer_hears_the_end_once_though_a_transform_fails_there(autojump_clock: Clock) -> None:
    ended: list[str] = []

    class Observes:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        def tap_response(self) -> Observe:
            return Observe(lambda _: None, lambda: ended.append(self.name))

    class Fails:
        @hookimpl
        def tap_response(self) -> Transform:
            return Transform(leaves(RuntimeError()))  # type: ignore[arg-type]

    async with claw({"above": Observes("above"), "fails": Fails(), "below": Observes("below")}) as gateway:
        answer = await gateway.ask("Hi")
        assert answer.error is not None
    assert sorted(ended) == ["above", "below"]


# --- the end of the service --------------------------------------------------------------------------------------------------


class _Unsaid:
    """A provider's format that has no words for a request."""

    name = "scripted"

    def encode_request(self, request: object, route: object) -> NoReturn:
        raise ClawError("unsupported_parameter", param="n")


@pytest.mark.parametrize("who", ["the next plugin", "the provider's format"])
async def test_an_observer_hears_the_end_of_an_attempt_that_is_refused_before_it_is_made(
    who: str, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps: list[str] = []

    class Observes:
        @hookimpl
        def tap_response(self) -> Observe:
            taps.append("begun")
            return Observe(lambda _: None, lambda: taps.append("ended"))

    class Refuses:
        @hookimpl
        def tap_response(self) -> Transform:
            if who == "the next plugin":
                raise ClawError("unsupported_parameter", param="n")
            return Transform(lambda events: events, None, "per_batch")

    async with claw({"observes": Observes(), "refuses": Refuses()}) as gateway:
        if who == "the provider's format":
            monkeypatch.setattr(gateway.upstream, "dialect", lambda _: _Unsaid())
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "unsupported_parameter"
        assert gateway.at_rest()
    assert taps.count("begun") == taps.count("ended")


async def test_a_request_that_gets_in_after_the_drain_is_told_so(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        gateway.upstream.will_say(Pause(100), "late")
        gateway.gateway.cut_off(ClawError("shutting_down"))
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "shutting_down"
        assert closings.outcomes == ["shutting_down"]
