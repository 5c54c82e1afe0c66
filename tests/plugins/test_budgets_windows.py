"""Each window across its boundary, by a clock that tests move."""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from clawproxy.config import BudgetConfig
from clawproxy.testing import Answer, Pause
from tests.plugins.budgets import at_once, budgeted, spent

JANUARY = timegm((2027, 1, 31, 23, 59, 30))
"""Half a minute before a minute, an hour, a day and a month are over."""
FIXED = {"minute": 60, "hour": 3600, "day": 86_400, "month": 28 * 86_400}
SLIDING = {"minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400}

Move = Callable[[float], None]


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Move:
    """Sets Unix time, and lets seconds pass."""
    now = [float(JANUARY)]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.mark.parametrize("window", FIXED)
async def test_a_fixed_window_begins_anew_on_the_full_one(window: str, move: Move) -> None:
    """B-11."""
    async with budgeted(b=BudgetConfig("global", "1 requests", window)) as gateway:  # type: ignore[arg-type]
        assert (await gateway.ask()).error is None
        refused = (await gateway.ask()).error
        assert refused is not None
        assert refused.details.retry_after_ms == 30_000
        assert "2027-02-01T00:00:00Z" in refused.message
        move(29.9)
        assert (await gateway.ask()).error is not None
        move(0.1)
        assert (await gateway.ask()).error is None
        refused = (await gateway.ask()).error
        assert refused is not None
        assert refused.details.retry_after_ms == FIXED[window] * 1000
        move(-3600)  # a clock that is set back gives no window twice
        assert (await gateway.ask()).error is not None


@pytest.mark.parametrize("window", SLIDING)
async def test_a_sliding_window_is_as_long_wherever_it_begins(window: str, move: Move) -> None:
    length = SLIDING[window]
    async with budgeted(b=BudgetConfig("global", "2 requests", window, sliding=True)) as gateway:  # type: ignore[arg-type]
        assert (await gateway.ask()).error is None
        move(length / 2)
        assert (await gateway.ask()).error is None
        assert (await gateway.ask()).error is not None
        move(length / 2 - 1)
        refused = (await gateway.ask()).error
        assert refused is not None
        assert refused.details.retry_after_ms is not None
        move(refused.details.retry_after_ms / 1000)
        assert (await gateway.ask()).error is None
        assert (await gateway.ask()).error is not None


async def test_a_total_never_ends(move: Move) -> None:
    async with budgeted(b=BudgetConfig("global", "1 requests", "total")) as gateway:
        assert (await gateway.ask()).error is None
        move(10 * 366 * 86_400)
        refused = (await gateway.ask()).error
        assert refused is not None
        assert refused.details.retry_after_ms is None


async def test_what_streams_across_the_boundary_is_charged_where_it_was_held(move: Move, autojump_clock: MockClock) -> None:
    """B-11."""
    async with budgeted(b=BudgetConfig("global", "100 output_tokens", "day")) as gateway:
        gateway.upstream.will_say(Pause(5), "late")
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 1, max_tokens=100)
            await trio.sleep(1)
            assert (await gateway.ask(max_tokens=16)).error is not None
            move(60)
            assert (await gateway.ask(max_tokens=100)).error is None
        assert [(total.period, total.used) for total in await gateway.store.totals()] == [
            (JANUARY + 30 - 86_400, 1),
            (JANUARY + 30, 1),
        ]


async def test_a_throttled_request_goes_on_when_the_window_does(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    monkeypatch.setattr(time, "time", lambda: JANUARY + trio.current_time() - began)
    async with budgeted(100.0, b=BudgetConfig("global", "2 requests", "minute", action="throttle")) as gateway:
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            at_once(gateway, answers, nursery, 5)
            await trio.sleep(1)
            assert len(answers) == 2
            await trio.sleep(30)
            assert len(answers) == 4
            await trio.sleep(60)
        assert [answer.error for answer in answers] == [None] * 5
        assert await spent(gateway) == {"global requests": 5}
