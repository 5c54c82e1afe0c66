"""What ends a request early: its cancel scope, and the cause.

Rule 1: a request runs in one cancel scope at a time. The cause is set before the scope is cancelled, and the first cause stays.
        Whoever ends a request early (its client, a clock, the operator) calls `Lifetime.cancel` and nothing else.
Rule 2: an attempt's own clock, or a client that says more (`steering`), only interrupts: the scope is cancelled without a cause,
        and the exchange goes on in a new one.
"""

from __future__ import annotations

from typing import Protocol

import trio

from clawproxy.errors import ClawError


class Interruptible(Protocol):
    """What a clock acts on: a request's `Lifetime`, or one attempt's share of it."""

    @property
    def cause(self) -> ClawError | None: ...
    @property
    def interruption(self) -> ClawError | None: ...
    def cancel(self, cause: ClawError) -> None: ...
    def interrupt(self, why: ClawError | None = None) -> None: ...


class Lifetime:
    """Made by the transport before the request is handled, so that a client that leaves finds something to cancel."""

    __slots__ = ("cause", "interruption", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cause: ClawError | None = None
        self.interruption: ClawError | None = None
        """What the interrupted attempt comes to, where no clock says so."""

    def cancel(self, cause: ClawError) -> None:
        if self.cause is None:
            self.cause = cause
        self.scope.cancel()

    def hang_up(self) -> None:
        """The client went away."""
        self.cancel(ClawError("client_gone"))

    def interrupt(self, why: ClawError | None = None) -> None:
        """End what runs now, not the request: its owner goes on in a renewed scope."""
        self.interruption = why
        self.scope.cancel()

    def renew(self) -> trio.CancelScope:
        """A fresh scope after an interruption; already cancelled if the request has a cause to end meanwhile."""
        self.scope = trio.CancelScope()
        self.interruption = None
        if self.cause is not None:
            self.scope.cancel()
        return self.scope


def is_cancellation(error: BaseException) -> bool:
    """Whether it is Cancelled, or a nursery's group of nothing else (nurseries wrap even that)."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
