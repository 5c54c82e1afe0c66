"""What ends a request early: its cancel scope, and the cause.

Rule 1: a request runs in one cancel scope at a time. The cause is set before the scope is cancelled, and the first cause stays.
        Whoever ends a request early (its client, a clock, the operator) calls `Lifetime.cancel` and nothing else.
Rule 2: an attempt's own clock, or a client that says more (`steering`), only interrupts: the scope is cancelled without a cause,
        and the exchange goes on in a new one.
Rule 3: a task that serves one request after another keeps their scope entered (`KeptScope`) until it was cancelled. A request
        that is over has none any more, so nothing that comes late for it can reach the next one.
"""

from __future__ import annotations

from types import TracebackType
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


class KeptScope:
    """The cancel scope of a task's requests: entering and leaving one costs 6.5 us, so the next request takes over what the last
    one left whole. `with` it around all of them."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: trio.CancelScope | None = None

    def take(self) -> trio.CancelScope:
        """The scope that the task is in now, entered where there was none."""
        scope = self._entered
        if scope is None:
            scope = self._entered = trio.CancelScope().__enter__()
        return scope

    def __enter__(self) -> KeptScope:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Leave the scope; the next request gets a new one."""
        scope, self._entered = self._entered, None
        return scope is not None and scope.__exit__(kind, error, trace)


class Lifetime:
    """Made by the transport before the request is handled, so that a client that leaves finds something to cancel. The request
    runs `with` it; again after an interruption, once it was renewed."""

    __slots__ = ("_interrupted", "_kept", "_scope", "cause", "interruption")

    def __init__(self, kept: KeptScope | None = None) -> None:
        """`kept`: of the task that will run it, where that serves others after it."""
        self._kept = kept
        self._scope: trio.CancelScope | None = None
        """While it runs."""
        self._interrupted = False
        self.cause: ClawError | None = None
        self.interruption: ClawError | None = None
        """What the interrupted attempt comes to, where no clock says so."""

    def keep(self, kept: KeptScope) -> None:
        """For whoever knows only now which task will run it."""
        self._kept = kept

    def __enter__(self) -> trio.CancelScope:
        self._scope = scope = trio.CancelScope().__enter__() if self._kept is None else self._kept.take()
        if self.ended:
            scope.cancel()
        return scope

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        scope, self._scope = self._scope, None
        if self._kept is None:
            assert scope is not None
            return scope.__exit__(kind, error, trace)
        if error is None and not self.ended:
            return False
        return self._kept.__exit__(kind, error, trace)

    @property
    def ended(self) -> bool:
        """Whether what runs now is to end: its scope is cancelled."""
        return self._interrupted or self.cause is not None

    def cancel(self, cause: ClawError) -> None:
        if self.cause is None:
            self.cause = cause
        if self._scope is not None:
            self._scope.cancel()

    def hang_up(self) -> None:
        """The client went away."""
        self.cancel(ClawError("client_gone"))

    def interrupt(self, why: ClawError | None = None) -> None:
        """End what runs now, not the request: its owner goes on in a renewed scope."""
        self.interruption = why
        self._interrupted = True
        if self._scope is not None:
            self._scope.cancel()

    def renew(self) -> Lifetime:
        """After an interruption: a fresh scope; already cancelled if the request has a cause to end meanwhile."""
        self._interrupted = False
        self.interruption = None
        return self


def is_cancellation(error: BaseException) -> bool:
    """Whether it is Cancelled, or a nursery's group of nothing else (nurseries wrap even that)."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
