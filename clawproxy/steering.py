"""A client that says more while it is being answered (`llm_append`): the answer goes on from what was said, with the new content.

    transport     append: decided at once; the attempt under way is interrupted (its provider's connection closed)
    exchange      fold: what the client has heard as an assistant message, then what it said, behind the prompt it began with;
                  the whole of it goes through the hooks as a prompt does, and a new attempt (reason `steer`) answers

Rule 1: what was accepted is answered. So nothing is accepted once the answer is whole (`AttemptRun.ended`) or over.
Rule 2: only an attempt is interrupted, never a hook on its way down or the queue: they end by themselves, and the prompt is made
        anew before anything is sent.
Rule 3: what was said is what the client was sent, no more: text that a transform held, reasoning and calls of tools are left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from attrs import evolve, frozen

from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.hookspecs import Plan
from clawproxy.messages import ChatRequest, Message, Route

if TYPE_CHECKING:
    from clawproxy.lifetime import Lifetime

MOST: Final = 64
"""Times that one request may be added to: each may cost an attempt."""


class Heard(Protocol):
    """What a client was told since it was last asked for."""

    @property
    def text(self) -> str: ...

    @property
    def calls(self) -> Sequence[int]:
        """The calls of tools that were begun, and are void now."""
        ...


class Running(Protocol):
    """The attempt under way."""

    @property
    def ended(self) -> bool: ...


class Steering:
    """One request's. Made by a transport that has a way to say more.

    Args:
        lifetime: the request's own.
        heard: what the client was told since the last call.
        limit: bytes that may be added in all.

    Attributes:
        run: the attempt under way, set by the exchange.
        authenticate: policy is applied to every message; raises ClawError.
    """

    __slots__ = ("_heard", "_left", "_lifetime", "_limit", "_pending", "_size", "_turns", "_void",
                 "authenticate", "closed", "run")  # fmt: skip

    def __init__(self, lifetime: Lifetime, heard: Callable[[], Heard], limit: int) -> None:
        self._lifetime = lifetime
        self._heard = heard
        self._limit = limit
        self._size = 0
        self._left = MOST
        self._pending: tuple[Message, ...] = ()
        self._turns: tuple[Message, ...] = ()
        self._void: Sequence[int] = ()
        self.authenticate: Callable[[], Awaitable[object]] | None = None
        self.closed = False
        """The answer is whole, or failed."""
        self.run: Running | None = None

    # --- the transport's side --------------------------------------------------------------------------------------------

    def append(self, message: Message, size: int) -> None:
        """Add to the prompt.

        Args:
            size: what `message` counts for, in bytes.

        Raises:
            ClawError: `unknown_id` (there is nothing left to steer), `frame_too_large` or `limit.in_flight`; the answer goes on.
        """
        if self.closed or (self.run is not None and self.run.ended):
            raise ClawError("unknown_id", "The answer is complete: send a new request.", param="id")
        if not self._left:
            raise ClawError("limit.in_flight", f"A request may be added to {MOST} times.", param="id")
        if self._size + size > self._limit:
            words = f"What is added to a request may hold {self._limit} bytes (setting limits.frame)."
            raise ClawError("frame_too_large", words, param="content", setting="limits.frame")
        self._left -= 1
        self._size += size
        self._pending = (*self._pending, message)
        if self.run is not None:
            self._lifetime.interrupt(ClawError("cancelled", "The client added to its prompt; another attempt goes on."))

    # --- the exchange's side ---------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Something was added that no attempt knows yet."""
        return bool(self._pending) and self._lifetime.cause is None

    def fold(self, request: ChatRequest) -> ChatRequest:
        """`request`, as the client began it, with all that was said since."""
        heard = self._heard()
        if heard.text.strip():  # some providers refuse a message of nothing but space
            self._turns += (Message("assistant", heard.text),)
        self._void = heard.calls
        self._turns += self._pending
        self._pending = ()
        return evolve(request, messages=(*request.messages, *self._turns))

    def tell(self, exchange: Exchange, before: int) -> None:
        """The client is told that it was heard. Of the notices from the place `before` on those that only repeat an earlier one
        go: the hooks have seen most of the prompt twice."""
        known, new = exchange.notices[:before], exchange.notices[before:]
        exchange.notices[before:] = [notice for notice in new if notice not in known]
        details: dict[str, object] = {"attempt": len(exchange.attempts) + 1}
        if self._void:
            details["void_tool_calls"] = list(self._void)
        exchange.notice("steered", "What the client added is being answered.", **details)

    def close(self) -> None:
        self.closed = True

    def let_go(self) -> None:
        """The request is over. It has this, and this has it: as a circle all of it would wait for the collector."""
        self.closed = True
        self.authenticate = None
        self._heard = _nothing


@frozen(slots=True)
class _Silence:
    text: str = ""
    calls: Sequence[int] = ()


_silence = _Silence()


def _nothing() -> Heard:
    return _silence


@frozen(slots=True)
class StaysWith:
    """A plan that begins where the answer was: another model in the middle of a sentence is the last resort."""

    plan: Plan
    route: Route

    @property
    def candidates(self) -> Sequence[Route]:
        return self.plan.candidates

    def next(self, history: Sequence[Attempt]) -> Route | None:
        return self.plan.next(history) if history else self.route


def staying(plan: Plan, last: Attempt | None) -> Plan:
    """`plan`, from the route of the `last` attempt on, if that is still one of the plan's and nothing was wrong there."""
    if last is None or (last.error is not None and last.error.slug != "cancelled"):
        return plan
    for route in plan.candidates:
        if (route.provider, route.model) == (last.route.provider, last.route.model):
            return StaysWith(plan, route)
    return plan
