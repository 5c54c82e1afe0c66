"""The one cancel scope of a request, and why it was cancelled.

Rule: the cause is set before the scope is cancelled, and the first cause stays. Whoever ends a request early (its client, a
clock, the operator) calls `Lifetime.cancel` and nothing else.
"""

from __future__ import annotations

import trio

from clawproxy.errors import ClawError


class Lifetime:
    """Made by the transport before the request is handled, so that a client that leaves finds something to cancel."""

    __slots__ = ("cause", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cause: ClawError | None = None

    def cancel(self, cause: ClawError) -> None:
        if self.cause is None:
            self.cause = cause
        self.scope.cancel()

    def hang_up(self) -> None:
        """The client went away."""
        self.cancel(ClawError("client_gone"))


def is_cancellation(error: BaseException) -> bool:
    """Whether it is Cancelled, or a nursery's group of nothing else (nurseries wrap even that)."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
