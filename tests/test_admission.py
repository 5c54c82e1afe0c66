"""Fair places: round-robin by key, nothing lost to cancellation."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from clawproxy.admission import Admission, FairQueue
from clawproxy.errors import ClawError


async def test_keys_take_turns() -> None:
    queue = FairQueue(1)
    assert queue.try_enter()
    order: list[str] = []

    async def client(key: str) -> None:
        await queue.enter(key)
        order.append(key)
        queue.leave()

    async with trio.open_nursery() as nursery:
        for key in ["greedy"] * 4 + ["modest"]:
            nursery.start_soon(client, key)
            await trio.testing.wait_all_tasks_blocked()
        queue.leave()
    assert order.index("modest") == 1, "the fifth in line, but the second key"
    assert (queue.active, queue.waiting) == (0, 0)


async def test_a_place_given_to_a_cancelled_waiter_is_not_lost() -> None:
    for cancel_first in (True, False):
        queue = FairQueue(1)
        assert queue.try_enter()
        scope = trio.CancelScope()

        async def doomed(queue: FairQueue = queue, scope: trio.CancelScope = scope) -> None:
            with scope:
                await queue.enter("a")
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    queue.leave()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doomed)
            await trio.testing.wait_all_tasks_blocked()
            if cancel_first:
                scope.cancel()
                queue.leave()
            else:
                queue.leave()
                scope.cancel()
        assert (queue.active, queue.waiting) == (0, 0)
        assert queue.try_enter()


async def test_those_who_gave_up_leave_nothing_behind() -> None:
    queue = FairQueue(1)
    assert queue.try_enter()
    for number in range(20):
        with trio.move_on_after(0):
            await queue.enter(f"key-{number % 3}")
    assert (queue.active, queue.waiting) == (1, 0)
    assert not queue._queues, "tasks of requests long over are kept as long as the one at work stays"
    queue.leave()
    assert queue.try_enter()


async def test_too_many_waiting_is_overloaded() -> None:
    queue = FairQueue(1, max_waiting=0)
    assert queue.try_enter()
    with pytest.raises(ClawError, match="overloaded"):
        await queue.enter("a")


async def test_per_key_limit_refuses_and_gives_the_place_back() -> None:
    admission = Admission(in_flight=2, per_key=1)
    ticket = admission.try_enter("a")
    assert ticket is not None
    with pytest.raises(ClawError, match=r"limit\.in_flight"):
        admission.try_enter("a")
    other = admission.try_enter("b")
    assert other is not None
    admission.release(ticket)
    admission.release(other)
    assert admission.active == 0
    assert admission.queue is not None
    assert admission.queue.active == 0


async def test_a_new_limit_lets_waiters_in_and_sends_nobody_away() -> None:
    admission = Admission(1, 0)
    tickets = [await admission.enter("a")]
    async with trio.open_nursery() as nursery:

        async def client() -> None:
            tickets.append(await admission.enter("a"))

        for _ in range(4):
            nursery.start_soon(client)
        await trio.testing.wait_all_tasks_blocked()
        admission.configure(3, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert (admission.active, len(tickets)) == (3, 3)
        admission.configure(2, 0)
        admission.release(tickets.pop())
        await trio.testing.wait_all_tasks_blocked()
        assert admission.active == 2, "three were in: the one that left is not replaced"
        admission.configure(0, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert admission.active == 4
    for ticket in tickets:
        admission.release(ticket)
    assert admission.queue is not None
    assert (admission.active, admission.queue.active, admission.queue.waiting) == (0, 0, 0)


async def test_limits_that_come_and_go_lose_no_count() -> None:
    admission = Admission(0, 0)
    before = [await admission.enter("a") for _ in range(3)]
    admission.configure(5, 1)
    counted = await admission.enter("a")
    with pytest.raises(ClawError):
        await admission.enter("a")
    other = admission.try_enter("b")
    assert other is not None
    assert admission.try_enter("c") is None, "three from before and two: it is full"
    for ticket in [*before, other]:
        admission.release(ticket)
    with pytest.raises(ClawError):
        await admission.enter("a")
    admission.configure(0, 0)
    free = [await admission.enter("a") for _ in range(9)]
    for ticket in [counted, *free]:
        admission.release(ticket)
    admission.configure(1, 1)
    admission.release(await admission.enter("a"))
    assert admission.queue is not None
    assert (admission.active, admission.queue.active) == (0, 0)
