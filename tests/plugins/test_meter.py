"""The meter's books: one row per attempt, opened first, closed always, measured where measured and never free where sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pluggy
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_meter as meter
from clawproxy import hookspecs
from clawproxy.config import Config
from clawproxy.context import App, Attempt, Exchange
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, Begin, End, Event, Finish, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.hookspecs import Observe
from clawproxy.messages import ChatRequest, Usage
from clawproxy.stores.base import LedgerRow
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.sqlite import SqliteStore
from clawproxy.testing.factories import make_attempt, make_exchange, make_principal, make_request, make_route
from clawproxy_meter import figures

SETTINGS = meter.Meter(meter.MeterSettings(), {})
PROMPT = "Say hello."  # 10 bytes and a message's 8: 18 reserved, an estimate of 5 tokens


class Gateway:
    """As much of the core as the meter sees: contexts, taps and the attempt's own fields."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.settings = meter.configure(None, app)

        def count(name: str, **labels: str) -> None:
            self.counts[(name, *labels.values())] += 1

        app.count = count

    async def attempt(
        self,
        exchange: Exchange,
        *events: Sequence[Event],
        request: ChatRequest | None = None,
        sent: bool = True,
        failing: BaseException | None = None,
        **changes: Any,
    ) -> Attempt:
        attempt = make_attempt(number=len(exchange.attempts) + 1, **changes)
        exchange.attempts.append(attempt)
        context = meter.open_attempt(exchange, request or make_request(PROMPT), attempt.route, attempt, self.settings)
        async with context:
            attempt.sent = sent
            tap = meter.tap_response(exchange, attempt)
            assert isinstance(tap, Observe)
            for batch in events:
                tap.see(Batch(batch))
                for event in batch:
                    if isinstance(event, UsageReport):
                        attempt.usage = event.usage
            assert tap.end is not None
            tap.end()
            if failing is not None:
                raise failing
        return attempt

    async def row(self) -> LedgerRow:
        [row] = await self.app.store.rows()
        return row


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    app = App(Config(), MemoryStore(), "test", None)
    async with meter.lifespan(app):
        yield Gateway(app)


def usage(input_tokens: Any, output_tokens: Any, **more: Any) -> UsageReport:
    return UsageReport(Usage(input_tokens, output_tokens, **more))


async def test_a_measured_answer(gateway: Gateway) -> None:
    exchange = make_exchange(
        principal=make_principal(key="k", user="u", team="t", app="a"), generation=3, instance="test", requested_model="gpt"
    )
    route = make_route(provider="openai", model="gpt-4o", max_output_tokens=500)
    report = usage(18, 2, cached_tokens=4, reasoning_tokens=1)
    attempt = await gateway.attempt(
        exchange, [Begin()], [Text("Hello")], [Finish("stop"), report], [End()], route=route, closed_at=77.0, reason="retry"
    )
    row = await gateway.row()
    opened, closed = row.opened, row.closed
    assert (opened.id, opened.request_id, opened.number, opened.reason) == (attempt.id, exchange.request_id, 1, "retry")
    assert (opened.key, opened.user, opened.team, opened.app) == ("k", "u", "t", "a")
    assert (opened.instance, opened.generation, opened.model) == ("test", 3, "gpt")
    assert (opened.provider, opened.provider_model) == ("openai", "gpt-4o")
    assert (opened.reserved_input, opened.reserved_output) == (18, 500)
    assert closed is not None
    assert (closed.closed, closed.outcome, closed.sent, closed.source) == (77.0, "complete", True, "measured")
    assert (closed.input_tokens, closed.output_tokens, closed.cached_tokens, closed.reasoning_tokens) == (18, 2, 4, 1)
    assert closed.cost_nano is None
    assert exchange.usage == report.usage
    assert gateway.counts[("clawproxy_ledger_rows_total", "measured", "complete")] == 1


async def test_the_row_is_open_before_anything_is_sent(gateway: Gateway) -> None:
    exchange, attempt = make_exchange(), make_attempt()
    async with meter.open_attempt(exchange, make_request(max_tokens=9), attempt.route, attempt, gateway.settings):
        row = await gateway.row()
        assert row.closed is None
        assert row.opened.reserved_output == 9


async def test_a_client_may_name_its_user(gateway: Gateway) -> None:
    exchange = make_exchange(principal=make_principal(user="theirs", app="x"), user="asserted")
    await gateway.attempt(exchange, [End()])
    row = await gateway.row()
    assert (row.opened.user, row.opened.app) == ("asserted", "x")


async def test_nothing_is_sent_without_a_row(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "test")
    await store.aclose()
    entered = False
    async with meter.lifespan(App(Config(), store, "test", tmp_path)):
        attempt = make_attempt()
        context = meter.open_attempt(make_exchange(), make_request(), attempt.route, attempt, SETTINGS)
        with pytest.raises(ClawError, match="store_unavailable"):
            async with context:
                entered = True
    assert not entered


async def test_a_complete_answer_without_usage_is_estimated(gateway: Gateway) -> None:
    exchange = make_exchange()
    await gateway.attempt(exchange, [Text("a" * 30), Reasoning("b" * 6)], [ToolCallDelta(0, "id", "f", "{}")], [End()])
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens, closed.source) == (5, 10, "estimated")
    assert exchange.usage == Usage(5, 10, source="estimated")


@pytest.mark.parametrize(
    ("event", "tokens"),
    [(Text("x"), 1), (Text("日本語"), 3), (Refused("no, never"), 3), (ToolCallDelta(0, None, None, "{"), 1), (Text("\ud800"), 1)],
)
async def test_each_kind_of_content_counts(gateway: Gateway, event: Event, tokens: int) -> None:
    await gateway.attempt(make_exchange(), [event])
    closed = (await gateway.row()).closed
    assert closed is not None
    assert closed.output_tokens == tokens


async def test_never_sent_is_free(gateway: Gateway) -> None:
    exchange = make_exchange()
    error = ProviderFault("provider_error.unreachable")
    with pytest.raises(ProviderFault):
        await gateway.attempt(exchange, sent=False, failing=error)
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.sent, closed.source, closed.input_tokens, closed.output_tokens) == (False, "none", 0, 0)
    assert closed.outcome == "provider_error.unreachable"
    assert exchange.usage is None
    assert (await gateway.app.store.usage())[0].attempts == 1


async def test_sent_and_cut_before_content_is_not_free(gateway: Gateway) -> None:
    exchange = make_exchange()
    await gateway.attempt(exchange, error=ClawError("client_gone"), outcome="client_gone")
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.sent, closed.source, closed.input_tokens, closed.output_tokens) == (True, "estimated", 5, 0)
    assert exchange.usage == Usage(5, 0, source="estimated")


async def test_cancelled_in_the_middle_is_estimated(gateway: Gateway) -> None:
    exchange = make_exchange()
    attempt = make_attempt()
    with trio.CancelScope() as scope:
        async with meter.open_attempt(exchange, make_request(PROMPT), attempt.route, attempt, gateway.settings):
            attempt.sent = True
            exchange.attempts.append(attempt)
            tap = meter.tap_response(exchange, attempt)
            assert isinstance(tap, Observe)
            tap.see(Batch([Text("x" * 400)]))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.outcome, closed.source, closed.input_tokens, closed.output_tokens) == ("cancelled", "estimated", 5, 100)


async def test_an_early_report_of_a_cut_answer_counts_at_least_what_was_delivered(gateway: Gateway) -> None:
    await gateway.attempt(make_exchange(), [Begin(), usage(25, 1)], [Text("x" * 400)], outcome="provider_error.cut")
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens, closed.source) == (25, 100, "estimated")


async def test_an_explicit_zero_is_not_replaced(gateway: Gateway) -> None:
    await gateway.attempt(make_exchange(), [Text("cached answer"), usage(0, 0), End()])
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens, closed.source) == (0, 0, "measured")


async def test_half_a_report_is_completed_and_said_to_be_estimated(gateway: Gateway) -> None:
    await gateway.attempt(make_exchange(), [Text("x" * 8), usage(None, 3), End()])
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens, closed.source) == (5, 3, "estimated")


async def test_a_provider_that_turned_the_request_away_billed_nothing(gateway: Gateway) -> None:
    exchange = make_exchange()
    fault = ProviderFault("provider_error.rate_limited", provider_status=429)
    await gateway.attempt(exchange, error=fault, outcome="provider_error.rate_limited")
    await gateway.attempt(exchange, status=500, outcome="provider_error.server")
    for row in await gateway.app.store.rows():
        assert row.closed is not None
        assert (row.closed.sent, row.closed.source, row.closed.input_tokens) == (True, "none", 0)
    assert exchange.usage is None


async def test_what_turns_out_to_be_free_at_the_end_is_taken_back(gateway: Gateway) -> None:
    exchange, attempt = make_exchange(), make_attempt(sent=True)
    async with meter.open_attempt(exchange, make_request(PROMPT), attempt.route, attempt, gateway.settings):
        tap = meter.tap_response(exchange, attempt)
        assert isinstance(tap, Observe)
        assert tap.end is not None
        tap.end()
        assert exchange.usage == Usage(5, 0, source="estimated")
        attempt.status = 503
    assert exchange.usage is None


async def test_retries_add_up_and_one_estimate_makes_the_sum_one(gateway: Gateway) -> None:
    exchange = make_exchange()
    await gateway.attempt(exchange, sent=False, outcome="provider_error.unreachable")
    await gateway.attempt(exchange, outcome="provider_error.cut")
    await gateway.attempt(exchange, [Text("hi"), usage(18, 2, cached_tokens=3), End()])
    assert exchange.usage == Usage(23, 2, cached_tokens=3, source="estimated")
    [total] = await gateway.app.store.usage()
    assert (total.requests, total.attempts, total.input_tokens, total.output_tokens) == (1, 3, 23, 2)


@pytest.mark.parametrize(
    ("reported", "billed"),
    [
        ((-1, -1), (5, 2)),
        ((10**18, 10**18), (figures.CLAMP_FLOOR, figures.CLAMP_FLOOR)),
        (("9", 1.5), (5, 2)),
        ((True, None), (5, 2)),
    ],
)
async def test_absurd_usage_gives_no_credit(gateway: Gateway, reported: tuple[Any, Any], billed: tuple[int, int]) -> None:
    """B-09."""
    exchange = make_exchange()
    report = usage(*reported, raw={"as": "said"})
    await gateway.attempt(exchange, [Text("x" * 8), report, End()], request=make_request(PROMPT, max_tokens=10))
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens) == billed
    assert gateway.counts[("clawproxy_usage_clamped_total", "test")] == 1
    assert exchange.usage is not None
    assert exchange.usage.raw == {"as": "said"}


async def test_the_clamp_follows_what_was_reserved(gateway: Gateway) -> None:
    request = make_request("x" * 10_000, max_tokens=20_000)
    await gateway.attempt(make_exchange(), [usage(10**9, 10**9), End()], request=request)
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.input_tokens, closed.output_tokens) == (4 * 10_008, 80_000)


async def test_parts_are_at_most_their_whole(gateway: Gateway) -> None:
    await gateway.attempt(make_exchange(), [usage(10, 5, cached_tokens=99, reasoning_tokens=-3), End()])
    closed = (await gateway.row()).closed
    assert closed is not None
    assert (closed.cached_tokens, closed.reasoning_tokens) == (10, None)


async def test_two_attempts_at_once_do_not_mix(gateway: Gateway) -> None:
    exchange, request = make_exchange(), make_request(PROMPT)
    one, two = make_attempt(sent=True, route=make_route(provider="a")), make_attempt(sent=True, route=make_route(provider="b"))
    contexts = [meter.open_attempt(exchange, request, attempt.route, attempt, gateway.settings) for attempt in (one, two)]
    async with contexts[0], contexts[1]:
        taps = [meter.tap_response(exchange, attempt) for attempt in (one, two)]
        for tap, text in zip(taps, ("x" * 40, "y" * 80), strict=True):
            assert isinstance(tap, Observe)
            tap.see(Batch([Text(text), End()]))
    rows = {row.opened.provider: row.closed for row in await gateway.app.store.rows()}
    assert rows["a"] is not None
    assert rows["b"] is not None
    assert (rows["a"].output_tokens, rows["b"].output_tokens) == (10, 20)
    assert exchange.usage == Usage(10, 30, source="estimated")


async def test_two_gateways_in_one_process_do_not_meet() -> None:
    apps = [App(Config(), MemoryStore(), name, None) for name in ("one", "two")]
    async with meter.lifespan(apps[0]), meter.lifespan(apps[1]):
        attempt = make_attempt()
        exchange = make_exchange(instance="two")
        async with meter.open_attempt(exchange, make_request(), attempt.route, attempt, SETTINGS):
            pass
    assert [len(await app.store.rows()) for app in apps] == [0, 1]
    with pytest.raises(RuntimeError, match="lifespan"):
        meter.open_attempt(exchange, make_request(), attempt.route, attempt, SETTINGS)


def test_settings_are_checked() -> None:
    assert meter.MeterSettings(estimate_bytes_per_token=3.5).estimate_bytes_per_token == 3.5
    with pytest.raises(ValueError, match="estimate_bytes_per_token"):
        meter.MeterSettings(estimate_bytes_per_token=0)


def test_its_hooks_are_the_systems() -> None:
    manager = pluggy.PluginManager("clawproxy")
    manager.add_hookspecs(hookspecs)
    manager.register(meter)
    manager.check_pending()
    assert {caller.name for caller in manager.get_hookcallers(meter) or []} == {
        "configure",
        "lifespan",
        "open_attempt",
        "register",
        "tap_response",
    }


counts = st.none() | st.integers(-1, 2 * figures.CLAMP_FLOOR) | st.sampled_from([True, 1.0, "1"])


@given(st.builds(Usage, counts, counts, counts, counts, counts))
def test_what_is_sane_is_believed_as_it_is(reported: Any) -> None:
    if figures.is_sane(reported):
        assert figures.believed(reported, figures.bounds(make_request(), make_route(), 1, 1)) == (reported, False)


async def test_it_works_over_the_embedded_store(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "test")
    app = App(Config(), store, "test", tmp_path)
    async with meter.lifespan(app):
        gateway = Gateway(app)
        await gateway.attempt(make_exchange(requested_model="x" * 100_000), [Text("hi"), usage(18, 2), End()])
    await store.aclose()
    tool = SqliteStore.open_tool(tmp_path)
    [row] = await tool.rows()
    assert row.opened.model == "x" * 512
    assert row.closed is not None
    assert (row.closed.source, row.closed.input_tokens) == ("measured", 18)
    await tool.aclose()
