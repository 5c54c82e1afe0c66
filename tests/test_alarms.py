"""The sleeper behind all connections' clocks."""

from __future__ import annotations

import math

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from clawproxy import alarms
from clawproxy.alarms import Alarm, Alarms

Steps = list[tuple[float, float]]


async def rung(steps: Steps) -> list[float]:
    """When an alarm rings that is moved as `steps` say: `(seconds to wait, seconds from then on)`; inf puts it out."""
    times: list[float] = []
    book = Alarms()
    alarm = Alarm(book, lambda: times.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        for wait, ahead in steps:
            await trio.sleep(wait)
            alarm.set(trio.current_time() + ahead)
            if ahead < math.inf:
                assert 1 <= len(book) <= len(steps)
        await trio.sleep(1000)
        assert not len(book)
        nursery.cancel_scope.cancel()
    return times


def expected(steps: Steps) -> list[float]:
    now, due, times = 0.0, math.inf, []
    for wait, ahead in steps:
        now += wait
        if due < now:
            times.append(due)
        due = now + ahead
    return [*times, due] if due < math.inf else times


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.integers(0, 30), st.just(math.inf))), max_size=8))
def test_an_alarm_rings_when_it_was_last_asked_to_and_once(steps: Steps) -> None:
    # Halves, so that no alarm is due at the very moment it is moved: who is first then is nobody's promise.
    moves: Steps = [(wait, ahead + 0.5) for wait, ahead in steps]
    start = 0.0

    async def main() -> list[float]:
        nonlocal start
        start = trio.current_time()
        return await rung(moves)

    times = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [round(time - start, 6) for time in times] == expected(moves)


async def test_one_that_ended_is_silent_and_lets_go(autojump_clock: MockClock) -> None:
    book = Alarms()
    rings: list[int] = []
    many = [Alarm(book, lambda: rings.append(1)) for _ in range(3 * alarms._FEW)]
    for each in many:
        each.set(trio.current_time() + 5)
    for each in many[1:]:
        each.end()
    assert len(book) < 2 * alarms._FEW  # the heap does not fill up with the dead
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert rings == [1]
    assert not len(book)


async def test_an_earlier_one_wakes_the_sleeper(autojump_clock: MockClock) -> None:
    book = Alarms()
    rings: list[str] = []
    late, early = Alarm(book, lambda: rings.append("late")), Alarm(book, lambda: rings.append("early"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        late.set(trio.current_time() + 50)
        await trio.sleep(1)
        early.set(trio.current_time() + 2)
        await trio.sleep(3)
        assert rings == ["early"]
        late.due = math.inf
        await trio.sleep(100)
        assert rings == ["early"]
        nursery.cancel_scope.cancel()


class Wakings(trio.abc.Instrument):
    """How often the sleeper ran."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.endswith("Alarms.run")


async def test_those_that_ended_do_not_wake_the_sleeper_one_by_one(autojump_clock: MockClock) -> None:
    book, steps = Alarms(), Wakings()
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        for _ in range(100):
            alarm = Alarm(book, lambda: None)
            alarm.set(trio.current_time() + 10)
            await trio.sleep(0.01)
            alarm.end()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert not len(book)
    assert steps.count < 10
