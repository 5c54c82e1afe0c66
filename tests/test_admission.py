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
