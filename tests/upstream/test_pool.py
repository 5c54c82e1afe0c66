"""The pool's bookkeeping: who gets a place, in which order, and what it costs."""

from __future__ import annotations

import random
import time

import pytest
import trio
from trio.testing import MockClock

from clawproxy.config import PoolConfig
from clawproxy.config.schema import Duration
from clawproxy.upstream.pool import Pool
from tests.upstream.kit import Conversation, RecordedPhases, always, bench, eventually, whole


class Held:
    """A connection as far as the pool can tell."""

    def __init__(self) -> None:
        self.created = self.idle_since = trio.current_time()
        self.is_quiet = True
        self.closed = False
        self.asked = 0

    def quiet(self) -> bool:
        self.asked += 1
        return self.is_quiet

    def close(self) -> None:
        self.closed = True


def nothing() -> None:
    pass


def pool(**settings: float) -> Pool[Held]:
    values = {"max": 3, **settings}
    return Pool(
        "openai",
        PoolConfig(
            max=int(values["max"]),
            idle=Duration(values.get("idle", 30.0)),
            lifetime=Duration(values.get("lifetime", 600.0)),
        ),
    )


async def test_repr_and_statistics_tell_the_state() -> None:
    p = pool()
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 3]>"
    assert await p.acquire("k", nothing) is None
    assert await p.acquire("k", nothing) is None
    p.release(Held())
    assert repr(p) == "<Pool openai [1 active, 1 idle, 0 waiting | max 3]>"
    figures = p.statistics()
    assert (figures.active, figures.idle, figures.waiting, figures.max) == (1, 1, 0, 3)


async def test_last_in_first_out() -> None:
    p = pool()
    for _ in range(3):
        await p.acquire("k", nothing)
    held = [Held(), Held(), Held()]
    for one in held:
        p.release(one)
    assert await p.acquire("k", nothing) is held[2]
    assert await p.acquire("k", nothing) is held[1]
    assert p.reused_total == 2


async def test_idle_and_lifetime_limits(mock_clock: MockClock) -> None:
    p = pool(idle=30, lifetime=100)
    await p.acquire("k", nothing)
    p.release(first := Held())
    mock_clock.jump(29.9)
    assert await p.acquire("k", nothing) is first
    p.release(first)
    mock_clock.jump(30)
    assert await p.acquire("k", nothing) is None
    assert first.closed
    p.release(second := Held())
    for _ in range(4):
        mock_clock.jump(24)
        assert await p.acquire("k", nothing) is second
        p.release(second)
    mock_clock.jump(4)
    await p.acquire("k", nothing)
    assert second.closed, "its lifetime has passed"
    p.release()
    await p.acquire("k", nothing)
    old = Held()
    mock_clock.jump(100.5)
    p.release(old)
    assert old.closed
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 3]>"


async def test_sweep_closes_the_old_and_the_dead(mock_clock: MockClock) -> None:
    p = pool(idle=30)
    for _ in range(3):
        await p.acquire("k", nothing)
    old, dead, good = Held(), Held(), Held()
    p.release(old)
    mock_clock.jump(20)
    p.release(dead)
    p.release(good)
    dead.is_quiet = False
    mock_clock.jump(10)
    p.sweep()
    assert (old.closed, dead.closed, good.closed) == (True, True, False)
    assert repr(p) == "<Pool openai [0 active, 1 idle, 0 waiting | max 3]>"


async def test_waiters_are_served_round_robin_by_key_and_in_order_within_one() -> None:
    p = pool(max=1)
    await p.acquire("first", nothing)
    served: list[str] = []

    async def want(key: str, name: str) -> None:
        await p.acquire(key, nothing)
        served.append(name)
        p.release()

    async with trio.open_nursery() as nursery:
        for key, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")]:
            nursery.start_soon(want, key, name)
            await trio.testing.wait_all_tasks_blocked()
        assert repr(p) == "<Pool openai [1 active, 0 idle, 6 waiting | max 1]>"
        p.release()
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 1]>"


async def test_a_waiter_gets_the_connection_that_was_given_back() -> None:
    p = pool(max=1)
    await p.acquire("a", nothing)
    got: list[Held | None] = []

    async def want() -> None:
        got.append(await p.acquire("b", nothing))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        p.release(held := Held())
    assert got == [held]


async def test_one_that_may_not_be_ready_is_taken_last() -> None:
    p = pool()
    held = [Held(), Held(), Held()]
    for _ in held:
        await p.acquire("k", nothing)
    for one, last in zip(held, (False, True, True), strict=True):
        p.release(one, last)
    assert [await p.acquire("k", nothing) for _ in held] == held


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    p = pool(max=1)
    await p.acquire("a", nothing)
    for _ in range(100):
        with trio.move_on_after(0):
            await p.acquire("b", nothing)
    assert repr(p) == "<Pool openai [1 active, 0 idle, 0 waiting | max 1]>"
    assert not p._rounds
    p.release()
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 1]>"


@pytest.mark.parametrize("cancel_first", [False, True])
async def test_a_place_handed_to_a_waiter_cancelled_in_the_same_tick_is_passed_on(cancel_first: bool) -> None:
    p = pool(max=1)
    await p.acquire("a", nothing)
    scope = trio.CancelScope()
    served: list[str] = []

    async def doomed() -> None:
        with scope:
            await p.acquire("b", nothing)
            served.append("doomed")
            p.release()

    async def next_one() -> None:
        await p.acquire("c", nothing)
        served.append("next")
        p.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(doomed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(next_one)
        await trio.testing.wait_all_tasks_blocked()
        if cancel_first:
            scope.cancel()
            p.release()
        else:
            p.release()
            scope.cancel()
    assert served[-1] == "next"
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 1]>"


async def test_random_cancels_never_lose_a_place() -> None:
    p = pool(max=4)
    chance = random.Random(7)
    served = 0

    async def user(number: int) -> None:
        nonlocal served
        for _ in range(30):
            with trio.move_on_after(chance.choice([0, 0.0001, 1])):
                held = await p.acquire(f"key {number % 5}", nothing)
                try:
                    for _ in range(chance.randrange(3)):
                        await trio.lowlevel.checkpoint()
                finally:
                    assert p.statistics().active <= 4
                    p.release((held or Held()) if chance.random() < 0.5 else None)
                    served += 1

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(user, number)
    assert served > 300
    figures = p.statistics()
    assert (figures.active, figures.waiting) == (0, 0)
    assert figures.idle <= 4


async def test_cost_does_not_grow_with_connections_or_waiters() -> None:
    """Operations are counted where they can be, and timed with slack where they can not."""

    async def cost(connections: int, waiters: int) -> float:
        p = pool(max=connections)
        for _ in range(connections):
            await p.acquire("k", nothing)
        held = [Held() for _ in range(connections)]
        best = float("inf")
        async with trio.open_nursery() as nursery:
            for number in range(waiters):
                nursery.start_soon(p.acquire, f"key {number % 50}", nothing)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                start = time.perf_counter()
                for _ in range(200):
                    p._leave(p._join("another"))
                best = min(best, time.perf_counter() - start)
            nursery.cancel_scope.cancel()
        for one in held:
            p.release(one)
        before = sum(one.asked for one in held)
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                p.release(await p.acquire("k", nothing))
            best = min(best, time.perf_counter() - start)
        assert sum(one.asked for one in held) - before == 1000, "only the one that is taken is looked at"
        return best

    small, large = await cost(10, 10), await cost(1000, 1000)
    assert large < small * 3


async def test_a_closed_pool_serves_but_keeps_nothing() -> None:
    p = pool()
    await p.acquire("k", nothing)
    p.release(idle := Held())
    p.close()
    assert idle.closed
    assert await p.acquire("k", nothing) is None
    p.release(late := Held())
    assert late.closed
    assert repr(p) == "<Pool openai [0 active, 0 idle, 0 waiting | max 3] closed>"
    assert not p.reserve()


# --- with real connections -------------------------------------------------------------------------------------------------


async def test_the_queue_clock_runs_only_while_waiting() -> None:
    async with bench(always(whole(b"x.")), pool=PoolConfig(max=1)) as b:
        first, second = RecordedPhases(), RecordedPhases()

        async def other() -> None:
            await b.ask(stream=False, phases=second)

        async with trio.open_nursery() as nursery, b.open(stream=False, phases=first):
            nursery.start_soon(other)
            await eventually(lambda: b.counts()[2] == 1)
            assert repr(b.pool) == "<Pool test [1 active, 0 idle, 1 waiting | max 1]>"
            assert second.entered == ["queue"]
            assert not second.sent
        assert first.entered == ["connect", "first_token"]
        assert second.entered == ["queue", "first_token"]
        assert b.pool.opened_total == b.pool.reused_total == 1


async def test_never_more_connections_than_max() -> None:
    most = 0

    async def script(talk: Conversation) -> None:
        nonlocal most
        while True:
            most = max(most, talk.peer.open)
            await talk.request()
            await trio.sleep(0.001)
            await talk.say(whole(b"x."))

    async with bench(script, pool=PoolConfig(max=5)) as b:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(lambda key: b.ask(stream=False, fair_key=key, phases=RecordedPhases()), f"k{number % 7}")
        assert most == 5
        assert b.counts() == (0, 5, 0)
        assert (b.pool.opened_total, b.pool.reused_total) == (5, 55)


async def test_nothing_is_warmed_up_unless_asked() -> None:
    async with bench(always(whole(b"x."))) as b:
        with trio.move_on_after(0.05):
            await b.providers.run()
        assert b.peer.opened == 0


async def test_min_idle_is_kept_warm_and_old_connections_are_closed() -> None:
    settings = PoolConfig(min_idle=2, max=4, idle=Duration(0.2))
    async with bench(always(whole(b"x.")), pool=settings) as b, trio.open_nursery() as nursery:
        nursery.start_soon(b.providers.run)
        await eventually(lambda: b.counts() == (0, 2, 0))
        assert b.peer.opened == 2
        await b.ask(stream=False)
        assert b.phases.entered == ["first_token"]
        await eventually(lambda: b.peer.opened >= 4)
        await eventually(lambda: b.peer.open == 2)
        nursery.cancel_scope.cancel()


async def test_a_provider_that_is_down_does_not_end_maintenance() -> None:
    settings = PoolConfig(min_idle=1, idle=Duration(0.2))
    async with bench(always(whole(b"x.")), pool=settings, base_url="http://127.0.0.1:1") as b:
        with trio.move_on_after(0.15) as scope:
            await b.providers.run()
        assert scope.cancelled_caught
        assert b.counts() == (0, 0, 0)


async def test_closing_a_generation_lets_its_answers_end() -> None:
    async with bench(always(whole(b"x."))) as b:
        await b.ask(stream=False)
        async with b.open(stream=False) as stream:
            await b.providers.aclose()
            assert await stream.receive() is not None
        assert b.counts() == (0, 0, 0)
        await b.ask(stream=False)
        assert b.counts() == (0, 0, 0)
        await eventually(lambda: b.peer.open == 0)
