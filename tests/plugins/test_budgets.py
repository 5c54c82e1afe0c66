"""Budgets: held before anything is sent, for everybody at once or for nobody, charged with what was used."""

from __future__ import annotations

import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import BudgetConfig, Factor, PerRequest, Price, PriceConfig, ServicePrice
from clawproxy.costs import cost_nano, most_nano
from clawproxy.events import Event, Finish, Text, UsageReport
from clawproxy.messages import Usage
from clawproxy.stores.base import Account
from clawproxy.testing import Answer, Pause, claw
from clawproxy_meter.rules import most_cost
from tests.plugins.budgets import SURE, at_once, budgeted, codes, configured, spent, who

BOUND = 18 + 20
"""Tokens that a request "Say hello." with `max_tokens: 20` may use: ten bytes, what is around a message, the answer."""


async def test_of_two_hundred_at_once_ten_are_let_in_on_every_account() -> None:
    """B-01."""
    each = BOUND
    budgets = {
        "key": BudgetConfig("key:bench", f"{10 * each} tokens", "day"),
        "user": BudgetConfig("user:*", f"${10 * (18 * 1000 + 20 * 2000 + 1) / 1e9:.9f}", "month"),
        "team": BudgetConfig("team:red", "10 requests", "minute"),
        "all": BudgetConfig("global", f"{10 * 20} output_tokens", "total"),
    }
    async with budgeted(**budgets) as gateway:
        answers: list[Answer] = []
        for _ in range(10):
            gateway.upstream.will_say("hello", Pause(0.02))
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 200, principal=who(user="ann", team="red"), **SURE)
            with trio.fail_after(5):
                while len(answers) < 190:
                    await trio.lowlevel.checkpoint()
            assert len(gateway.upstream.requests) == 10
        assert (
            sorted(answer.outcome.label for answer in answers if answer.outcome) == ["complete"] * 10 + ["refused.budget"] * 190
        )
        refused = next(answer.error for answer in answers if answer.error is not None)
        assert refused is not None
        assert refused.status == 429
        assert not refused.retryable
        assert "quota" not in str(refused)
        assert await gateway.store.holding() == 0
        assert (await spent(gateway))["team:red requests"] == 10


async def test_charged_is_what_was_measured_and_the_rest_is_free_again() -> None:
    async with budgeted(day=BudgetConfig("global", f"{BOUND + 2} tokens", "day")) as gateway:
        gateway.upstream.will_say("hi", UsageReport(Usage(1, 1)))
        assert (await gateway.ask(**SURE)).text == "hi"
        assert await spent(gateway) == {"global tokens": 2}
        assert (await gateway.ask(**SURE)).outcome == (await gateway.ask(**SURE)).outcome


async def test_a_second_attempt_is_the_same_request() -> None:
    async with budgeted(day=BudgetConfig("global", "2 requests", "day")) as gateway:
        gateway.upstream.will_fail("provider_error.overloaded")
        assert (await gateway.ask(**SURE)).text == "ok"
        assert len(await gateway.store.rows()) == 2
        assert (await spent(gateway))["global requests"] == 1
        assert (await gateway.ask(**SURE)).text == "ok"
        assert (await gateway.ask(**SURE)).error is not None


async def test_the_cap_is_sent_and_filled_in() -> None:
    async with budgeted(day=BudgetConfig("global", "100_000 tokens", "day")) as gateway:
        await gateway.ask()
        await gateway.ask(max_tokens=9)
        assert [request.max_tokens for request in gateway.upstream.requests] == [4096, 9]


async def test_no_more_is_held_than_the_model_can_answer() -> None:
    config = configured({"day": BudgetConfig("global", "300 output_tokens", "day")})
    [route, *_] = config.models["test-model"].routes
    model = evolve(config.models["test-model"], routes=(evolve(route, max_output_tokens=100),))
    async with claw(config=evolve(config, models={"test-model": model})) as gateway:
        gateway.upstream.will_say("a", Pause(0.01))
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 3, max_tokens=10**9)
        assert [answer.error for answer in answers] == [None] * 3
        assert [request.max_tokens for request in gateway.upstream.requests] == [100] * 3
        assert [row.opened.reserved_output for row in await gateway.store.rows()] == [100] * 3


async def test_reasoning_has_room_beside_the_answer() -> None:
    async with budgeted(day=BudgetConfig("global", "9000 output_tokens", "day")) as gateway:
        await gateway.ask(reasoning_budget=2000)
        await gateway.ask(reasoning_budget=2000, max_tokens=4000)
        assert [request.max_tokens for request in gateway.upstream.requests] == [6096, 4000]
    async with budgeted(day=BudgetConfig("global", "1500 output_tokens", "day")) as gateway:
        answer = await gateway.ask(reasoning_budget=2000, max_tokens=4000)
        assert answer.error is not None  # a provider would refuse less than what is to be thought


async def test_without_a_budget_that_counts_answers_nothing_is_capped() -> None:
    async with budgeted(
        day=BudgetConfig("global", "100_000 input_tokens", "day"), r=BudgetConfig("key:x", "$1", "day")
    ) as gateway:
        await gateway.ask()
        assert gateway.upstream.requests[0].max_tokens is None


async def test_what_is_left_is_given_where_it_is_of_use() -> None:
    async with budgeted(day=BudgetConfig("global", "60 tokens", "day")) as gateway:
        answer = await gateway.ask(max_tokens=500)
        assert gateway.upstream.requests[0].max_tokens == 60 - 18
        assert codes(answer) == ["budget_capped"]
        gateway.upstream.will_say("x", UsageReport(Usage(10, 30)))
        await gateway.ask(max_tokens=500)
        assert (await gateway.ask(max_tokens=500)).error is not None


async def test_a_stream_is_cut_at_the_edge() -> None:
    async with budgeted(day=BudgetConfig("global", "60 output_tokens", "day")) as gateway:
        gateway.upstream.will_say(*["0123456789"] * 5, "éééééééé", *["never"] * 1000, UsageReport(Usage(1, 900)))
        answer = await gateway.ask(max_tokens=500)
        assert answer.text == "0123456789" * 5 + "ééééé"
        assert answer.events[-2:-1] == [Finish("budget")]
        assert answer.outcome is not None
        assert (answer.outcome.label, answer.outcome.finish) == ("truncated", "budget")
        assert codes(answer) == ["budget_capped", "budget_cut"]
        assert gateway.at_rest()
        [row] = await gateway.store.rows()
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source) == ("truncated", "estimated")
        assert row.closed.output_tokens == 17  # 66 bytes that came, four a token
        assert await spent(gateway) == {"global output_tokens": 17}


async def test_a_stream_beyond_its_cap_is_topped_up_while_there_is_room() -> None:
    async with budgeted(day=BudgetConfig("global", "1000 output_tokens", "day")) as gateway:
        gateway.upstream.will_say(*["0123456789"] * 30, UsageReport(Usage(1, 300)))
        answer = await gateway.ask(**SURE)
        assert len(answer.text) == 300
        assert await spent(gateway) == {"global output_tokens": 300}
        assert await gateway.store.holding() == 0


async def test_a_whole_answer_that_its_provider_counted_is_not_cut() -> None:
    async with budgeted(day=BudgetConfig("global", "20 output_tokens", "day")) as gateway:
        steps: list[Event] = [Text("0123456789" * 8), Finish("length"), UsageReport(Usage(1, 20))]
        upstream = gateway.upstream
        upstream.will_say(*steps)
        cut = await gateway.ask(**SURE)
        assert cut.text == "0123456789" * 2  # the figures come later than the text

    async with budgeted(day=BudgetConfig("global", "20 output_tokens", "day", mode="tight")) as gateway:
        gateway.upstream.will_say(*steps)
        assert len((await gateway.ask(**SURE)).text) == 80


async def test_more_than_was_held_is_an_overrun_and_not_charged() -> None:
    strict = BudgetConfig("key:*", "100 output_tokens", "day")
    tight = BudgetConfig("global", "100 output_tokens", "day", mode="tight")
    async with budgeted(strict=strict, tight=tight) as gateway:
        gateway.upstream.will_say("hidden", UsageReport(Usage(1, 77)))
        await gateway.ask(principal=who(), **SURE)
        by_scope = {total.account.scope: total for total in await gateway.store.totals()}
        assert (by_scope["key:bench"].used, by_scope["key:bench"].overrun) == (20, 57)
        assert (by_scope["global"].used, by_scope["global"].overrun) == (77, 0)
        assert gateway.gateway.metrics.total("clawproxy_budget_overruns_total") == 1


async def test_a_fallback_answers_with_another_model() -> None:
    budgets = {
        "dear": BudgetConfig("model:test-model", "1 requests", "day", action="fallback:small"),
        "all": BudgetConfig("global", "3 requests", "day"),
    }
    async with budgeted(**budgets) as gateway:
        assert codes(await gateway.ask(**SURE)) == []
        answer = await gateway.ask(**SURE)
        assert (answer.text, codes(answer)) == ("ok", ["fallback"])
        assert [route.model for route in gateway.upstream.routes] == ["test-model", "small"]
        assert [attempt.number for attempt in answer.exchange.attempts] == [1] if answer.exchange else False
        # who may not use the other model is refused
        refused = await gateway.ask(principal=who(models=("test-model",)), **SURE)
        assert refused.error is not None
        assert refused.error.slug == "budget.exhausted"
        await gateway.ask(**SURE)
        last = await gateway.ask(**SURE)
        assert last.error is not None
        assert last.error.details.policy == "all"
        assert await gateway.store.holding() == 0
        assert len(await gateway.store.rows()) == 3


async def test_models_that_fall_back_to_each_other_end() -> None:
    budgets = {
        "a": BudgetConfig("model:test-model", "0 requests", "day", action="fallback:small"),
        "b": BudgetConfig("model:small", "0 requests", "day", action="fallback:test-model"),
    }
    async with budgeted(**budgets) as gateway:
        answer = await gateway.ask()
        assert answer.error is not None
        assert answer.error.slug == "budget.exhausted"


async def test_throttled_requests_wait_for_room_in_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with budgeted(one=BudgetConfig("global", "1 concurrent", action="throttle")) as gateway:
        answers: list[tuple[str, float]] = []

        async def ask(key: str) -> None:
            answer = await gateway.ask(principal=who(key))
            assert answer.text == "ok", answer.error
            answers.append((key, trio.current_time()))

        for _ in range(6):
            gateway.upstream.will_say(Pause(1), "ok")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for key in ("first", "a", "a", "a", "b", "c"):
                nursery.start_soon(ask, key)
                await trio.sleep(0.01)
        assert [key for key, _ in answers] == ["first", "a", "a", "b", "c", "a"]
        assert answers[-1][1] - began < 6.1
        assert await gateway.store.holding() == 0
        assert not gateway.gateway.app.shared["budgets"].lines.waiting


async def test_who_waits_too_long_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    async with budgeted(2.0, one=BudgetConfig("global", "1 concurrent", action="throttle")) as gateway:
        gateway.upstream.will_say(Pause(5), "late")
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 3)
        assert [answer.error.slug if answer.error else answer.text for answer in answers] == ["timeout.queue"] * 2 + ["late"]
        assert answers[0].error is not None
        assert answers[0].error.status == 503
        assert answers[0].error.details.retry_after_ms == 1000
        assert not gateway.gateway.app.shared["budgets"].lines.waiting
        assert await gateway.store.holding() == 0


async def test_a_budget_that_only_notifies_lets_everything_pass() -> None:
    async with budgeted(watch=BudgetConfig("global", "2 requests", "day", action="notify")) as gateway:
        told = [codes(await gateway.ask()) for _ in range(5)]
        assert told == [[], [], ["budget_limit"], [], []]
        assert await spent(gateway) == {"global requests": 5}
        assert gateway.gateway.metrics.total("clawproxy_budget_alerts_total") == 1


async def test_a_soft_limit_is_told_once() -> None:
    seen: list[dict[str, object]] = []
    async with budgeted(day=BudgetConfig("key:*", "$0.000100000", "day", soft="50%")) as gateway:
        budgets = gateway.gateway.app.shared["budgets"]
        budgets.watchers.append(seen.append)
        told = []
        for _ in range(4):
            gateway.upstream.will_say("x", UsageReport(Usage(10, 10)))  # 30 000 nano-dollars of 100 000
            answer = await gateway.ask(principal=who(), max_tokens=16)
            told.append(codes(answer) or (answer.error.slug if answer.error else ""))
            if len(told) == 1:
                assert answer.exchange is not None
                assert budgets.used("day", answer.exchange) == 0.3
                assert budgets.used("nothing", answer.exchange) == 0.0
        assert told[:2] == ["", ""]
        assert told[2] in ("budget.exhausted", ["budget_soft_limit"], ["budget_capped", "budget_soft_limit"])
        assert [alert["what"] for alert in seen if alert["what"] != "exhausted"] == ["soft"]
        assert seen[0]["used"] == 60_000


async def test_a_name_takes_the_place_of_each() -> None:
    budgets = {
        "each": BudgetConfig("user:*", "1 requests", "day"),
        "ann": BudgetConfig("user:ann", "2 requests", "day"),
    }
    async with budgeted(**budgets) as gateway:
        for user, most in (("ann", 2), ("bob", 1), (None, 4)):
            answers = [await gateway.ask(principal=who(user=user)) for _ in range(4)]
            assert sum(answer.error is None for answer in answers) == most


async def test_cancelled_requests_give_back_what_they_held() -> None:
    async with budgeted(day=BudgetConfig("global", "1000 tokens", "day")) as gateway:
        for steps in ((), ("some text", Pause(60))):
            gateway.upstream.will_say(*steps, Pause(60))
            async with trio.open_nursery() as nursery:
                at_once(gateway, [], nursery, 1, **SURE)
                while not gateway.upstream.requests:
                    await trio.lowlevel.checkpoint()
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            gateway.upstream.requests.clear()
        assert await gateway.store.holding() == 0
        [standing] = await gateway.store.standing([Account("global", "tokens", "day", False)], 0)
        assert standing.held == 0
        assert 0 < standing.used < 2 * BOUND


async def test_a_dearer_service_tier_is_held_for_where_it_was_asked_for() -> None:
    price = PriceConfig(Price(1_000_000), Price(2_000_000), cache_write=Price(3_000_000), request=PerRequest(7))
    dear = evolve(price, service={"priority": ServicePrice(factor=Factor(2_000_000))})
    assert most_cost(10, 5, price) == 10 * 3000 + 5 * 2000 + 7
    assert most_cost(10, 5, dear, "priority") == 2 * (10 * 3000 + 5 * 2000 + 7)
    assert most_cost(10, 5, dear, "nobody's") == 2 * (10 * 3000 + 5 * 2000 + 7)
    assert most_cost(10, 5, dear) == 10 * 3000 + 5 * 2000 + 7


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.lists(st.integers(0, 10**9), min_size=4, max_size=4), st.booleans())
def test_the_most_it_may_cost_is_more_than_any_kind_of_tokens_does(
    given_: int, taken: int, rates: list[int], cached: bool
) -> None:
    write = Price(rates[3]) if cached else None
    price = PriceConfig(Price(rates[0]), Price(rates[1]), cached_input=Price(rates[2]), cache_write=write)
    most = most_cost(given_, taken, price)
    assert most == most_nano(price, given_, taken)
    for usage in (Usage(given_, taken), Usage(given_, taken, given_), Usage(given_, taken, 0, given_, taken)):
        assert most >= (cost_nano(usage, price) or 0)
