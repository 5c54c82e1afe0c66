"""An attempt that comes under budgets: what it reserves before it is sent, tops up or is cut at while it streams, and is charged.

Rule 1: the upper bound of all that it may use is held, of every account at once or of none, before anything is sent. The answer's
        length is part of it, so the provider is told that length.
Rule 2: where less is left than that, but enough to be of use, the answer is given what is left, and the client is told.
Rule 3: what streams is counted as it comes: in bytes, of which no token has fewer than one (`strict`), or as tokens of the usual
        length (`tight`). At the edge of what is held more is held, or the answer is cut.
Rule 4: what was measured is charged. The store charges no more than was held (`strict`); what `tight` held too little is charged
        too. The rest is an overrun, and is told.
Rule 5: an attempt beside another one (`hedge`) is not worth waiting for, nor a shorter answer: it has room for all of it, or is
        not made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from attrs import evolve
from msgspec.structs import replace

from clawproxy.config import PriceConfig
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Event, Finish, Reasoning, Refused, Text
from clawproxy.hookspecs import DONE, Detour
from clawproxy.stores.base import UNLIMITED, Charge, Claim, LedgerClose, LedgerOpen, Shortage
from clawproxy_meter import figures
from clawproxy_meter.attempts import Metered
from clawproxy_meter.budgets import Budgets, Watch, log
from clawproxy_meter.queues import TICKET, Ticket, leave_line
from clawproxy_meter.rules import AT_ONCE, OF_OUTPUT, TIGHT_BYTES, Applied, Cover, Need, Rule, claim_of

if TYPE_CHECKING:
    from clawproxy.context import App, Attempt, Exchange
    from clawproxy.counting import Count
    from clawproxy.messages import ChatRequest, Route

LEAST_OUTPUT: Final = 16
"""Tokens of an answer below which it is of no use; some providers accept no lower limit."""
STEP: Final = 1024
"""Tokens held at a time while an answer streams beyond what was held."""
TRIES: Final = 8


class Budgeted(Metered):
    """A `Metered` attempt that comes under budgets."""

    __slots__ = (
        "_applied",
        "_budgets",
        "_cover",
        "_edge",
        "_free",
        "_held",
        "_need",
        "_output",
        "_ticket",
        "_watched",
        "is_counted",
    )

    def __init__(
        self,
        app: App,
        exchange: Exchange,
        request: ChatRequest,
        route: Route,
        attempt: Attempt,
        bytes_per_token: float,
        price: PriceConfig | None,
        count: Count | None,
        budgets: Budgets,
        cover: Cover,
        default_output: int,
    ) -> None:
        super().__init__(app, exchange, request, route, attempt, bytes_per_token, price, count, default_output)
        self._budgets = budgets
        self._cover = cover
        self._applied = cover.applied
        self._held: list[int] = []
        """Of each budget that applies, in their order."""
        counted = self._running is not None  # what is reserved for the row are the model's own tokens then
        given = figures.prompt_bound(request, route.context_tokens) if counted else self._reserved
        self._need = Need(given, self._reserved if counted else -(-given // TIGHT_BYTES), price, self._tier)
        self._free = route.recorded is not None or request.operation == "count_tokens"
        self._output = self._edge = 0
        """Tokens of the answer that are held, and the bytes of it up to which they last."""
        if cover.counts_answer and not self._free:
            self._output = self._longest(default_output)
        self.is_counted = self._output > 0
        self._watched: list[Watch] = []
        """Those that may have something to tell when this attempt is charged."""
        ticket: Ticket | None = exchange.state.get(TICKET)
        self._ticket = None if ticket is None or ticket.has_left else ticket

    def _longest(self, default: int) -> int:
        """Tokens that the answer may have: what was asked for, where the model can give that much."""
        request, route = self._request, self.route
        asked = self._reserved_output
        if asked is None:
            return default + (request.reasoning_budget or 0)
        most = route.max_output_tokens or route.context_tokens
        return asked if most is None else min(asked, most * figures.answers(request))

    # --- before anything is sent ---------------------------------------------------------------------------------------------

    def __aenter__(self) -> Awaitable[None]:
        """Raises ClawError("budget.exhausted"), or Detour; else as `Metered` does."""
        row = self._row(self._output or self._reserved_output)
        self._books.attempts.append(self)
        try:
            if self._budgets.lines.waiting:
                self._queue_up()
            answer = self._app.store.reserve(row, self._claims(row))
            if answer is DONE:
                self._granted(row.opened)
                return DONE
        except BaseException:
            self._books.attempts.remove(self)
            raise
        return self._reserve(row, answer)

    async def _reserve(self, row: LedgerOpen, answer: Awaitable[Shortage | None]) -> None:
        try:
            asked, tries = self._output, 0
            while (short := await answer) is not None:
                tries += 1
                if tries > TRIES:
                    raise self._refused(short)
                self._output = self._less(short)
                row = replace(row, reserved_output=self._output, reserved_nano=self._most_nano(self._output))
                answer = self._app.store.reserve(row, self._claims(row))
            if self._output < asked:
                self._tell_capped()
            self._granted(row.opened)
        except BaseException:
            self._books.attempts.remove(self)
            raise

    def _claims(self, row: LedgerOpen) -> list[Claim]:
        nano = row.reserved_nano if self._running is None else None  # then it is what `strict` holds, too
        held: list[int] = []
        claims: list[Claim] = []
        counted = self._exchange.state.get("budgets")
        for rule, scope in self._applied:
            unit = rule.unit
            if unit == "requests":  # the attempts of a request are one request
                amount = 0 if counted is not None and (rule.name, scope) in counted else 1
            elif unit == "concurrent":
                amount = 1
            elif unit == "nano" and nano is not None and not rule.tight:
                amount = nano
            else:
                amount = 0 if self._free else self._need.amount(rule, self._output)
            held.append(amount)
            claims.append(Claim(scope, unit, rule.window, rule.sliding, amount, rule.hard, rule.name))
        self._held = held
        return claims

    def _less(self, short: Shortage) -> int:
        """How long the answer may be, where that is of use. Raises what the budget's action is."""
        rule, _ = self._applied_of(short)
        room = short.claim.limit - short.used - short.held
        if rule.action == "fallback" or self.attempt.reason == "hedge":
            raise self._refused(short)
        if rule.action == "throttle":
            if short.claim.amount <= short.claim.limit:
                raise self._refused(short)
            room = short.claim.limit  # it never fits as it is: as much as the limit lets through at all
        output = self._need.longest(rule, room, self._output)
        least = max(LEAST_OUTPUT, (self._request.reasoning_budget or 0) + 1)
        if output < min(least, self._output) or output >= self._output:
            raise self._refused(short)
        return output

    def _applied_of(self, short: Shortage) -> Applied:
        name, scope = short.claim.name, short.claim.scope
        return next(each for each in self._applied if each[0].name == name and each[1] == scope)

    def _granted(self, now: float) -> None:
        if self._ticket is not None:
            leave_line(self._exchange)
        if self._output:
            self._reserved_output = self._output
            self.attempt.output_limit = output = self._output
            if self._request.extra:  # several answers may be asked for
                self.attempt.output_limit = max(1, output // figures.answers(self._request))
            self._edge = self._bytes(output)
        if self._cover.watched:
            self._watch(now)

    def _refused(self, short: Shortage) -> ClawError:
        rule, scope = self._applied_of(short)
        now = time.time()
        details: dict[str, int] = {}
        until = ""
        if short.frees_at is not None:
            details["retry_after_ms"] = max(1000, math.ceil((short.frees_at - now) * 1000))
            until = f" There is room again at {datetime.fromtimestamp(short.frees_at, UTC):%Y-%m-%dT%H:%M:%SZ}."
        words = f"The budget `{rule.name}` ({rule.words}) is used up.{until}"
        error = ClawError("budget.exhausted", words, policy=rule.name, **details)
        if self.attempt.reason == "hedge":
            return error
        self._app.count("clawproxy_budget_refused_total", budget=rule.name, action=rule.action)
        if rule.action != "throttle" and rule.unit != "concurrent":
            self._budgets.tell("exhausted", rule, scope, short.used + short.held)
        if rule.action == "fallback":
            return Detour(error, model=rule.model)
        if rule.action == "throttle":
            return Detour(error, turn=self._take_ticket(rule, scope, short.frees_at))
        return error

    # --- waiting for room ----------------------------------------------------------------------------------------------------

    def _take_ticket(self, rule: Rule, scope: str, frees_at: float | None) -> Ticket:
        line, ticket = self._budgets.lines.line(rule.account(scope)), self._ticket
        if ticket is not None and ticket.line is line:
            ticket.again(frees_at)
            return ticket
        if ticket is not None:
            ticket.leave()
        self._ticket = self._exchange.state[TICKET] = Ticket(line, self._exchange.principal.key, frees_at)
        return self._ticket

    def _queue_up(self) -> None:
        """Nobody overtakes those who wait already. Raises Detour."""
        for rule, scope in self._applied:
            line = self._budgets.lines.waiting.get(rule.account(scope))
            if line is None or rule.action != "throttle" or (self._ticket is not None and line is self._ticket.line):
                continue
            if rule.unit != "requests" or (rule.name, scope) not in self._exchange.state.get("budgets", ()):
                error = ClawError("budget.exhausted", policy=rule.name)
                if self.attempt.reason == "hedge":
                    raise error
                raise Detour(error, turn=self._take_ticket(rule, scope, None))

    # --- while it streams ----------------------------------------------------------------------------------------------------

    def change(self, events: Sequence[Event]) -> Sequence[Event]:
        """The tap (`Transform.change`)."""
        before = self._size
        self.see(Batch(events))
        if self._size <= self._edge:
            return events
        said = self._reported
        if self._final and said is not None and type(said.output_tokens) is int and 0 <= said.output_tokens <= self._output:
            return events  # the whole answer, and its provider has counted it
        if self._top_up(self._tokens(self._size) - self._output):
            return events
        return self._cut(events, before)

    def _tokens(self, size: int) -> int:
        return size if self._cover.strict else math.ceil(size / self._bytes_per_token)

    def _bytes(self, tokens: int) -> int:
        return tokens if self._cover.strict else math.floor(tokens * self._bytes_per_token)

    def _top_up(self, need: int) -> bool:
        for extra in (max(need, STEP), need) if need < STEP else (need,):
            claims, more = [], []
            for applied in self._applied:
                amount = self._need.more(applied[0], self._output, extra) if applied[0].unit in OF_OUTPUT else 0
                more.append(amount)
                if applied[0].unit in OF_OUTPUT:
                    claims.append(claim_of(applied, amount))
            if self._app.store.top_up(self.attempt.id, claims) is DONE:
                self._held = [held + added for held, added in zip(self._held, more, strict=True)]
                self._output += extra
                self._edge = self._bytes(self._output)
                return True
        return False

    def _cut(self, events: Sequence[Event], before: int) -> Sequence[Event]:
        """What may still be delivered, and a proper end."""
        left = max(0, self._edge - before)
        kept: list[Event] = []
        for event in events:
            if isinstance(event, Text | Reasoning | Refused):
                size = figures.text_bytes(event.text)
                if size > left:
                    text = event.text.encode("utf-8", "surrogatepass")[:left].decode("utf-8", "ignore")
                    if text:
                        kept.append(evolve(event, text=text))
                    break
                left -= size
            elif not isinstance(event, Finish | End):
                size = figures.other_bytes(event)
                if size > left:
                    break
                left -= size
            else:
                break
            kept.append(event)
        self.attempt.cut = "budget"
        self._exchange.notice("budget_cut", "The budget is used up: the answer ends here.", budgets=self._names())
        self._app.count("clawproxy_budget_cuts_total", provider=self.route.provider)
        return [*kept, Finish("budget"), End()]

    def _names(self) -> list[str]:
        return [rule.name for rule, _ in self._applied if rule.unit in OF_OUTPUT and rule.action != "notify"]

    def finish_tap(self) -> Sequence[Event]:
        """The tap's end (`Transform.end`)."""
        self.end()
        return ()

    def _tell_capped(self) -> None:
        words = f"Little is left of the budget: the answer may have {self._output} tokens."
        self._exchange.notice("budget_capped", words, max_tokens=self._output, budgets=self._names())

    # --- what it comes to ----------------------------------------------------------------------------------------------------

    def _close(self, row: LedgerClose) -> Awaitable[None]:
        charges: list[Charge] = []
        billed = None if self.route.recorded is not None else self.billed
        given, taken = (0, 0) if billed is None else (billed.input_tokens or 0, billed.output_tokens or 0)
        for rule, scope in self._applied:
            unit, held = rule.unit, self._held[len(charges)]
            if unit == "requests":
                amount = self._counts(rule, scope)
            elif unit == "concurrent" or billed is None:
                amount = 0
            else:
                if unit == "nano":
                    amount = held if self.cost is None else self.cost
                else:
                    amount = given + taken if unit == "tokens" else given if unit == "input_tokens" else taken
                if amount > held:
                    self._overran(rule, scope, amount, held)
            charges.append(Charge(scope, unit, rule.window, rule.sliding, amount))
        closing = self._app.store.close_row(row, charges)
        lines = self._budgets.lines
        if lines.waiting:
            for rule, scope in self._applied:
                lines.wake(rule.account(scope))
        for watch in self._watched:
            self._look(watch, row.closed, 0)
        return closing

    def _counts(self, rule: Rule, scope: str) -> int:
        """How many requests it is."""
        if not self.attempt.sent and self.route.recorded is None:
            return 0
        counted = self._exchange.state.setdefault("budgets", set())
        if (rule.name, scope) in counted:  # by another attempt, before or beside this one
            return 0
        counted.add((rule.name, scope))
        return 1

    def _overran(self, rule: Rule, scope: str, amount: int, held: int) -> None:
        """The provider reports more than was held. What `tight` held too little is charged all the same."""
        if rule.tight:
            claim = replace(claim_of((rule, scope), amount - held), limit=UNLIMITED)
            with suppress(ClawError):  # what can not be written down is an overrun, and no reason to leave the row open
                if self._app.store.top_up(self.attempt.id, [claim]) is DONE:
                    return
        if rule.action == "notify":
            return
        self._app.count("clawproxy_budget_overruns_total", budget=rule.name, provider=self.route.provider)
        words = "budget %s: attempt %s used %d of %s beyond the %d that were held"
        log.warning(words, rule.name, self.attempt.id, amount - held, rule.unit, held)
        self._budgets.tell("overrun", rule, scope, amount)

    # --- telling -------------------------------------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        for (rule, scope), held in zip(self._applied, self._held, strict=True):
            if rule.soft is None and rule.action != "notify":
                continue
            watch = self._budgets.watch(rule, scope)
            if watch.holds(held, now):
                self._watched.append(watch)
                self._look(watch, now, held if rule.unit in AT_ONCE else 0, opening=True)

    def _look(self, watch: Watch, now: float, own: int, *, opening: bool = False) -> None:
        """Tell once where the account has passed something. When an attempt begins its client can still be told."""
        found = watch.look(self._budgets, now, own)
        if found is None:
            return
        what, standing, used = found
        rule = watch.rule
        if watch.first(what):
            self._budgets.alert(what, rule, watch.scope, used)
        if opening and watch.first(f"{what} notice"):
            code = "budget_soft_limit" if what == "soft" else "budget_limit"
            share = f"{rule.soft / rule.limit:.0%} of" if what == "soft" and rule.soft is not None and rule.limit else "all of"
            words = f"The budget `{rule.name}` ({rule.words}) has come to {share} its limit."
            details: dict[str, object] = {"budget": rule.name, "used": used, "limit": rule.limit, "unit": rule.unit}
            if standing.resets_at is not None:
                details["resets_at"] = standing.resets_at
            self._exchange.notice(code, words, **details)
