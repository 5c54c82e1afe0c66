"""End a hedged exchange at every schedule point of any task: nothing is held, each row is closed, the text is one answer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from clawproxy.config import Config
from clawproxy.errors import ClawError
from clawproxy.lifetime import Lifetime
from clawproxy.testing import Answer, Claw, Fail, Pause, claw, sweep
from tests.exchange.talker import NOTHING_RESTS
from tests.exchange.test_hedging import Contexts, HoldsBack, hedged
from tests.exchange.test_outcomes import Closings

Clock = trio.testing.MockClock
TEXTS = {"one one", "two two", "three"}


def hedge_wins(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(9), "one ", "one")
    gateway.upstream.will_say(Pause(1), "two ", "two")


def first_wins(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(2), "one ", "one")
    gateway.upstream.will_say(Pause(9), "two ", "two")


def together(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(2), "one ", "one")
    gateway.upstream.will_say(Pause(1), "two ", "two")


def one_fails(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(2), Fail("provider_error.overloaded"))
    gateway.upstream.will_say(Pause(2), "two ", "two")


def both_fail(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(2), Fail("provider_error.overloaded"))
    gateway.upstream.will_say(Pause(2), Fail("provider_error.server"))
    gateway.upstream.will_say("three")


SCENARIOS = [hedge_wins, first_wins, together, one_fails, both_fail]
CAUSES: dict[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "timeout.total": lambda lifetime: lifetime.cancel(ClawError("timeout.total")),
    "shutting_down": lambda lifetime: lifetime.cancel(ClawError("shutting_down")),
}


@pytest.mark.parametrize("held_back", [False, True], ids=["released", "held-back"])
@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_invariants_hold_wherever_it_is_ended(
    scenario: Callable[[Claw], None], cause: str, held_back: bool, autojump_clock: Clock
) -> None:
    closings, contexts = Closings(), Contexts()
    plugins: dict[str, object] = {"closings": closings, "contexts": contexts, **({"holds": HoldsBack()} if held_back else {})}
    config: Config = hedged(names=("first", "second", "third"), plugins=NOTHING_RESTS)
    async with claw(plugins, config=config) as gateway:
        lifetimes: list[Lifetime] = []
        answers: list[Answer] = []
        labels: set[str] = set()
        hedges: set[str] = set()

        async def run(_: trio.CancelScope) -> None:
            gateway.upstream.__init__()  # type: ignore[misc]
            gateway.gateway.app.shared.clear()
            closings.outcomes.clear()
            scenario(gateway)
            lifetimes.append(Lifetime())
            answers.append(await gateway.ask("Hi", lifetime=lifetimes[-1]))

        async def check(point: int) -> None:
            answer = answers[-1]
            outcome, exchange = answer.outcome, answer.exchange
            assert outcome is not None
            labels.add(outcome.label)
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert contexts.now == 0, f"point {point}: a context was not left"
            assert closings.outcomes == [outcome.label], f"point {point}"
            if outcome.label == "complete" and not (held_back and lifetimes[-1].cause is not None):  # whole, and not taken
                assert answer.text.lower() in TEXTS, f"point {point}: {answer.text!r}"
            else:
                assert any(text.startswith(answer.text.lower()) for text in TEXTS), f"point {point}: {answer.text!r}"
            if exchange is None:
                return
            of_it = [row for row in await gateway.store.rows() if row.opened.request_id == exchange.request_id]
            rows = {row.opened.id: row for row in of_it}
            finished = contexts.finished[-len(exchange.attempts) :] if exchange.attempts else []
            assert sorted(finished) == sorted(attempt.id for attempt in exchange.attempts), f"point {point}"
            for attempt in exchange.attempts:
                assert attempt.outcome is not None, f"point {point}: attempt {attempt.number} has no end"
                hedges.add(attempt.outcome)
                row = rows.pop(attempt.id, None)
                if row is None:
                    assert not attempt.sent, f"point {point}: sent without a row"
                    continue
                assert row.closed is not None, f"point {point}: attempt {attempt.number} was never closed"
                assert row.closed.outcome == attempt.outcome, f"point {point}"
                if row.closed.sent and not attempt.outcome.startswith("provider_error"):
                    assert row.closed.input_tokens, f"point {point}: a sent attempt was free"
            assert not rows
            assert [attempt.content for attempt in exchange.attempts].count(True) <= 1, f"point {point}"

        points = await sweep(run, check, act=lambda _: CAUSES[cause](lifetimes[-1]) if lifetimes else None, all_tasks=True)
        assert points > 20
        assert labels == {cause, "complete"}
        assert scenario in (one_fails, both_fail) or "cancelled" in hedges
