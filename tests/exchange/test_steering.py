"""A client that says more while it is answered: the provider is let go, and another attempt goes on from what was heard."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.context import Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Event, Outcome, Text, ToolCallDelta
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.messages import ChatRequest, Message
from clawproxy.steering import MOST
from clawproxy.testing import Fail, Pause, claw
from tests.exchange.talker import Talker, turns, wait_for
from tests.exchange.test_outcomes import Closings

Clock = trio.testing.MockClock


async def test_in_the_middle_of_an_answer(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}) as gateway:
        gateway.upstream.will_say("Once ", "upon ", Pause(50), "never said")
        gateway.upstream.will_say("a ", "frog.")
        client = Talker({"upon ": "about frogs"})
        answer = await client.ask(gateway, "A story")
        assert answer.text == "Once upon a frog."
        assert answer.outcome == Outcome("complete", None, "stop")
        assert [turns(request) for request in gateway.upstream.requests] == [
            [("user", "A story")],
            [("user", "A story"), ("assistant", "Once upon "), ("user", "about frogs")],
        ]
        assert trio.current_time() < 5, "the first attempt was not waited for"
        assert [(n.code, dict(n.details)) for n in answer.notices] == [("steered", {"attempt": 2})]
        exchange = answer.exchange
        assert exchange is not None
        assert [(a.number, a.reason, a.outcome) for a in exchange.attempts] == [
            (1, "first", "cancelled"),
            (2, "steer", "complete"),
        ]
        assert closings.outcomes == ["complete"]
        rows = sorted(await gateway.store.rows(), key=lambda row: row.opened.number)
        assert [(row.opened.reason, row.closed.outcome, row.closed.sent) for row in rows if row.closed] == [
            ("first", "cancelled", True),
            ("steer", "complete", True),
        ]
        billed = [(row.closed.input_tokens or 0) if row.closed is not None else 0 for row in rows]
        assert all(billed), "an attempt that was steered is not free"
        assert answer.usage is not None
        assert answer.usage.input_tokens == sum(billed)
        assert gateway.at_rest()


async def test_before_the_first_token(autojump_clock: Clock) -> None:
    async with claw() as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say(Pause(50), "never said")
        gateway.upstream.will_say("both")
        client = Talker()
        nursery.start_soon(client.ask, gateway, "one")
        await wait_for(lambda: gateway.upstream.open_streams)
        await trio.testing.wait_all_tasks_blocked()
        client.append("two")
        await wait_for(lambda: client.answer.outcome)
        assert client.answer.text == "both"
        assert turns(gateway.upstream.requests[1]) == [("user", "one"), ("user", "two")], "nothing was said yet"


async def test_before_anything_was_sent(autojump_clock: Clock) -> None:
    """An append right behind its request costs no attempt."""
    async with claw() as gateway:
        client = Talker({"": "two"})
        answer = await client.ask(gateway, "one")
        [request] = gateway.upstream.requests
        assert turns(request) == [("user", "one"), ("user", "two")]
        assert answer.exchange is not None
        assert [attempt.reason for attempt in answer.exchange.attempts] == ["first"]
        assert [notice.code for notice in answer.notices] == ["steered"]


async def test_again_and_again(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        for word in ("w ", "x ", "y "):
            gateway.upstream.will_say(word, Pause(50), "no")
        gateway.upstream.will_say("z")
        answer = await Talker({"w ": "1", "x ": "2", "y ": "3"}).ask(gateway, "0")
        assert answer.text == "w x y z"
        assert turns(gateway.upstream.requests[-1]) == [
            ("user", "0"), ("assistant", "w "), ("user", "1"), ("assistant", "x "), ("user", "2"), ("assistant", "y "),
            ("user", "3"),
        ]  # fmt: skip


async def test_two_at_once_are_one_attempt(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("é", Pause(50), "no")
        client = Talker({"é": "1"})
        client.on_append = lambda: client.append("2")
        answer = await client.ask(gateway, "0")
        assert turns(gateway.upstream.requests[1]) == [("user", "0"), ("assistant", "é"), ("user", "1"), ("user", "2")]
        assert answer.text == "éok"
        assert len(gateway.upstream.requests) == 2


async def test_space_alone_is_not_repeated_to_the_provider(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("\n ", Pause(50))
        answer = await Talker({"\n ": "more"}).ask(gateway, "0")
        assert turns(gateway.upstream.requests[1]) == [("user", "0"), ("user", "more")]
        assert answer.text == "\n ok"


# --- the end -------------------------------------------------------------------------------------------------------------


async def test_after_the_end_there_is_nothing_to_steer(autojump_clock: Clock) -> None:
    class Late(Talker):
        refused: ClawError | None = None

        async def finish(self, outcome: Outcome, usage: Any) -> None:
            try:
                self.append("too late")
            except ClawError as error:
                self.refused = error
            await super().finish(outcome, usage)

    async with claw() as gateway:
        client = Late()
        answer = await client.ask(gateway)
        assert client.refused is not None
        assert client.refused.slug == "unknown_id"
        assert answer.text == "ok"
        with pytest.raises(ClawError):
            client.append("much too late")
        assert len(gateway.upstream.requests) == 1


async def test_the_providers_last_word_ends_it_even_while_the_client_reads_slowly(autojump_clock: Clock) -> None:
    class Slow(Talker):
        refused = False

        async def send(self, batch: Batch) -> None:
            if any(type(event).__name__ == "End" for event in batch.events):
                try:
                    self.append("the provider has ended")
                except ClawError:
                    self.refused = True
            await super().send(batch)

    async with claw() as gateway:
        client = Slow()
        answer = await client.ask(gateway)
        assert client.refused
        assert answer.outcome is not None
        assert answer.outcome.label == "complete"


async def test_an_append_in_the_very_moment_of_the_last_word_is_answered(autojump_clock: Clock) -> None:
    """Accepted before the end was seen, and nothing was left to interrupt."""

    class Hurried(Talker):
        async def send(self, batch: Batch) -> None:
            self.answer.events += batch.events  # no checkpoint: the interruption finds nothing to end
            if self.answer.text == "all" and self.says:
                self._say("all")

    async with claw() as gateway:
        gateway.upstream.will_say("all")
        gateway.upstream.will_say(" and more")
        client = Hurried({"all": "go on"})
        answer = await client.ask(gateway, "0")
        assert answer.text == "all and more"
        assert turns(gateway.upstream.requests[1]) == [("user", "0"), ("assistant", "all"), ("user", "go on")]
        assert answer.exchange is not None
        assert answer.exchange.attempts[-1].reason == "steer"


# --- hooks ---------------------------------------------------------------------------------------------------------------

SECRET = "sk-ant-api03-" + "A" * 93 + "AA"


async def test_what_is_added_goes_through_the_same_hooks(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", Pause(50))
        answer = await Talker({"a": f"my key is {SECRET}"}).ask(gateway, f"key {SECRET}")
        sent = turns(gateway.upstream.requests[1])
        assert all(SECRET not in text for _, text in sent), sent
        assert [notice.code for notice in answer.notices] == ["redacted", "redacted", "steered"], "the first one is not repeated"
        assert answer.notices[0] != answer.notices[1]


async def test_what_is_refused_ends_the_answer_with_that_error(autojump_clock: Clock) -> None:
    class NoFrogs:
        @hookimpl
        async def prepare_request(self, exchange: Exchange, request: ChatRequest) -> None:
            await trio.lowlevel.checkpoint()
            if any("frog" in text for text in request.texts()):
                raise ClawError("refused.plugin", "No frogs.", policy="no-frogs")

    closings = Closings()
    async with claw({"closings": closings, "no_frogs": NoFrogs()}) as gateway:
        gateway.upstream.will_say("a", Pause(50))
        answer = await Talker({"a": "about frogs"}).ask(gateway, "a story")
        assert answer.error is not None
        assert answer.error.slug == "refused.plugin"
        assert answer.text == "a"
        assert closings.outcomes == ["refused.plugin"]
        assert len(gateway.upstream.requests) == 1
        assert gateway.at_rest()


async def test_an_unchanged_notice_is_not_told_twice(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", Pause(50))
        answer = await Talker({"a": "more"}).ask(gateway, f"key {SECRET}")
        assert [notice.code for notice in answer.notices] == ["redacted", "steered"]


async def test_text_that_a_policy_holds_was_not_said(autojump_clock: Clock) -> None:
    class HoldsBack:
        @hookimpl
        def tap_response(self) -> Transform:
            return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])

    async with claw({"holds": HoldsBack()}) as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say("secret ", Pause(50))
        gateway.upstream.will_say("well")
        client = Talker()
        nursery.start_soon(client.ask, gateway, "0")
        await trio.sleep(1)
        client.append("more")
        await wait_for(lambda: client.answer.outcome)
        assert turns(gateway.upstream.requests[1]) == [("user", "0"), ("user", "more")]
        assert client.answer.text == "WELL"


async def test_a_call_of_a_tool_that_was_begun_is_void(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        call: Event = ToolCallDelta(0, "c", "f", '{"a')
        gateway.upstream.will_say("Let me see", call, Pause(50))
        client = Talker({"see": "no tools"}, after=ToolCallDelta)
        answer = await client.ask(gateway, "0")
        assert gateway.upstream.requests[1].messages[1] == Message("assistant", "Let me see")
        assert answer.notices[-1].details["void_tool_calls"] == [0]


async def test_a_revoked_credential_may_not_append(autojump_clock: Clock) -> None:
    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        raise ClawError("auth.expired")

    async with claw() as gateway:
        gateway.upstream.will_say("a", Pause(50))
        client = Talker({"a": "more"})
        client.steering.authenticate = refuse
        answer = await client.ask(gateway)
        assert answer.outcome is not None
        assert answer.outcome.label == "refused.auth"
        assert len(gateway.upstream.requests) == 1


# --- routes and clocks -----------------------------------------------------------------------------------------------------


async def test_it_stays_with_the_route_that_was_answering(autojump_clock: Clock) -> None:
    async with claw(routes=("first", "second")) as gateway:
        gateway.upstream.will_fail("provider_error.overloaded")
        gateway.upstream.will_say("a", Pause(50))
        gateway.upstream.will_fail("provider_error.overloaded")
        gateway.upstream.will_say("b")
        answer = await Talker({"a": "more"}).ask(gateway)
        assert [route.provider for route in gateway.upstream.routes] == ["first", "second", "second", "first"]
        assert answer.exchange is not None
        assert [attempt.reason for attempt in answer.exchange.attempts] == ["first", "failover", "steer", "failover"]
        assert answer.text == "ab"


async def test_a_failing_provider_ends_it_after_content_however_much_was_said(autojump_clock: Clock) -> None:
    async with claw(routes=("first", "second")) as gateway:
        gateway.upstream.will_say("é", Pause(50))
        gateway.upstream.will_say("b", Fail("provider_error.cut"))
        answer = await Talker({"é": "more"}).ask(gateway)
        assert answer.error is not None
        assert answer.error.slug == "provider_error.cut"
        assert answer.text == "éb"
        assert gateway.at_rest()


async def test_the_whole_request_has_one_deadline(autojump_clock: Clock) -> None:
    from clawproxy.config.schema import Duration

    own = {"total": Duration(10.0)}
    config = Config(
        providers={"scripted": ProviderConfig(dialect="scripted")},
        models={"test-model": ModelConfig((RouteConfig("scripted", "test-model"),), deadlines=own)},
    )
    async with claw(config=config) as gateway:
        gateway.upstream.will_say(Pause(6), "a", Pause(50))
        gateway.upstream.will_say(Pause(6), "b")
        began = trio.current_time()
        answer = await Talker({"a": "more"}).ask(gateway)
        assert answer.error is not None
        assert answer.error.slug == "timeout.total"
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_a_stall_and_an_append_at_once(autojump_clock: Clock) -> None:
    """Whichever comes first, what was accepted is answered."""
    async with claw() as gateway, trio.open_nursery() as nursery:
        gateway.upstream.will_say("é", Pause(10_000))
        client = Talker()
        nursery.start_soon(client.ask, gateway)
        await trio.lowlevel.checkpoint()
        await wait_for(lambda: client.answer.text)
        await trio.testing.wait_all_tasks_blocked()
        client.lifetime.interrupt()
        client.append("more")
        await wait_for(lambda: client.answer.outcome)
        assert client.answer.text == "éok"


async def test_a_cancel_beats_an_append(autojump_clock: Clock) -> None:
    async with claw() as gateway:
        gateway.upstream.will_say("a", Pause(50))
        client = Talker({"a": "more"})
        client.on_append = lambda: client.lifetime.cancel(ClawError("cancelled"))
        answer = await client.ask(gateway)
        assert answer.outcome is not None
        assert answer.outcome.label == "cancelled"
        assert len(gateway.upstream.requests) == 1


# --- bounds --------------------------------------------------------------------------------------------------------------


async def test_what_is_added_is_bounded(autojump_clock: Clock) -> None:
    client = Talker(limit=100)
    client.append("x", 60)
    with pytest.raises(ClawError) as caught:
        client.append("x", 41)
    assert (caught.value.slug, caught.value.details.setting) == ("frame_too_large", "limits.frame")
    client.append("x", 40)
    many = Talker()
    for _ in range(MOST):
        many.append("x")
    with pytest.raises(ClawError) as caught:
        many.append("x")
    assert caught.value.slug == "limit.in_flight"
