"""Running the taps over one attempt's answer: synchronous, no await, no pluggy, nothing per token but what a tap does.

Rule 1: stages run in the reverse of the operator's order (answers come up).
Rule 2: an observer that raises is dropped and logged once; a transform that raises ends the answer.
Rule 3: a batch that no transform changed stays the same object, so its bytes can go out as they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from clawproxy.errors import ClawError
from clawproxy.events import Batch, Event
from clawproxy.hookspecs import Observe, Transform

SLOW = 0.05
"""Seconds a synchronous call of a plugin may take before it is named in the log."""
STRIKES = 3
"""Slow calls after which an observer is dropped. What decides is never skipped."""

PLUGIN_ERRORS = BaseException
"""What a plugin may raise without ending the gateway: anything (PL-02). A cancellation goes on: where a hook is awaited,
`compile.plugin_error` raises it again."""

Report = Callable[[str, str, str], None]
"""`report(plugin, what, detail)`: tells the operator about a plugin."""


class Misuse(TypeError):
    """A hook did what it must not; the words are ours."""


def fault(error: BaseException) -> str:
    """What an operator is told of a plugin's exception: its type and the line it came from. Not its words: they may hold what was
    asked, or a key (THREATS.md K-02)."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if isinstance(error, Misuse):
        return f"TypeError: {error}"
    if trace is None:  # one of a group that was never raised itself
        return type(error).__name__
    file = trace.tb_frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"{type(error).__name__} at {file}:{trace.tb_lineno}"


class _Observing:
    __slots__ = ("name", "off", "report", "strikes", "tap")

    def __init__(self, name: str, tap: Observe, report: Report) -> None:
        self.name = name
        self.tap = tap
        self.report = report
        self.strikes = 0
        self.off = False

    def take(self, batch: Batch) -> Batch | None:
        if self.off:
            return batch
        try:
            self.tap.see(batch)
        except PLUGIN_ERRORS as error:
            self.off = True
            self.report(self.name, "tap_failed", fault(error))
        return batch

    def slow(self) -> None:
        self.strikes += 1
        self.off = self.strikes >= STRIKES
        self.report(self.name, "tap_dropped" if self.off else "tap_slow", "tap_response")

    def end(self) -> Sequence[Event]:
        if self.tap.end is not None and not self.off:
            self.off = True  # once
            try:
                self.tap.end()
            except PLUGIN_ERRORS as error:
                self.report(self.name, "tap_failed", fault(error))
        return ()


class _Changing:
    __slots__ = ("held", "name", "raw", "report", "tap")

    def __init__(self, name: str, tap: Transform, report: Report) -> None:
        self.name = name
        self.tap = tap
        self.raw = tap.raw
        self.report = report
        self.held: list[Event] | None = [] if tap.streams in ("hold_back", "reject") else None

    def take(self, batch: Batch) -> Batch | None:
        if self.held is not None:
            self.held.extend(batch.events)
            return None
        events = batch.events
        try:
            changed = self.tap.change(events)
            if changed is events and (self.raw is None or not batch.raw or self.raw(batch.raw)):
                return batch
        except ClawError:
            raise
        except PLUGIN_ERRORS as error:
            raise self._broken(error) from error
        return batch.replaced(changed) if changed else None

    def end(self) -> Sequence[Event]:
        out: list[Event] = []
        if self.held:
            out += self._change(self.held)
        if self.tap.end is not None:
            try:
                out += self.tap.end()
            except ClawError:
                raise
            except PLUGIN_ERRORS as error:
                raise self._broken(error) from error
        return out

    def slow(self) -> None:
        self.report(self.name, "tap_slow", "tap_response")

    def _change(self, events: Sequence[Event]) -> Sequence[Event]:
        try:
            return self.tap.change(events)
        except ClawError:
            raise
        except PLUGIN_ERRORS as error:
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> ClawError:
        self.report(self.name, "tap_failed", fault(error))
        return ClawError("internal", policy=self.name)


class Relay:
    """The taps of one attempt.

    Args:
        taps: `(plugin name, tap)` in the operator's order.
        report: told about plugins that fail or are slow.
    """

    __slots__ = ("_stages",)

    def __init__(self, taps: Sequence[tuple[str, Observe | Transform]], report: Report) -> None:
        self._stages = [
            _Observing(name, tap, report) if isinstance(tap, Observe) else _Changing(name, tap, report)
            for name, tap in reversed(taps)
        ]

    def take(self, batch: Batch) -> Batch | None:
        """The batch to release now, None where a transform holds everything back. Raises ClawError from a transform."""
        current: Batch | None = batch
        began = time.perf_counter()
        for stage in self._stages:
            current = stage.take(current)  # type: ignore[arg-type]  # the loop ends where it is None
            ended = time.perf_counter()
            if ended - began > SLOW:
                stage.slow()
            began = ended
            if current is None:
                return None
        return current

    def end(self) -> Batch | None:
        """What the transforms still held, each stage's rest through the stages after it. Called once, after a good answer."""
        current: Batch | None = None
        began = time.perf_counter()
        for stage in self._stages:
            if current is not None:
                current = stage.take(current)
            rest = stage.end()
            ended = time.perf_counter()
            if ended - began > SLOW:
                stage.slow()
            began = ended
            if rest:
                current = Batch([*current.events, *rest] if current is not None else rest)
        return current

    def abandon(self) -> None:
        """The answer failed: observers end (those that have not yet), what transforms hold is dropped."""
        for stage in self._stages:
            if isinstance(stage, _Observing):
                stage.end()
