"""What a client may do to one connection, and a budget that refills: so many at once, so many a second."""

from __future__ import annotations

from typing import Final

UNAUTHENTICATED: Final = 16 * 1024
"""Bytes of one message until authenticated (W-31)."""
LINGER: Final = 3.0
"""Seconds from our close frame, or the peer's, to the end of the TCP connection."""
GRACE: Final = 0.04
"""Seconds an answer under way has before the close frame of a protocol error."""
REPLIES: Final = 256
"""Answers to frames (not to requests) that may wait for a client that does not read."""

READ: Final = 64 * 1024
"""Bytes asked of the kernel at once."""


class Bucket:
    """Holds at most `size`; `rate` come back a second."""

    __slots__ = ("_at", "_level", "_rate", "_size")

    def __init__(self, size: int, rate: float) -> None:
        self._size = size
        self._rate = rate
        self._level = float(size)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one, if there is one. `now` in seconds of any monotonic clock."""
        self._level = min(self._size, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
