"""Budgets where other parts meet them: two attempts at once, an answer that goes on, a plugin behind the meter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace, TracebackType

import pytest
import trio
from attrs import evolve

from clawproxy.config import BudgetConfig, Config, Duration, Hedge
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import UsageReport
from clawproxy.hookspecs import Detour, hookimpl
from clawproxy.messages import Usage
from clawproxy.testing import Answer, Claw, Fail, Pause, claw
from tests.plugins.budgets import SURE, at_once, budgeted, codes, configured, spent

MILLISECOND = 0.001


def hedged(config: Config) -> Config:
    models = {name: evolve(model, hedge=Hedge(Duration(10 * MILLISECOND))) for name, model in config.models.items()}
    return evolve(config, models=models, plugins={"router": {"hedge_share": 1.0, "retries": {"most": 0}}})


def going_on(config: Config) -> Config:
    models = {name: evolve(model, continuation=True) for name, model in config.models.items()}
    return evolve(config, models=models, plugins={"router": {"retries": {"most": 0}}})


@asynccontextmanager
async def racing(**budgets: BudgetConfig) -> AsyncIterator[Claw]:
    async with claw(config=hedged(configured(budgets, 1.0))) as gateway:
        yield gateway


async def at_rest(gateway: Claw) -> None:
    assert await gateway.store.holding() == 0
    assert gateway.at_rest()
    assert not gateway.gateway.app.shared["budgets"].lines.waiting


async def outcomes(gateway: Claw) -> list[tuple[str, str]]:
    rows = sorted(await gateway.store.rows(), key=lambda row: (row.opened.opened, row.opened.number))
    return [(row.opened.reason, row.closed.outcome) for row in rows if row.closed]


async def test_a_hedge_without_room_is_not_made_and_leaves_no_place_in_a_queue(autojump_clock: trio.testing.MockClock) -> None:
    async with racing(one=BudgetConfig("global", "1 concurrent", action="throttle")) as gateway:
        gateway.upstream.will_say(Pause(50 * MILLISECOND), "slow")
        assert (await gateway.ask()).text == "slow"
        await at_rest(gateway)
        with trio.fail_after(0.5):
            assert (await gateway.ask()).text == "ok"
        assert await outcomes(gateway) == [("first", "complete")] * 2


async def test_a_hedge_does_not_overtake_those_who_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with racing(two=BudgetConfig("global", "2 concurrent", action="throttle")) as gateway:
        for _ in range(6):
            gateway.upstream.will_say(Pause(30 * MILLISECOND), "slow")
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 6)
        assert [answer.text for answer in answers] == ["slow"] * 6
        await at_rest(gateway)


async def test_a_hedge_is_made_in_full_or_not_at_all(autojump_clock: trio.testing.MockClock) -> None:
    async with racing(day=BudgetConfig("global", "100 output_tokens", "day")) as gateway:
        gateway.upstream.will_say(Pause(50 * MILLISECOND), "slow", UsageReport(Usage(1, 4)))
        answer = await gateway.ask(max_tokens=60)
        assert (answer.text, codes(answer)) == ("slow", [])
        assert [request.max_tokens for request in gateway.upstream.requests] == [60]
        gateway.upstream.will_say(Pause(50 * MILLISECOND), "slow")
        assert (await gateway.ask(max_tokens=40)).text == "ok"
        assert [request.max_tokens for request in gateway.upstream.requests] == [60, 40, 40]
        await at_rest(gateway)


async def test_who_lost_a_race_is_charged_too_and_the_request_once(autojump_clock: trio.testing.MockClock) -> None:
    budgets = {"money": BudgetConfig("global", "$1", "day"), "requests": BudgetConfig("global", "4 requests", "day")}
    async with racing(**budgets) as gateway:
        gateway.upstream.will_say(Pause(50 * MILLISECOND), "slow")
        gateway.upstream.will_say("fast", UsageReport(Usage(10, 2)))
        answer = await gateway.ask(**SURE)
        assert answer.text == "fast"
        rows = {row.opened.reason: row.closed for row in await gateway.store.rows()}
        lost, won = rows["first"], rows["hedge"]
        assert lost is not None
        assert won is not None
        assert (lost.source, won.source) == ("estimated", "measured")
        assert lost.cost_nano == 5 * 1000  # eighteen bytes of prompt
        assert await spent(gateway) == {"global nano": lost.cost_nano + 10 * 1000 + 2 * 2000, "global requests": 1}
        await at_rest(gateway)


async def test_a_client_that_leaves_a_race_leaves_its_place(autojump_clock: trio.testing.MockClock) -> None:
    async with racing(one=BudgetConfig("global", "1 concurrent", action="throttle")) as gateway:
        gateway.upstream.will_say(Pause(5), "slow")
        async with trio.open_nursery() as nursery:
            at_once(gateway, [], nursery, 1)
            while not gateway.upstream.requests:
                await trio.lowlevel.checkpoint()
            for steps in range(12):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as inner:
                        at_once(gateway, [], inner, 1)
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            nursery.cancel_scope.cancel()
        await at_rest(gateway)
        with trio.fail_after(0.5):
            assert (await gateway.ask()).text == "ok"


async def test_who_is_answered_elsewhere_leaves_the_line(autojump_clock: trio.testing.MockClock) -> None:
    """Its turn came, and found another budget used up that falls back to a model under none: while it is answered there, those
    behind it have theirs."""
    budgets = {
        "one": BudgetConfig("model:test-model", "1 concurrent", action="throttle"),
        "two": BudgetConfig("model:test-model", "1 requests", "day", action="fallback:small"),
    }
    async with claw(config=configured(budgets, 10.0)) as gateway:
        for seconds in (1, 30, 30):
            gateway.upstream.will_say(Pause(seconds), "ok")
        answers: list[Answer] = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 3)
            await trio.sleep(2)
            assert not gateway.gateway.app.shared["budgets"].lines.waiting
        assert [answer.text for answer in answers] == ["ok"] * 3
        assert trio.current_time() - began < 40, "one behind the other"
        await at_rest(gateway)


async def test_what_can_not_be_held_any_more_is_let_go_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when an attempt ends of which `tight` held too little."""

    def full(*_: object) -> None:
        raise ClawError("store_unavailable")

    async with budgeted(few=BudgetConfig("global", "100 output_tokens", "day", mode="tight")) as gateway:
        monkeypatch.setattr(gateway.store, "top_up", full)
        gateway.upstream.will_say("hidden", UsageReport(Usage(1, 77)))
        assert (await gateway.ask(**SURE)).text == "hidden"
        (row,) = await gateway.store.rows()
        assert row.closed
        assert await spent(gateway) == {"global output_tokens": 20}
        assert gateway.gateway.metrics.total("clawproxy_budget_overruns_total") == 1
        await at_rest(gateway)


async def test_the_rest_of_an_answer_never_comes_from_a_fallback(autojump_clock: trio.testing.MockClock) -> None:
    """It would begin anew behind what was said. The client is told what is in the way."""
    config = going_on(configured({"dear": BudgetConfig("model:test-model", "70 tokens", "day", action="fallback:small")}))
    async with claw(config=config) as gateway:
        gateway.upstream.will_say("Once upon", Fail("provider_error.cut"))
        answer = await gateway.ask(max_tokens=40)
        assert answer.text == "Once upon"
        assert answer.error is not None
        assert answer.error.slug == "budget.exhausted"
        assert len(gateway.upstream.requests) == 1
        await at_rest(gateway)


async def test_the_rest_of_an_answer_waits_for_room_and_is_cut_where_the_budget_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    budgets = {
        "one": BudgetConfig("global", "1 concurrent", action="throttle"),
        "day": BudgetConfig("global", "300 output_tokens", "day"),
    }
    async with claw(config=going_on(configured(budgets))) as gateway:
        gateway.upstream.will_say("Once upon", Fail("provider_error.cut"))
        gateway.upstream.will_say(*["x" * 40] * 9)
        answer = await gateway.ask(max_tokens=290)
        assert answer.text.startswith("Once upon" + "x" * 200)
        assert len(answer.text) <= 9 + 300
        assert answer.outcome is not None
        assert answer.outcome.label == "truncated"
        assert [reason for reason, _ in await outcomes(gateway)] == ["first", "continue"]
        assert (await spent(gateway))["global output_tokens"] <= 300
        await at_rest(gateway)


class Waits:
    """A turn that comes at once."""

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()

    def leave(self) -> None:
        pass


class Behind:
    """A plugin's context behind the meter's: it lets nobody through at first."""

    def __init__(self, seen: list[str], attempt: Attempt, error: ClawError) -> None:
        self.seen, self.attempt, self.error = seen, attempt, error

    async def __aenter__(self) -> None:
        self.seen.append(self.attempt.id)
        if len(self.seen) < 3:
            raise self.error

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("how", ["turn", "model"])
async def test_an_attempt_refused_behind_the_meter_gives_back_all_and_the_next_one_is_held_anew(how: str) -> None:
    seen: list[str] = []

    @hookimpl
    def open_attempt(exchange: Exchange, attempt: Attempt) -> Behind:
        refused = ClawError("refused.plugin")
        detour = Detour(refused, turn=Waits()) if how == "turn" else Detour(refused, model="small" if len(seen) else "other")
        return Behind(seen, attempt, detour)

    config = configured({"day": BudgetConfig("global", "1000 tokens", "day")})
    config = evolve(config, models={**config.models, "other": config.models["small"]})
    order = ["auth", "router", "meter", "behind"]
    async with claw({"behind": SimpleNamespace(open_attempt=open_attempt)}, order=order, config=config) as gateway:
        gateway.upstream.will_say("hi", UsageReport(Usage(10, 5)))
        answer = await gateway.ask(**SURE)
        assert answer.text == "hi"
        assert len(set(seen)) == 3
        rows = await gateway.store.rows()
        assert [(row.closed.sent, row.closed.cost_nano) for row in rows if row.closed] == [(False, 0)] * 2 + [(True, 20_000)]
        assert await spent(gateway) == {"global tokens": 15}
        await at_rest(gateway)
