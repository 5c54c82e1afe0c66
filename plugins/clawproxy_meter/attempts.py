"""One attempt's row: what was reserved, what came, what it comes to.

`exchange.state["meter"]` holds the exchange's `Books`: the tap and the attempt's context share the attempt's `Tally` there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from attrs import define, evolve, field

from clawproxy.context import App, Attempt, Exchange
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, End, Finish, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.messages import ChatRequest, Route, Usage
from clawproxy.stores.base import LedgerClose, LedgerOpen
from clawproxy_meter import figures

log = logging.getLogger("clawproxy.meter")

_NOTHING = Usage()


class Tally:
    """What one attempt delivered, as the provider sent it."""

    __slots__ = ("final", "reported", "route", "size")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.size = 0
        """Bytes of content."""
        self.reported: Usage | None = None
        self.final = False
        """The provider said that its answer is whole, so its last report counts."""

    def see(self, batch: Batch) -> None:
        for event in batch.events:
            kind = type(event)
            if kind is Text or kind is Reasoning or kind is Refused:
                text: str = event.text  # type: ignore[union-attr]
                self.size += len(text) if text.isascii() else figures.text_bytes(text)
            elif isinstance(event, ToolCallDelta):
                self.size += figures.text_bytes(event.arguments) + figures.text_bytes(event.name or "")
            elif isinstance(event, UsageReport):
                self.reported = event.usage
            elif kind is Finish or kind is End:
                self.final = True


@define(slots=True, eq=False)
class Books:
    """All attempts of one exchange, by id."""

    tallies: dict[str, Tally] = field(factory=dict)
    open: dict[str, Metered] = field(factory=dict)
    billed: dict[str, Usage] = field(factory=dict)
    """What each billed attempt came to. An attempt that was never sent, or that the provider turned away, is not in it."""

    def settle(self, exchange: Exchange) -> None:
        """Set `exchange.usage` to the sum of what is known by now."""
        for metered in self.open.values():
            metered.reckon()
        exchange.usage = _sum(list(self.billed.values()))


def books_of(exchange: Exchange) -> Books:
    books: Books | None = exchange.state.get("meter")
    if books is None:
        books = exchange.state["meter"] = Books()
    return books


def tally_of(exchange: Exchange, route: Route) -> Tally | None:
    """The tally of the newest attempt on this route: a tap is not told its attempt."""
    return next((tally for tally in reversed(books_of(exchange).tallies.values()) if tally.route == route), None)


def _sum(usages: list[Usage]) -> Usage | None:
    if len(usages) < 2:
        return usages[0] if usages else None
    return Usage(
        input_tokens=_add([usage.input_tokens for usage in usages]),
        output_tokens=_add([usage.output_tokens for usage in usages]),
        cached_tokens=_add([usage.cached_tokens for usage in usages]),
        cache_write_tokens=_add([usage.cache_write_tokens for usage in usages]),
        reasoning_tokens=_add([usage.reasoning_tokens for usage in usages]),
        source="measured" if all(usage.source == "measured" for usage in usages) else "estimated",
        raw=usages[-1].raw,
    )


def _add(counts: list[int | None]) -> int | None:
    said = [count for count in counts if count is not None]
    return sum(said) if said else None


class Metered:
    """The attempt's context: entering opens the row, leaving closes it. Left shielded and bounded by the core."""

    __slots__ = (
        "_app",
        "_attempt",
        "_bytes_per_token",
        "_exchange",
        "_flagged",
        "_request",
        "_reserved",
        "_reserved_output",
        "_tally",
    )

    def __init__(
        self, app: App, exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, bytes_per_token: float
    ) -> None:
        self._app = app
        self._exchange = exchange
        self._request = request
        self._attempt = attempt
        self._bytes_per_token = bytes_per_token
        self._reserved = figures.prompt_bound(request)
        self._reserved_output = request.max_tokens if request.max_tokens is not None else route.max_output_tokens
        self._tally = Tally(route)
        self._flagged = False

    async def __aenter__(self) -> None:
        """Raises ClawError("store_unavailable"): then nothing may be sent."""
        exchange, attempt = self._exchange, self._attempt
        principal, route = exchange.principal, self._tally.route
        books = books_of(exchange)
        books.tallies[attempt.id] = self._tally
        await self._app.store.open_row(
            LedgerOpen(
                id=attempt.id,
                request_id=exchange.request_id,
                number=attempt.number,
                reason=attempt.reason,
                opened=time.time(),
                instance=exchange.instance,
                generation=exchange.generation,
                key=principal.key,
                user=exchange.user if exchange.user is not None else principal.user,
                team=principal.team,
                app=exchange.app if exchange.app is not None else principal.app,
                model=exchange.requested_model,
                provider=route.provider,
                provider_model=route.model,
                reserved_input=self._reserved,
                reserved_output=self._reserved_output,
            )
        )
        books.open[attempt.id] = self

    def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        return self._close(exc)  # no scope of its own: the core leaves every attempt shielded and bounded

    async def _close(self, exc: BaseException | None) -> None:
        attempt, books = self._attempt, books_of(self._exchange)
        outcome = self._outcome(exc)
        usage = self.reckon(outcome)
        books.open.pop(attempt.id, None)
        books.settle(self._exchange)
        source = usage.source if usage is not None else "none"
        self._app.count("clawproxy_ledger_rows_total", source=source, outcome=outcome)
        await self._app.store.close_row(
            LedgerClose(
                id=attempt.id,
                closed=time.time() if attempt.closed_at is None else attempt.closed_at,
                outcome=outcome,
                sent=attempt.sent,
                input_tokens=usage.input_tokens if usage is not None else 0,
                output_tokens=usage.output_tokens if usage is not None else 0,
                cached_tokens=usage.cached_tokens if usage is not None else None,
                reasoning_tokens=usage.reasoning_tokens if usage is not None else None,
                source=source,
            )
        )

    def reckon(self, outcome: str | None = None) -> Usage | None:
        """What the attempt comes to by now, kept in the books; None where it is free: never sent, or turned away unserved."""
        attempt, billed = self._attempt, books_of(self._exchange).billed
        if not attempt.sent or self._turned_away():
            billed.pop(attempt.id, None)  # by now it is known better than when it was reckoned before
            return None
        usage = billed[attempt.id] = self._reckon(self._tally.final or outcome in ("complete", "truncated"))
        return usage

    def _turned_away(self) -> bool:
        """The provider answered with an error status and nothing else, or is known not to have begun: none bills for that."""
        attempt = self._attempt
        if self._tally.size or self._reported() is not None:
            return False
        if isinstance(attempt.error, ProviderFault) and not attempt.error.sent:
            return True
        status = attempt.status
        if status is None and attempt.error is not None:
            status = attempt.error.details.provider_status
        return status is not None and status >= 300

    def _reported(self) -> Usage | None:
        return self._attempt.usage or self._tally.reported

    def _reckon(self, whole: bool) -> Usage:
        tally = self._tally
        said = self._reported()
        if said is None:
            said = _NOTHING
        elif whole and said.source == "measured" and figures.is_sane(said):
            return said
        usage = self._believed(said)
        given, taken = usage.input_tokens, usage.output_tokens
        measured = given is not None and taken is not None
        if given is None:
            given = figures.estimate(self._reserved, self._bytes_per_token)
        if taken is None or not whole:  # an early report of an answer that was cut knows less than what came after it
            taken, measured = max(taken or 0, figures.estimate(tally.size, self._bytes_per_token)), False
        return evolve(usage, input_tokens=given, output_tokens=taken, source="measured" if measured else "estimated")

    def _believed(self, said: Usage) -> Usage:
        provider = self._tally.route.provider
        limits = figures.bounds(self._request, self._tally.route, self._reserved, self._reserved_output)
        usage, clamped = figures.believed(said, limits)
        if clamped and not self._flagged:
            self._flagged = True
            self._app.count("clawproxy_usage_clamped_total", provider=provider)
            log.warning("provider %s reported absurd usage for attempt %s", provider, self._attempt.id)
        return usage

    def _outcome(self, exc: BaseException | None) -> str:
        attempt = self._attempt
        if attempt.outcome is not None:
            return attempt.outcome
        if attempt.error is not None:
            return attempt.error.kind.outcome
        if exc is None:
            return "complete"
        if isinstance(exc, ClawError):
            return exc.kind.outcome
        return "internal" if isinstance(exc, Exception) else "cancelled"
