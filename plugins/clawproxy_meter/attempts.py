"""One attempt's row: what was reserved, what came, what it comes to.

`exchange.state["meter"]` holds the exchange's `Books`: the tap finds the attempt's `Metered` there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Literal

from attrs import evolve

from clawproxy.config import PriceConfig
from clawproxy.context import App, Attempt, Exchange
from clawproxy.costs import cost_nano
from clawproxy.counting import Count, Limited, Running, only_text
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, End, Finish, Reasoning, Refused, Text, ToolCallDelta, UsageReport
from clawproxy.hookspecs import DONE
from clawproxy.messages import ChatRequest, Route, Usage
from clawproxy.stores.base import LedgerClose, LedgerOpen
from clawproxy_meter import figures
from clawproxy_meter.rules import most_cost

log = logging.getLogger("clawproxy.meter")

_NOTHING = Usage()
_FREE = Usage(0, 0)
AMBIGUOUS = "ambiguous"
"""A row's outcome, and nobody else's: see `_is_ambiguous`."""
Source = Literal["measured", "estimated", "none", "cache"]


class Books:
    """All attempts of one exchange, in the order in which they began."""

    __slots__ = ("attempts",)

    def __init__(self) -> None:
        self.attempts: list[Metered] = []

    def settle(self, exchange: Exchange) -> None:
        """Set `exchange.usage` and `exchange.cost_nano` to the sums of what is known by now."""
        for metered in self.attempts:
            if not metered.closed:
                metered.reckon()
        if len(self.attempts) == 1:  # nearly always
            exchange.usage, exchange.cost_nano = metered.billed, metered.cost
            return
        exchange.usage = figures.summed([metered.billed for metered in self.attempts if metered.billed is not None])
        exchange.cost_nano = self._cost()

    def _cost(self) -> int | None:
        """A sum with an unknown cost in it is not known."""
        total = None
        for metered in self.attempts:
            if metered.billed is not None:
                if metered.cost is None:
                    return None
                total = metered.cost if total is None else total + metered.cost
        return total


def books_of(exchange: Exchange) -> Books:
    books: Books | None = exchange.state.get("meter")
    if books is None:
        books = exchange.state["meter"] = Books()
    return books


def metered_of(exchange: Exchange, attempt: Attempt) -> Metered | None:
    """What stands in the books for this attempt; None where it was never opened."""
    attempts = books_of(exchange).attempts
    if attempts and attempts[-1].attempt is attempt:  # nearly always
        return attempts[-1]
    return next((metered for metered in attempts if metered.attempt is attempt), None)


class Metered:
    """One attempt: what was reserved, what the provider delivered (`see`), and what that comes to (`billed`).

    It is the attempt's context, too: entering opens the row, leaving closes it. Left shielded and bounded by the core, so both
    decide synchronously and hand out the store's own coroutine. Once closed it knows its exchange no more.
    """

    __slots__ = (
        "_app",
        "_believed_whole",
        "_books",
        "_bytes_per_token",
        "_default_output",
        "_exchange",
        "_final",
        "_flagged",
        "_price",
        "_reported",
        "_request",
        "_reserved",
        "_reserved_output",
        "_running",
        "_size",
        "_tier",
        "attempt",
        "billed",
        "closed",
        "cost",
        "route",
    )

    def __init__(
        self,
        app: App,
        exchange: Exchange,
        request: ChatRequest,
        route: Route,
        attempt: Attempt,
        bytes_per_token: float,
        price: PriceConfig | None = None,
        count: Count | None = None,
        default_output: int = 4096,
    ) -> None:
        """`default_output`: how long an answer is taken for, in tokens, where nobody says; it only counts for the reservation."""
        self._app = app
        self._exchange = exchange
        self._request = request
        self.attempt = attempt
        self._bytes_per_token = bytes_per_token
        self._default_output = default_output
        self._price = price
        self._running: Running | None = None
        """Counts the answer, where tokens are counted and not bytes."""
        output: int | None = 0  # vectors and counts are no tokens
        if route.recorded is not None:
            self._reserved = 0
        else:
            if count is not None and only_text(request):
                self._running = Running(count)
                self._reserved = figures.prompt_bound(request, route.context_tokens, Limited(count))
            else:
                self._reserved = figures.prompt_bound(request, route.context_tokens)
            if request.operation == "chat":
                output = figures.output_bound(request, route)
        self._reserved_output = output
        tier = request.extra.get("service_tier") if request.extra else None
        self._tier = tier if isinstance(tier, str) else None
        self._books = books_of(exchange)
        self._flagged = False
        self._size = 0
        """Bytes of content the provider sent."""
        self._reported: Usage | None = None
        """What it reported last, in its answer."""
        self._final = False
        """It said that its answer is whole, so its last report counts."""
        self._believed_whole: Usage | None = None
        """A whole answer's report that was looked at and needs no second look: it is what was billed."""
        self.route = route
        self.billed: Usage | None = None
        """What it comes to; None where it is free: never sent, or turned away unserved."""
        self.cost: int | None = None
        """Nano-dollars of `billed`; None where there is no price for it."""
        self.closed = False

    # --- what the tap sees ---------------------------------------------------------------------------------------------------

    def see(self, batch: Batch) -> None:
        events = batch.events
        if len(events) > 8 and self._running is None:  # tokens that were read together, between what begins and ends an answer
            first, end = 0, len(events)
            while first < end and type(events[first]) is not Text:
                first += 1
            while first < end and type(events[end - 1]) is not Text:
                end -= 1
            try:
                text = "".join([event.text for event in events[first:end]])  # type: ignore[union-attr]
            except AttributeError:
                pass  # something else is among them: one by one, then
            else:
                self._size += figures.text_bytes(text)
                events = (*events[:first], *events[end:])
        for event in events:
            kind = type(event)
            if kind is Text or kind is Reasoning or kind is Refused:
                text = event.text  # type: ignore[union-attr]
                self._size += len(text) if text.isascii() else figures.text_bytes(text)
                if self._running is not None:
                    self._running.add(text)
            elif kind is Finish or kind is End:
                self._final = True
            elif kind is UsageReport:
                self._reported = event.usage  # type: ignore[union-attr]
            elif isinstance(event, ToolCallDelta):
                self._size += figures.text_bytes(event.arguments) + figures.text_bytes(event.name or "")
                if self._running is not None:
                    self._running.add((event.name or "") + event.arguments)

    def end(self) -> None:
        """Before the transport reports usage to its client; leaving the attempt settles it finally."""
        if not self.closed:
            self._books.settle(self._exchange)

    # --- the row -------------------------------------------------------------------------------------------------------------

    def __aenter__(self) -> Awaitable[None]:
        """Raises ClawError("store_unavailable"): then nothing may be sent."""
        self._books.attempts.append(self)  # free until something is sent
        return self._app.store.open_row(self._row(self._reserved_output))

    def _row(self, output: int | None) -> LedgerOpen:
        """With an answer of so many tokens at most."""
        exchange, attempt, route = self._exchange, self.attempt, self.route
        principal, user, app = exchange.principal, exchange.user, exchange.app
        return LedgerOpen(  # by place, with every name beside it: 2.0 -> 0.5 us
            attempt.id,
            exchange.request_id,
            attempt.number,
            attempt.reason,
            time.time(),  # opened
            exchange.instance,
            exchange.generation,
            principal.key,
            principal.user if user is None else user,
            principal.team,
            principal.app if app is None else app,
            exchange.requested_model,
            route.provider,
            route.model,
            self._reserved,
            output,
            self._most_nano(output),
        )

    def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Awaitable[None]:
        outcome = self.attempt.outcome or self._outcome(exc)
        rest = self.attempt.rest
        if rest is None:
            return self._finish(outcome)
        self.reckon(outcome)
        self._books.settle(self._exchange)  # by what is known now: its client is told before the rest is read
        self._exchange.notice("draining", "The provider is read on for its figures: the bill may differ from this receipt.")
        rest.then(lambda: self._finish(outcome))
        return DONE

    def _finish(self, outcome: str) -> Awaitable[None]:
        """Close the row, once."""
        attempt = self.attempt
        usage = self.reckon(outcome)
        self.closed = True
        if usage is not self._exchange.usage or len(self._books.attempts) > 1:  # else `end` has said all
            self._books.settle(self._exchange)
        source: Source = usage.source if usage is not None else "none"
        spent = _FREE if usage is None or source == "cache" else usage
        self._app.count("clawproxy_ledger_rows_total", source=source, outcome=outcome)
        closing = self._close(
            LedgerClose(
                attempt.id,
                time.time() if attempt.closed_at is None else attempt.closed_at,
                AMBIGUOUS if attempt.error is not None and self._is_ambiguous() else outcome,
                attempt.sent,
                spent.input_tokens,
                spent.output_tokens,
                spent.cached_tokens,
                spent.reasoning_tokens,
                source,
                self.cost if usage is not None else 0,  # free, whatever the price
                spent.cache_write_tokens,
                spent.cache_write_1h_tokens,
                spent.cached_audio_tokens,
                spent.audio_input_tokens,
                spent.audio_output_tokens,
                spent.image_input_tokens,
                spent.image_output_tokens,
                spent.service_tier,
                None if self._price is None or spent is _FREE else self._price.origin,
            )
        )
        # the exchange has its books, and they have this: as a circle all of a request would wait for the collector
        del self._exchange, self._books
        return closing

    def _most_nano(self, output: int | None) -> int | None:
        """What the attempt may cost at most, with an answer of so many tokens; None where there is no price."""
        price = self._price
        if price is None:
            return None
        if self.route.recorded is not None or self._request.operation == "count_tokens":
            return 0
        return most_cost(self._reserved, self._default_output if output is None else output, price, self._tier)

    def _close(self, row: LedgerClose) -> Awaitable[None]:
        return self._app.store.close_row(row)

    # --- what it comes to ----------------------------------------------------------------------------------------------------

    def reckon(self, outcome: str | None = None) -> Usage | None:
        """What the attempt comes to by now: `billed`. By the end it is known better than when it was reckoned before. Counting
        tokens uses none."""
        attempt = self.attempt
        said = attempt.usage or self._reported
        if said is not None and said is self._believed_whole:
            return said  # a whole answer's own figures: nothing that comes later is better
        if self.route.recorded is not None:
            self.billed, self.cost = evolve(self._reported or _NOTHING, source="cache"), 0
        elif not attempt.sent or self._request.operation == "count_tokens" or (said is None and self._turned_away()):
            self.billed = self.cost = None
        else:
            rest = attempt.rest
            if rest is not None and rest.whole:
                self._final = True
            whole = self._final or (outcome in ("complete", "truncated") and attempt.cut is None)
            before = self.billed
            if whole and said is not None and said.source == "measured" and figures.is_sane(said):
                self.billed = self._believed_whole = said
            else:
                self.billed = self._guess(said, whole)
            if self._price is not None and self.billed is not before:
                self.cost = cost_nano(self.billed, self._price)
        return self.billed

    def _turned_away(self) -> bool:
        """The provider answered with an error status and nothing else, or is known not to have begun: none bills for that."""
        attempt = self.attempt
        if self._size:
            return False
        if isinstance(attempt.error, ProviderFault) and not attempt.error.sent:
            return True
        status = attempt.status
        if status is None and attempt.error is not None:
            status = attempt.error.details.provider_status
        return status is not None and status >= 300

    def _guess(self, said: Usage | None, whole: bool) -> Usage:
        """What is missing or not to be believed is estimated."""
        usage = self._believed(said or _NOTHING)
        given, taken = usage.input_tokens, usage.output_tokens
        measured = given is not None and taken is not None
        if given is None:
            given = self._reserved if self._running else figures.estimate(self._reserved, self._bytes_per_token)
        if taken is None or not whole:  # an early report of an answer that was cut knows less than what came after it
            size = self._size
            counted = 0
            if self._running is not None:
                counted, size = self._running.tokens, 0
            if self.attempt.rest is not None:
                size += self.attempt.rest.size  # came after the taps had ended
            counted += figures.estimate(size, self._bytes_per_token)
            taken, measured = max(taken or 0, counted), False
        return evolve(usage, input_tokens=given, output_tokens=taken, source="measured" if measured else "estimated")

    def _believed(self, said: Usage) -> Usage:
        provider = self.route.provider
        limits = figures.bounds(self._request, self.route, self._reserved, self._reserved_output)
        usage, clamped = figures.believed(said, limits)
        if clamped and not self._flagged:
            self._flagged = True
            self._app.count("clawproxy_usage_clamped_total", provider=provider)
            log.warning("provider %s reported absurd usage for attempt %s", provider, self.attempt.id)
        return usage

    def _is_ambiguous(self) -> bool:
        """The provider took the request and broke off without a byte of an answer: nobody knows what it did, or bills for."""
        attempt, error = self.attempt, self.attempt.error
        return error is not None and error.slug == "provider_error.cut" and attempt.sent and attempt.status is None

    def _outcome(self, exc: BaseException | None) -> str:
        """Where nobody has said."""
        if self.attempt.error is not None:
            return self.attempt.error.kind.outcome
        if exc is None:
            return "complete"
        if isinstance(exc, ClawError):
            return exc.kind.outcome
        return "internal" if isinstance(exc, Exception) else "cancelled"
