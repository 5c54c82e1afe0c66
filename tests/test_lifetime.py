"""A task's requests share a scope until it was cancelled, and none reaches another's."""

from __future__ import annotations

import pytest
import trio

from clawproxy.errors import ClawError
from clawproxy.lifetime import KeptScope, Lifetime

GONE = ClawError("client_gone")


async def test_the_next_request_takes_over_the_scope_that_was_left_whole() -> None:
    with KeptScope() as kept:
        with Lifetime(kept) as first:
            await trio.lowlevel.checkpoint()
        with Lifetime(kept) as second:
            await trio.lowlevel.checkpoint()
        assert second is first


async def test_after_a_cancellation_it_gets_a_fresh_one() -> None:
    with KeptScope() as kept:
        ended = Lifetime(kept)
        with ended as first:
            ended.cancel(GONE)
            await trio.sleep_forever()
        assert first.cancelled_caught
        assert ended.cause is GONE
        with Lifetime(kept) as second:
            await trio.lowlevel.checkpoint()
        assert second is not first


async def test_a_cancellation_that_nobody_noticed_is_not_inherited() -> None:
    with KeptScope() as kept:
        ended = Lifetime(kept)
        with ended as first:
            ended.cancel(GONE)  # and it ends well, without another checkpoint
        assert not first.cancelled_caught
        with Lifetime(kept):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("late", ["cancel", "hang_up", "interrupt"])
async def test_what_comes_late_for_a_request_does_not_reach_the_next(late: str) -> None:
    with KeptScope() as kept:
        over = Lifetime(kept)
        with over:
            await trio.lowlevel.checkpoint()
        with Lifetime(kept):
            if late == "cancel":
                over.cancel(GONE)
            else:
                getattr(over, late)()
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()  # nor the time between two requests


async def test_a_request_that_was_ended_before_it_began_ends_at_once() -> None:
    with KeptScope() as kept:
        with Lifetime(kept):
            pass
        for end in (Lifetime.hang_up, Lifetime.interrupt):
            early = Lifetime(kept)
            end(early)
            await trio.lowlevel.checkpoint()  # it has not begun
            with early as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught


async def test_an_interrupted_request_goes_on_in_a_renewed_scope() -> None:
    with KeptScope() as kept:
        lifetime = Lifetime(kept)
        why = ClawError("cancelled")
        with lifetime as first:
            lifetime.interrupt(why)
            await trio.sleep_forever()
        assert lifetime.interruption is why
        renewed = lifetime.renew()
        assert renewed.interruption is None
        with renewed as second:
            await trio.lowlevel.checkpoint()
        assert second is not first
        lifetime.cancel(GONE)
        with lifetime.renew() as third:
            await trio.sleep_forever()
        assert third.cancelled_caught


async def test_an_error_leaves_the_scope_and_the_task_is_in_order() -> None:
    with KeptScope() as kept:
        with pytest.raises(ClawError), Lifetime(kept):
            raise GONE
        with Lifetime(kept):
            await trio.lowlevel.checkpoint()


async def test_what_is_cancelled_from_outside_is_not_caught_inside() -> None:
    with trio.CancelScope() as around, KeptScope() as kept:
        around.cancel()
        with Lifetime(kept) as scope:
            await trio.sleep_forever()
    assert around.cancelled_caught
    assert not scope.cancelled_caught


async def test_without_a_task_that_keeps_it_each_has_its_own() -> None:
    one, other = Lifetime(), Lifetime()
    with one as first, other as second:
        one.cancel(GONE)
        assert not second.cancel_called
        await trio.sleep_forever()
    assert first.cancelled_caught
