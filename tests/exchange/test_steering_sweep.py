"""Say more at every schedule point of an exchange; and end a steered exchange at every one of its points.

Whatever the point: an append is refused or answered, what was heard stands once and in order, the books are closed once, nothing
is held.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from clawproxy.errors import ClawError
from clawproxy.events import Text
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.testing import Claw, Fail, Pause, claw, sweep
from tests.exchange.talker import NOTHING_RESTS, Talker, turns
from tests.exchange.test_outcomes import Closings

Clock = trio.testing.MockClock


class HoldsBack:
    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])


def streaming(gateway: Claw) -> None:
    gateway.upstream.will_say("w ", "x ", Pause(1), "y ", "z ")


def failover(gateway: Claw) -> None:
    gateway.upstream.will_fail("provider_error.overloaded")
    gateway.upstream.will_say("w ", "x ")


def stalls(gateway: Claw) -> None:
    gateway.upstream.will_say(Pause(1000), "never")
    gateway.upstream.will_say("w ", "x ")


def cut(gateway: Claw) -> None:
    gateway.upstream.will_say("w ", Fail("provider_error.cut"))


async def books(gateway: Claw, point: int) -> None:
    for row in await gateway.store.rows():
        assert row.closed is not None, f"point {point}: an attempt was never closed"
        if row.closed.sent:
            assert row.closed.input_tokens, f"point {point}: a sent attempt was free"


@pytest.mark.parametrize("held_back", [False, True], ids=["released", "held-back"])
@pytest.mark.parametrize("reads_for", [0.0, 2.0], ids=["fast", "slow-client"])
@pytest.mark.parametrize("scenario", [streaming, failover, stalls, cut], ids=lambda scenario: scenario.__name__)
async def test_an_append_is_refused_or_answered(
    scenario: Callable[[Claw], None], reads_for: float, held_back: bool, autojump_clock: Clock
) -> None:
    closings = Closings()
    plugins: dict[str, object] = {"closings": closings, **({"holds": HoldsBack()} if held_back else {})}
    async with claw(plugins, routes=("first", "second"), settings=NOTHING_RESTS) as gateway:
        clients: list[Talker] = []
        accepted: list[bool] = []
        seen: set[tuple[bool, str]] = set()

        async def run(_: trio.CancelScope) -> None:
            gateway.upstream.__init__()  # type: ignore[misc]
            closings.outcomes.clear()
            accepted.clear()
            scenario(gateway)
            gateway.upstream.will_say("and more")
            clients.append(Talker(reads_for=reads_for))
            await clients[-1].ask(gateway, "0")

        def say_more() -> None:
            if clients:
                try:
                    clients[-1].append("go on")
                    accepted.append(True)
                except ClawError as error:
                    accepted.append(error.slug != "unknown_id")

        async def check(point: int) -> None:
            answer, last = clients[-1].answer, turns(gateway.upstream.requests[-1])
            assert answer.outcome is not None
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert closings.outcomes == [answer.outcome.label], f"point {point}"
            await books(gateway, point)
            heard = answer.text
            if accepted == [True] and answer.outcome.label == "complete":
                assert last[-1] == ("user", "go on"), f"point {point}: accepted, and not answered"
                said = last[1][1] if len(last) == 3 else ""
                assert heard.startswith(said), f"point {point}: {heard!r} after {last}"
                assert [notice.code for notice in answer.notices].count("steered") == 1
                gateway_said = heard[len(said) :].lower()
                assert gateway_said in ("and more", "w x ", "w x y z ", "ok"), f"point {point}: {gateway_said!r} after {said!r}"
            elif accepted == [False]:
                assert last == [("user", "0")], f"point {point}: refused, and sent"
            seen.add((accepted == [True], answer.outcome.label))

        points = await sweep(run, check, act=lambda _: say_more())
        assert points > 6
        good = "provider_error.cut" if scenario is cut else "complete"
        assert (True, "complete") in seen
        assert any(not taken for taken, _ in seen), "the later points come too late to matter"
        assert {label for _, label in seen} <= {"complete", good}


CAUSES: dict[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "cancelled": lambda lifetime: lifetime.cancel(ClawError("cancelled")),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("heard", ["", "w ", "x "], ids=["first", "middle", "last"])
async def test_a_steered_exchange_ends_wherever_it_is_ended(heard: str, cause: str, autojump_clock: Clock) -> None:
    closings = Closings()
    async with claw({"closings": closings}, routes=("first", "second"), settings=NOTHING_RESTS) as gateway:
        clients: list[Talker] = []
        labels: set[str] = set()

        async def run(_: trio.CancelScope) -> None:
            gateway.upstream.__init__()  # type: ignore[misc]
            closings.outcomes.clear()
            gateway.upstream.will_say("w ", "x ", "y ")
            gateway.upstream.will_fail("provider_error.overloaded")
            gateway.upstream.will_say("and more")
            clients.append(Talker({heard: "go on"}))
            await clients[-1].ask(gateway, "0")

        async def check(point: int) -> None:
            answer = clients[-1].answer
            assert answer.outcome is not None
            labels.add(answer.outcome.label)
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert closings.outcomes == [answer.outcome.label], f"point {point}"
            with pytest.raises(ClawError):
                clients[-1].append("too late")
            await books(gateway, point)

        points = await sweep(run, check, act=lambda _: CAUSES[cause](clients[-1].lifetime) if clients else None)
        assert points > 10
        assert labels == {cause, "complete"}
