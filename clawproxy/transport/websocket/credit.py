"""Flow control by the client: each message of content costs a credit, and without one the provider is not read."""

from __future__ import annotations

from typing import Final

import trio

from clawproxy.clocks import expired

MOST: Final = 2**31 - 1
"""Credits that one request may have."""


class Credit:
    """One request's. One task spends, the reader grants."""

    __slots__ = ("_granted", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self._granted: trio.Event | None = None

    def grant(self, count: int) -> None:
        self.left = min(MOST, self.left + count)
        if self._granted is not None:
            self._granted.set()
            self._granted = None

    async def spend(self, limit: float) -> None:
        """Take one, waiting for it up to `limit` seconds. Cancelling it takes nothing.

        Raises:
            ClawError: `timeout.write`: the client did not ask for more in time.
        """
        with trio.move_on_after(limit):
            while not self.left:
                self._granted = trio.Event()
                await self._granted.wait()
        if not self.left:
            error = expired("write", limit)
            error.message += " It gave no `credit`."
            raise error
        self.left -= 1
