"""What a plugin asks a model itself: `App.ask`. A whole exchange of the same principal: hooks, a ledger row, an audit row.

Rule 1: it runs inside the exchange it is asked for, in the same generation, and takes no place of its own in the queue: what ends
        the outer one ends it too, for the same cause, and no limit on requests at work can make the outer one wait for itself.
Rule 2: how long it may take is its caller's to say (`trio.move_on_after`): one that stops waiting is a client that left. While it
        runs no hook's time budget does.
Rule 3: a question asks no further one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import evolve

from clawproxy.context import Exchange, new_id
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome, Text
from clawproxy.exchange import run_exchange
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Grant, Usage
from clawproxy.service import Call

if TYPE_CHECKING:
    from clawproxy.gateway import Generation


class _Listener:
    """The client's side of it: keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.error: ClawError | None = None

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        pass

    async def send(self, batch: Batch) -> None:
        await trio.lowlevel.checkpoint()
        self.said += [event.text for event in batch.events if type(event) is Text]

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        await trio.lowlevel.checkpoint()
        self.error = outcome.error

    async def fail(self, error: ClawError) -> None:
        await trio.lowlevel.checkpoint()
        self.error = error


class _Within(Lifetime):
    """Its scope is inside of another lifetime's: what cancels that one is the cause here, too, before anything is unwound."""

    __slots__ = ("_outer", "_own")

    def __init__(self, outer: Lifetime | None) -> None:
        self._outer = outer
        super().__init__()

    @property
    def cause(self) -> ClawError | None:
        return self._own if self._own is not None or self._outer is None else self._outer.cause

    @cause.setter
    def cause(self, cause: ClawError | None) -> None:
        self._own = cause


async def ask(generation: Generation, exchange: Exchange, request: ChatRequest) -> str:
    """The text of the answer, which may be empty. Raises ClawError, as a client would be told; RuntimeError for a question within
    a question."""
    if exchange.parent is not None:
        raise RuntimeError("a question of the gateway's own may not ask another")
    listener = _Listener()
    outer = next((each.lifetime for each in generation.gateway.calls if each.request_id == exchange.request_id), None)
    call = Call(
        request_id=new_id(),
        surface=exchange.surface,
        principal=evolve(
            exchange.principal,
            user=exchange.user,
            app=exchange.app,
            # The model is the operator's choice, whatever the key may ask for by name.
            models=(*exchange.principal.models, request.model),
            grants=_with_model(exchange.principal.grants, request.model),
        ),
        decode=lambda: request,
        lifetime=_Within(outer),
        peer=exchange.peer,
        client_request_id=exchange.request_id,
        attribution=exchange.attribution,
        parent=exchange.request_id,
        residency=exchange.residency,
    )
    exchange.asked += 1
    exchange.asking += 1
    try:
        outcome = await run_exchange(generation, call, listener)
    finally:
        exchange.asking -= 1
    error = outcome.error or listener.error
    if error is not None:
        raise error
    return "".join(listener.said)


def _with_model(grants: tuple[Grant, ...] | None, model: str) -> tuple[Grant, ...] | None:
    """Where it may go (providers, regions) stays as the roles say."""
    return None if grants is None else tuple([evolve(each, models=(*each.models, model), actions=("*",)) for each in grants])
