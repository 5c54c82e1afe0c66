"""An answer that was kept, played as a provider's stream (`Route.recorded`).

The exchange does not see a difference, so no policy, record or client is passed by. Nothing is connected to, and no clock of an
attempt runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import trio

from clawproxy.events import Batch


class Recorded:
    """An `upstream.base.Opening`, and the stream it opens. Batches may be played by many at once: nobody changes one."""

    __slots__ = ("_batches", "_next")

    status = 200

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._next = 0

    async def __aenter__(self) -> Recorded:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def receive(self) -> Batch | None:
        await trio.lowlevel.checkpoint()
        if self._next >= len(self._batches):
            return None
        batch = self._batches[self._next]
        self._next += 1
        return batch

    def close(self) -> None:
        self._next = len(self._batches)
