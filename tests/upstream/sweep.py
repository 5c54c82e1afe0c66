"""Cancel a scenario at every point at which it can be cancelled (TRIO.md, P-23)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` around the k-th step of `task`: before it runs (the task was woken, so the cancel meets it at its next
    checkpoint), or after it (the task has just gone to sleep, so the cancel is what wakes it)."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int, before: bool) -> None:
        self.task = task
        self.scope = scope
        self.step = step
        self.before = before
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.before and self.steps == self.step:
                self.scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and not self.before and self.steps == self.step:
            self.scope.cancel()


async def sweep(scenario: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[None]]) -> int:
    """Run `scenario` again and again, cancelled one step later each time, until it completes; `check` after each. Returns the
    number of runs that were cancelled."""
    cancelled = 0
    for before in (False, True):
        for step in range(0 if not before else 1, 10_000):
            done = False
            with trio.CancelScope() as scope:
                instrument = _CancelAt(trio.lowlevel.current_task(), scope, step, before)
                if step == 0:
                    scope.cancel()
                trio.lowlevel.add_instrument(instrument)
                try:
                    await scenario()
                    done = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            await check()
            if done:
                if scope.cancel_called:
                    continue  # cancelled in its last step, too late to matter: the next run is not cancelled at all
                break
            cancelled += 1
        else:
            raise AssertionError("the scenario never completes")
    return cancelled
