"""An answer that is cut in the middle goes on: one text with a marked seam, both halves billed. What is not text does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.continuing import GO_ON, MOST_KEPT, Hearing, go_on, takes_a_beginning
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Finish, Opaque, Outcome, Reasoning, Refused, Text, ToolCallDelta
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ResponseFormat, Route
from clawproxy.testing import Answer, Claw, Fail, Pause, claw, sweep
from clawproxy.testing.factories import make_exchange, make_request
from clawproxy.testing.harness import RecordingClient
from clawproxy.testing.upstream import Step
from tests.exchange.talker import NOTHING_RESTS, Talker, turns
from tests.exchange.test_hedging import HoldsBack, hedged, story
from tests.exchange.test_outcomes import Closings

Clock = trio.testing.MockClock
CUT = Fail("provider_error.cut")


def continued(*names: str, **changes: Any) -> Config:
    names = names or ("first", "second")
    model = ModelConfig(tuple(RouteConfig(name, "test-model") for name in names), continuation=True)
    return Config(providers={name: ProviderConfig(dialect="scripted") for name in names}, models={"test-model": model}, **changes)


async def test_of_an_answer_that_can_not_go_on_nothing_is_kept() -> None:
    for last in (Text("x" * 1024), Finish("stop")):
        hearing = Hearing(RecordingClient(), make_exchange(), {})
        for _ in range(MOST_KEPT // 1024):
            await hearing.send(Batch([Text("y" * 1024)]))
        assert len(hearing._said) == 1024
        await hearing.send(Batch([last]))
        await hearing.send(Batch([Text("z")]))
        assert not hearing.possible
        assert not hearing._said


async def test_it_goes_on_elsewhere(autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}, config=continued()) as gateway:
        gateway.upstream.will_say("Once ", "upon ", CUT)
        gateway.upstream.will_say("a ", "time.")
        answer = await gateway.ask("A story", max_tokens=100)
        assert answer.text == "Once upon a time."
        assert answer.outcome == Outcome("complete", None, "stop")
        assert story(answer) == [("first", "first", "provider_error.cut"), ("second", "continue", "complete")]
        first, second = gateway.upstream.requests
        assert turns(second) == [("user", "A story"), ("assistant", "Once upon "), ("user", GO_ON)]
        assert (first.max_tokens, second.max_tokens) == (100, 98)
        assert [(notice.code, dict(notice.details)) for notice in answer.notices] == [
            ("continued", {"attempt": 2, "provider": "second", "at": 10})
        ]
        rows = sorted(await gateway.store.rows(), key=lambda row: row.opened.number)
        assert [(row.opened.reason, row.closed.outcome) for row in rows if row.closed] == [
            ("first", "provider_error.cut"),
            ("continue", "complete"),
        ]
        billed = [row.closed for row in rows if row.closed is not None]
        assert answer.usage is not None
        assert answer.usage.input_tokens == sum(row.input_tokens or 0 for row in billed)
        assert answer.usage.output_tokens == sum(row.output_tokens or 0 for row in billed)
        assert all(row.input_tokens and row.output_tokens for row in billed), "half an answer is not free"
        assert closings.outcomes == ["complete"]
        assert gateway.at_rest()


@pytest.mark.parametrize("slug", ["provider_error.server", "provider_error.overloaded", "provider_error.malformed"])
async def test_after_an_error_in_the_middle(slug: str, autojump_clock: Clock) -> None:
    async with claw(config=continued()) as gateway:
        gateway.upstream.will_say("half, ", Fail(slug))
        gateway.upstream.will_say("and half")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, and half"


async def test_after_a_stall(autojump_clock: Clock) -> None:
    async with claw(config=continued(deadlines=evolve(Deadlines(), stall=5.0))) as gateway:
        gateway.upstream.will_say("half, ", Pause(1000), "never")
        gateway.upstream.will_say("and half")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, and half"
        assert story(answer) == [("first", "first", "timeout.stall"), ("second", "continue", "complete")]
        assert trio.current_time() == pytest.approx(5.0, abs=0.01)


async def test_with_one_route_it_goes_on_there(autojump_clock: Clock) -> None:
    async with claw(config=continued("only")) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        gateway.upstream.will_say("and half")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, and half"
        assert story(answer) == [("only", "first", "provider_error.cut"), ("only", "continue", "complete")]


async def test_twice_at_most(autojump_clock: Clock) -> None:
    settings = {"router": {"max_attempts": 9}}
    async with claw(config=continued("a", "b", "c", "d", plugins=settings)) as gateway:
        for word in ("one ", "two ", "three ", "four "):
            gateway.upstream.will_say(word, CUT)
        answer = await gateway.ask("Hi")
        assert answer.text == "one two three "
        assert answer.error is not None
        assert answer.error.slug == "provider_error.cut"
        assert turns(gateway.upstream.requests[-1])[1] == ("assistant", "one two ")
        assert [notice.details["at"] for notice in answer.notices] == [4, 8]


async def test_where_the_rest_fails_before_it_began_another_is_asked(autojump_clock: Clock) -> None:
    async with claw(config=continued("a", "b", "c")) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        gateway.upstream.will_fail("provider_error.overloaded")
        gateway.upstream.will_say("and half")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, and half"
        assert [reason for _, reason, _ in story(answer)] == ["first", "continue", "continue"]
        assert [notice.details["attempt"] for notice in answer.notices] == [3], "one seam, and not before there is one"


async def test_the_last_error_is_told_where_nothing_goes_on(autojump_clock: Clock) -> None:
    async with claw(config=continued("a", "b")) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        gateway.upstream.will_fail("provider_error.overloaded")
        gateway.upstream.will_fail("provider_error.overloaded")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, "
        assert answer.error is not None
        assert answer.error.slug == "provider_error.overloaded"


async def test_without_the_key_it_ends(autojump_clock: Clock) -> None:
    async with claw(routes=("first", "second")) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "provider_error.cut"
        assert len(gateway.upstream.requests) == 1


NOT_TEXT: dict[str, Sequence[Step]] = {
    "tool call": [Text("I look. "), ToolCallDelta(0, "c", "look", "{")],
    "refusal": [Refused("No")],
    "opaque": [Text("x"), Opaque("image")],
    "reasoning only": [Reasoning("hm")],
    "finished": [Text("x"), Finish("stop")],
    "space": [Text("  \n")],
}


@pytest.mark.parametrize("said", NOT_TEXT.values(), ids=NOT_TEXT)
async def test_what_is_not_text_does_not_go_on(said: Sequence[Step], autojump_clock: Clock) -> None:
    async with claw(config=continued()) as gateway:
        gateway.upstream.will_say(*said, CUT)
        answer = await gateway.ask("Hi")
        assert answer.error is not None
        assert answer.error.slug == "provider_error.cut"
        assert len(gateway.upstream.requests) == 1


ASKED: dict[str, dict[str, Any]] = {
    "json": {"response_format": ResponseFormat("json_schema", {"name": "x"})},
    "json object": {"response_format": ResponseFormat("json_object")},
    "several": {"extra": {"n": 2}},
    "candidates": {"extra": {"generationConfig.candidateCount": 2}},
    "logprobs": {"extra": {"logprobs": True}},
    "no room": {"max_tokens": 1},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_what_was_asked_may_forbid_it(asked: dict[str, Any], autojump_clock: Clock) -> None:
    async with claw(config=continued()) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        answer = await gateway.ask("Hi", **asked)
        assert answer.error is not None
        assert len(gateway.upstream.requests) == 1


async def test_reasoning_behind_the_seam_stays_out(autojump_clock: Clock) -> None:
    async with claw(config=continued()) as gateway:
        gateway.upstream.will_say(Reasoning("first I think"), "half, ", CUT)
        gateway.upstream.will_say(Reasoning("again"), "and half")
        answer = await gateway.ask("Hi")
        assert (answer.reasoning, answer.text) == ("first I think", "half, and half")


async def test_held_back_text_is_nothing_that_was_heard(autojump_clock: Clock) -> None:
    async with claw({"holds": HoldsBack()}, config=continued()) as gateway:
        gateway.upstream.will_say("half, ", CUT)
        gateway.upstream.will_say("whole")
        answer = await gateway.ask("Hi")
        assert answer.text == "WHOLE"
        assert [reason for _, reason, _ in story(answer)] == ["first", "failover"]


async def test_a_client_that_says_more_begins_anew(autojump_clock: Clock) -> None:
    async with claw(config=continued()) as gateway:
        gateway.upstream.will_say("Once ", Pause(50), "never")
        gateway.upstream.will_say("a frog ", CUT)
        gateway.upstream.will_say("lived.")
        client = Talker({"Once ": "about frogs"})
        answer = await client.ask(gateway, "A story")
        assert answer.text == "Once a frog lived."
        assert turns(gateway.upstream.requests[-1]) == [
            ("user", "A story"), ("assistant", "Once "), ("user", "about frogs"), ("assistant", "a frog "), ("user", GO_ON),
        ]  # fmt: skip
        assert [notice.code for notice in answer.notices] == ["steered", "continued"]


async def test_a_hedged_answer_goes_on(autojump_clock: Clock) -> None:
    config = hedged(names=("first", "second", "third"))
    config = evolve(config, models={name: evolve(model, continuation=True) for name, model in config.models.items()})
    async with claw(config=config) as gateway:
        gateway.upstream.will_say(Pause(100), "never")
        gateway.upstream.will_say("half, ", CUT)
        gateway.upstream.will_say("and half")
        answer = await gateway.ask("Hi")
        assert answer.text == "half, and half"
        assert [reason for _, reason, _ in story(answer)] == ["first", "hedge", "continue"]


# --- how the rest is asked for -----------------------------------------------------------------------------------------------


def test_a_beginning_where_the_model_takes_one() -> None:
    request, claude = make_request("Hi"), ProviderConfig("anthropic")

    def takes(model: str, said: str = "half,", provider: ProviderConfig | None = claude, **changes: Any) -> bool:
        return takes_a_beginning(evolve(request, **changes), said, Route("p", model), provider)

    for model in ("claude-3-5-haiku-20241022", "claude-sonnet-4-20250514", "claude-opus-4-1", "claude-sonnet-4-5-20250929"):
        assert takes(model), model
    for model in ("claude-opus-4-6", "claude-sonnet-5", "gpt-4o"):
        assert not takes(model), model
    assert not takes("claude-3-5-haiku-20241022", "half, ")
    assert not takes("claude-3-5-haiku-20241022", reasoning_budget=1024)
    assert not takes("claude-3-5-haiku-20241022", extra={"thinking": {"type": "adaptive"}})
    assert not takes("claude-3-5-haiku-20241022", provider=ProviderConfig("openai_chat"))
    assert takes("anything", provider=ProviderConfig("openai_chat", prefill=True))
    assert not takes("claude-3-5-haiku-20241022", provider=ProviderConfig("anthropic", prefill=False))
    asked = go_on(request, "half,", Route("p", "claude-opus-4-1"), claude)
    assert turns(asked) == [("user", "Hi"), ("assistant", "half,")]


# --- the sweep ---------------------------------------------------------------------------------------------------------------

CAUSES: dict[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "timeout.total": lambda lifetime: lifetime.cancel(ClawError("timeout.total")),
    "shutting_down": lambda lifetime: lifetime.cancel(ClawError("shutting_down")),
}


def cut(gateway: Claw) -> None:
    gateway.upstream.will_say("one ", CUT)
    gateway.upstream.will_say("two ", CUT)
    gateway.upstream.will_say("three")


def stalls(gateway: Claw) -> None:
    gateway.upstream.will_say("one ", Pause(1000), "never")
    gateway.upstream.will_fail("provider_error.overloaded")
    gateway.upstream.will_say("two three")


@pytest.mark.parametrize("reads_for", [0.0, 2.0], ids=["fast", "slow-client"])
@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("scenario", [cut, stalls], ids=lambda scenario: scenario.__name__)
async def test_the_invariants_hold_wherever_it_is_ended(
    scenario: Callable[[Claw], None], cause: str, reads_for: float, autojump_clock: Clock
) -> None:
    closings = Closings()
    async with claw({"closings": closings}, config=continued("a", "b", "c", plugins=NOTHING_RESTS)) as gateway:
        lifetimes: list[Lifetime] = []
        answers: list[Answer] = []
        labels: set[str] = set()

        async def run(_: trio.CancelScope) -> None:
            gateway.upstream.__init__()  # type: ignore[misc]
            closings.outcomes.clear()
            scenario(gateway)
            lifetimes.append(Lifetime())
            answers.append(await gateway.ask("Hi", lifetime=lifetimes[-1], reads_for=reads_for))

        async def check(point: int) -> None:
            answer = answers[-1]
            assert answer.outcome is not None
            labels.add(answer.outcome.label)
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert closings.outcomes == [answer.outcome.label], f"point {point}"
            assert "one two three".startswith(answer.text), f"point {point}: {answer.text!r}"
            if answer.outcome.label == "complete" and lifetimes[-1].cause is None:
                assert answer.text == "one two three", f"point {point}"
            for row in await gateway.store.rows():
                assert row.closed is not None, f"point {point}: an attempt was never closed"

        points = await sweep(run, check, act=lambda _: CAUSES[cause](lifetimes[-1]) if lifetimes else None, all_tasks=True)
        assert points > 20
        assert labels == {cause, "complete"}
