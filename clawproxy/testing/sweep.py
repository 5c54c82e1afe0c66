"""Cancel everywhere: run a scenario again and again, cancelling its scope at the first schedule point, then the second...

The most valuable single test for a Trio program (docs/plugins.md): what holds at every point holds.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import trio


class _CancelAt(trio.abc.Instrument):
    """Acts once the watched task (any task, where None) has been scheduled `point` times."""

    def __init__(self, point: int, act: Callable[[], None], task: trio.lowlevel.Task | None) -> None:
        self.left = point
        self.act = act
        self.task = task
        self.fired = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.fired or (self.task is not None and task is not self.task):
            return
        if self.left == 0:
            self.fired = True
            self.act()
        self.left -= 1


async def sweep(
    scenario: Callable[[trio.CancelScope], Awaitable[Any]],
    check: Callable[[int], Awaitable[None]],
    *,
    act: Callable[[trio.CancelScope], None] = trio.CancelScope.cancel,
    all_tasks: bool = False,
    step: int = 1,
    most: int = 5000,
) -> int:
    """Run `scenario(scope)` once for each schedule point, cancelling `scope` there, then `check(point)`.

    Args:
        scenario: one run, from nothing to nothing; it enters the scope it is given around what is to be cancelled.
        check: asserts the invariants after each run.
        act: what to do at the point; cancels the scope where not given.
        all_tasks: count the schedule points of every task, not only the caller's: for scenarios that talk to a server.
        step: take every n-th point only.
        most: a bound on the number of points.

    Returns:
        How many points there were: the first run that was over before its point came ends the sweep.
    """
    for point in range(0, most, step):
        scope = trio.CancelScope()
        watched = None if all_tasks else trio.lowlevel.current_task()
        instrument = _CancelAt(point, functools.partial(act, scope), watched)
        trio.lowlevel.add_instrument(instrument)
        try:
            await scenario(scope)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        await check(point)
        if not instrument.fired:
            return point
    raise AssertionError(f"the scenario has more than {most} schedule points")
