"""Keep-alives on quiet SSE streams: one ticker for the whole service, no task per request.

Rule: it writes only between an exchange's writes, and never waits for a client (see `wire`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

logger = logging.getLogger(__name__)


class Pulsed(Protocol):
    """A streaming answer."""

    def pulse(self, now: float) -> Callable[[], Awaitable[None]] | None:
        """Look whether it was silent for too long, and write a comment if so. `now` is `trio.current_time()`.

        Over TLS nothing can be written without waiting: then it returns what is to run in a task of its own."""
        ...


class Pulse:
    """Start `run` in the service nursery. `step` is how often it looks, in seconds."""

    def __init__(self, step: float = 0.5) -> None:
        self._step = step
        self._answers: set[Pulsed] = set()

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: Pulsed) -> None:
        self._answers.add(answer)

    def discard(self, answer: Pulsed) -> None:
        self._answers.discard(answer)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._step)
                now = trio.current_time()
                for answer in tuple(self._answers):
                    try:
                        later = answer.pulse(now)
                    except Exception:
                        # An encoder's fault must not stop everybody's keep-alives.
                        self._answers.discard(answer)
                        logger.exception("a keep-alive failed; this answer gets no more of them")
                    else:
                        if later is not None:
                            nursery.start_soon(later)
