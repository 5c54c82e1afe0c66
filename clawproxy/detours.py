"""What plugins want instead of an attempt (`hookspecs.Detour`): another model's answer, or a turn in a queue of theirs.

Rule 1: a detour is no attempt: nothing was sent. Once there was content none leads to another model, which would begin anew
        behind what was said.
Rule 2: each model is asked for once, and at most `MOST` of them.
Rule 3: a request has one turn at a time. One that another takes the place of is left, and so is the last at the request's end.
        What a plugin's own code does then ends nothing.
Rule 4: all turns of a request are waited for under one `queue` clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from clawproxy.context import Attempt, Exchange
from clawproxy.exchange_clock import ExchangeClock
from clawproxy.hookspecs import Detour, Turn
from clawproxy.messages import ChatRequest
from clawproxy.pipeline.relay import PLUGIN_ERRORS

if TYPE_CHECKING:
    from clawproxy.gateway import Generation

MOST: Final = 8
"""Models that plugins may ask for in turn."""


class Detours:
    """One request's. Made at the first."""

    __slots__ = ("_clock", "_exchange", "_generation", "_models", "_turn", "_waited")

    def __init__(self, generation: Generation, exchange: Exchange, clock: ExchangeClock) -> None:
        self._generation = generation
        self._exchange = exchange
        self._clock = clock
        self._turn: Turn | None = None
        self._waited = 0.0
        self._models: set[str] = set()

    async def wait(self, turn: Turn) -> None:
        """Until it is this request's turn."""
        if turn is not self._turn:
            self.leave()
            self._turn = turn
        began = trio.current_time()
        self._clock.wait_for_place(self._waited)
        await turn.wait()
        self._clock.place_found()
        waited, timing = trio.current_time() - began, self._exchange.timing
        self._waited += waited
        timing.queue = (timing.queue or 0.0) + waited

    def elsewhere(self, detour: Detour, request: ChatRequest, leg: Sequence[Attempt]) -> ChatRequest:
        """`request`, of the model that is wanted. Raises `detour` where that leads nowhere. `leg`: the attempts so far."""
        model = detour.model
        if model is None or model in self._models or len(self._models) >= MOST or any(attempt.content for attempt in leg):
            raise detour
        self._models.add(model)
        return evolve(request, model=model)

    def leave(self) -> None:
        """Nothing is waited for any more."""
        turn, self._turn = self._turn, None
        if turn is not None:
            leave(turn, self._generation, self._exchange)


def leave(turn: Turn, generation: Generation, exchange: Exchange) -> None:
    """Raises nothing: what holds more than that turn is yet to be given back."""
    try:
        turn.leave()
    except PLUGIN_ERRORS as error:
        generation.crashed(exchange, error)
