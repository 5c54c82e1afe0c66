"""Which response of a connection runs when: those of one lane one after another, the lanes beside each other. No I/O.

Source of the limits: OpenAI's own, as its WebSocket mode publishes them and other gateways keep them.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from clawproxy.errors import ClawError

ACTIVE: Final = 16
"""Responses at work at once."""
LANES: Final = 32
"""Lanes with a response at work or waiting."""
WAITING: Final = 48
WAITING_BYTES: Final = 8 * 1024 * 1024

Job = TypeVar("Job")


class Lanes(Generic[Job]):
    """Each change returns the jobs that are to start now.

    Args:
        most: how many may be at work at once, where that is less than `ACTIVE`.
    """

    def __init__(self, most: int = ACTIVE) -> None:
        self._most = min(most, ACTIVE)
        self._active: set[str | None] = set()
        self._waiting: deque[tuple[str | None, int, Job]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """Jobs at work or waiting."""
        return len(self._active) + len(self._waiting)

    def add(self, lane: str | None, size: int, job: Job) -> list[Job]:
        """Raises ClawError("limit.in_flight")."""
        lanes = self._active | {waiting for waiting, _, _ in self._waiting}
        if lane not in lanes and len(lanes) >= LANES:
            raise ClawError("limit.in_flight", f"At most {LANES} lanes may be in use on one connection.")
        self._waiting.append((lane, size, job))
        self._bytes += size
        started = self._start()
        if len(self._waiting) > WAITING or self._bytes > WAITING_BYTES:
            _, size, _ = self._waiting.pop()  # itself: had it started, there would be no more than before
            self._bytes -= size
            raise ClawError("limit.in_flight", "Too many responses wait on this connection.")
        return started

    def done(self, lane: str | None) -> list[Job]:
        self._active.discard(lane)
        return self._start()

    def clear(self) -> None:
        self._waiting.clear()
        self._bytes = 0

    def _start(self) -> list[Job]:
        started: list[Job] = []
        passed: deque[tuple[str | None, int, Job]] = deque()
        while self._waiting and len(self._active) < self._most:
            lane, size, job = self._waiting.popleft()
            if lane in self._active:
                passed.append((lane, size, job))
                continue
            self._active.add(lane)
            self._bytes -= size
            started.append(job)
        self._waiting.extendleft(reversed(passed))
        return started
