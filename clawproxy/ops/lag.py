"""How late the event loop is: what every request waits for without any clock of its own noticing."""

from __future__ import annotations

import time

import trio
from attrs import define


@define(eq=False)
class LoopLag:
    """`seconds` is the worst lateness of the last second or so; run `watch` in the service nursery.

    A request that blocks the loop for a second shows here at once; `limits.shed_lag` compares with it.
    """

    interval: float = 0.1
    """Seconds between looks."""
    seconds: float = 0.0

    async def watch(self) -> None:
        """For ever."""
        while True:
            before = time.perf_counter()
            await trio.sleep(self.interval)
            late = max(0.0, time.perf_counter() - before - self.interval)
            # The worst is remembered and fades within about a second, so that a scrape or a shed decision sees a short block.
            self.seconds = max(late, self.seconds * 0.7 if self.seconds > 0.001 else 0.0)
