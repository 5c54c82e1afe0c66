"""Cancel the request at every schedule point of six scenarios: plain, streaming, failover, slow client, held-back text, shutdown.

After each: no stream open, no place held, one closing, each attempt's ledger row opened is closed, none that was sent is free.
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
from clawproxy.testing import Answer, Claw, Fail, claw, sweep
from tests.exchange.talker import NOTHING_RESTS
from tests.exchange.test_outcomes import Closings


class HoldsBack:
    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])


def plain(gateway: Claw) -> dict[str, object]:
    gateway.upstream.will_say("whole answer")
    return {"stream": False}


def streaming(gateway: Claw) -> dict[str, object]:
    gateway.upstream.will_say(*["a", "stream", "of", "tokens"])
    return {}


def failover(gateway: Claw) -> dict[str, object]:
    gateway.upstream.will_fail("provider_error.overloaded")
    gateway.upstream.will_say("from", "another")
    return {}


def slow_client(gateway: Claw) -> dict[str, object]:
    gateway.upstream.will_say("a", "b", "c")
    return {"reads_for": 5.0}


def cut(gateway: Claw) -> dict[str, object]:
    gateway.upstream.will_say("half", Fail("provider_error.cut"))
    return {}


CAUSES: dict[str, Callable[[Lifetime], None]] = {
    "client_gone": Lifetime.hang_up,
    "cancelled": lambda lifetime: lifetime.cancel(ClawError("cancelled")),
    "shutting_down": lambda lifetime: lifetime.cancel(ClawError("shutting_down")),
}
SCENARIOS = [plain, streaming, failover, slow_client, cut]


@pytest.mark.parametrize("held_back", [False, True], ids=["released", "held-back"])
@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_invariants_hold_wherever_it_is_cancelled(
    scenario: Callable[[Claw], dict[str, object]],
    cause: str,
    held_back: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    closings = Closings()
    plugins: dict[str, object] = {"closings": closings, **({"holds": HoldsBack()} if held_back else {})}
    async with claw(plugins, routes=("first", "second"), settings=NOTHING_RESTS) as gateway:
        lifetimes: list[Lifetime] = []
        answers: list[Answer] = []
        labels: set[str] = set()

        async def run(_: trio.CancelScope) -> None:
            gateway.upstream.__init__()  # type: ignore[misc]
            closings.outcomes.clear()
            changes = scenario(gateway)
            lifetimes.append(Lifetime())
            answers.append(await gateway.ask("Hi", lifetime=lifetimes[-1], **changes))  # type: ignore[arg-type]

        async def check(point: int) -> None:
            outcome = answers[-1].outcome
            assert outcome is not None
            labels.add(outcome.label)
            assert gateway.at_rest(), f"point {point}: something is still held"
            assert closings.outcomes == [outcome.label], f"point {point}"
            rows = await gateway.store.rows()
            for row in rows:
                assert row.closed is not None, f"point {point}: an attempt was never closed"
                if row.closed.sent:
                    assert row.closed.input_tokens, f"point {point}: a sent attempt was free"
            sent = {row.opened.request_id for row in rows if row.closed and row.closed.sent}
            exchange = answers[-1].exchange
            if gateway.upstream.requests:
                assert exchange is not None
                assert exchange.request_id in sent

        points = await sweep(run, check, act=lambda _: CAUSES[cause](lifetimes[-1]) if lifetimes else None)
        assert points > 5
        assert cause in labels
        assert labels <= {cause, "complete", "provider_error.cut"}
