"""All accounts of one process and what its attempts hold of them. Synchronous, no I/O: the embedded stores decide by it.

Rule 1: looking and taking are apart (`plan`, `hold`), with nothing awaited between, so that a store can write down what is taken
        before it is taken, and take nothing where that fails.
Rule 2: time never goes back. Every time given is the latest seen at least: a clock that is set back gives no window twice.
Rule 3: of what an attempt used, at most what it held is charged (base.py, rule 5), to the periods it was held in.
Rule 4: an attempt's hold is taken once and let go once. Ids of those that ended last are remembered for callers who repeat
        themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from clawproxy.stores.base import UNLIMITED, Account, Charge, Claim, Shortage, Standing, Unit, Window
from clawproxy.stores.counters import Counter, make_counter
from clawproxy.stores.records import MAX_NANO, MAX_TEXT, Entry
from clawproxy.stores.windows import FOREVER, LAST_TIME, period_of

REMEMBERED = 8192
"""Ids of ended attempts: so many at least, and twice as many at most."""
FEW = 1024
"""Below this many accounts none is forgotten."""


class Taken(Struct, frozen=True, gc=False):
    """A part of a hold."""

    counter: Counter
    period: int
    amount: int
    limited: bool


class Hold(Struct, frozen=True, gc=False):
    """All that an attempt holds."""

    since: float
    taken: list[Taken]
    is_plain: bool = True
    """It was never topped up: no counter is there twice."""


class Accounts:
    def __init__(self, now: float = 0.0) -> None:
        """`now`: a time that has been seen already."""
        self._counters: dict[tuple[str, Unit, Window, bool], Counter] = {}
        self.held: dict[str, Hold] = {}
        """By the attempt's id. Read it freely."""
        self._ended: set[str] = set()
        self._ended_before: set[str] = set()
        """Two halves: the older one is forgotten whole. No order is kept of each (0.6 -> 0.1 us)."""
        self.now = now
        """The latest time seen. Read it freely."""
        self._tidy_at = FEW

    def knows(self, id_: str) -> bool:
        """Whether this attempt holds something, or did just now."""
        return id_ in self.held or id_ in self._ended or id_ in self._ended_before

    # --- taking --------------------------------------------------------------------------------------------------------------

    def plan(self, claims: Sequence[Claim], at: float | None = None) -> Shortage | list[Taken]:
        """What is to be taken for all `claims` at the time `at` (None: the latest seen), or why it is too much. Takes nothing."""
        now = self.now
        if at is not None and now < at < LAST_TIME:
            now = self.now = at
        taken: list[Taken] = []
        short: Shortage | None = None
        counters = self._counters
        for claim in claims:
            counter = counters.get((claim.scope, claim.unit, claim.window, claim.sliding)) or self._new_counter(claim)
            if now >= counter.ends:
                counter.roll(now)
            amount, limit = claim.amount, claim.limit
            if not 0 <= amount <= MAX_NANO:
                amount = _clamped(amount)
            if counter.used + counter.held + amount > limit:
                short = _later(short, Shortage(claim, counter.used, counter.held, counter.frees_at(amount, limit)))
                continue
            limited = limit < UNLIMITED
            part = Taken(counter, counter.period, amount, limited)
            if not taken or not _merged(part, taken):
                taken.append(part)
        return taken if short is None else short

    def hold(self, id_: str, taken: list[Taken]) -> None:
        """Takes what was planned, for an attempt that may hold something already."""
        for part in taken:
            counter = part.counter
            counter.holders += 1
            if type(counter) is Counter and part.period == counter.period:  # nearly all: without the call
                counter.held += part.amount
            else:
                counter.hold(part.period, part.amount)
        held = self.held.get(id_)
        if held is None:
            self.held[id_] = Hold(self.now, taken)
        else:
            held.taken.extend(taken)  # in place: an answer of many MiB is topped up ten thousands of times
            self.held[id_] = Hold(held.since, held.taken, False)

    def _new_counter(self, of: Claim | Charge) -> Counter:
        """That of an account that is not known by this name: made, if need be."""
        key = Account(_bounded(of.scope), of.unit, of.window, of.sliding)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= self._tidy_at:
                self._tidy()
            counter = self._counters[key] = make_counter(key)
        return counter

    def _tidy(self) -> None:
        """Forget the accounts whose windows are over. Done when their number has doubled: no account pays for more than two."""
        now = self.now
        self._counters = {key: counter for key, counter in self._counters.items() if not counter.is_over(now)}
        self._tidy_at = max(FEW, 2 * len(self._counters))

    # --- ending --------------------------------------------------------------------------------------------------------------

    def end(self, id_: str, charges: Sequence[Charge]) -> list[Entry] | None:
        """Lets go of all the attempt holds and charges its accounts; what the books are to say of it. None where it holds
        nothing, or does no longer."""
        hold = self.held.pop(id_, None)
        if hold is None:
            return None
        ended = self._ended
        ended.add(id_)
        if len(ended) >= REMEMBERED:
            self._ended, self._ended_before = set(), ended
        taken = hold.taken
        entries: list[Entry] = []
        if hold.is_plain and _are_of(charges, taken):  # nearly always: half of the time
            at = 0
            for charge in charges:
                _end_plainly(charge, taken[at], entries)
                at += 1  # noqa: SIM113
            return entries
        merged: dict[Counter, Charge] = {}
        counters = self._counters
        for charge in charges:
            counter = counters.get((charge.scope, charge.unit, charge.window, charge.sliding)) or self._new_counter(charge)
            before = merged.get(counter)
            if before is None or before.amount + before.overrun < charge.amount + charge.overrun:
                merged[counter] = charge
        for counter, charge in merged.items():
            if charge.unit != "concurrent":
                self._charge(hold, counter, charge, entries)
        for part in taken:
            part.counter.holders -= 1
            part.counter.hold(part.period, -part.amount)
        return entries

    def _charge(self, hold: Hold, counter: Counter, charge: Charge, entries: list[Entry]) -> None:
        rest, overrun = charge.amount, charge.overrun
        if not 0 <= rest <= MAX_NANO:
            rest = _clamped(rest)
        if not 0 <= overrun <= MAX_NANO:
            overrun = _clamped(overrun)
        last: Taken | None = None
        limited = False
        for part in hold.taken:
            if part.counter is not counter:
                continue
            if last is not None:  # it was topped up: the earlier parts are used up first
                used = min(rest, last.amount)
                rest -= used
                _book(counter, last.period, used, 0, entries)
            last = part
            limited = limited or part.limited
        if last is None:
            account = counter.account
            if self.now >= counter.ends:
                counter.roll(self.now)
            period = period_of(account.window, account.sliding, hold.since)
        else:
            period = last.period
            if limited and rest > last.amount:
                overrun += rest - last.amount
                rest = last.amount
        _book(counter, period, rest, overrun, entries)

    # --- asking --------------------------------------------------------------------------------------------------------------

    def standing(self, accounts: Iterable[Account], now: float) -> list[Standing]:
        now = max(now, self.now)
        out: list[Standing] = []
        for account in accounts:
            counter = self._counters.get(account._replace(scope=_bounded(account.scope))) or make_counter(account)
            used, held, overrun, resets_at = counter.at(now)
            out.append(Standing(account, used, held, overrun, resets_at))
        return out

    def restore(self, account: Account, period: int, used: int, overrun: int) -> None:
        """What was charged before this process began, in a period that counts still."""
        self._known(account).add(period, used, 0, overrun)

    def restore_held(self, entries: Iterable[Entry]) -> None:
        """What an attempt of another process holds."""
        for entry in entries:
            self._known(Account(entry.scope, entry.unit, entry.window, entry.sliding)).add(entry.period, 0, entry.amount)

    def _known(self, account: Account) -> Counter:
        counter = self._counters.get(account)
        if counter is None:
            counter = self._counters[account] = make_counter(account)
            counter.roll(self.now)
        return counter


def _are_of(charges: Sequence[Charge], taken: Sequence[Taken]) -> bool:
    """Whether each charge is of the part of the hold in its place."""
    if len(charges) != len(taken):
        return False
    at = 0
    for charge in charges:
        counter = taken[at].counter
        at += 1  # noqa: SIM113  # `enumerate` and `zip` cost more than what is done here
        if charge.scope != counter.scope or charge.unit != counter.unit or charge.window != counter.window:
            return False
        if charge.sliding is not counter.sliding:
            return False
    return True


def _end_plainly(charge: Charge, part: Taken, entries: list[Entry]) -> None:
    counter, period, amount = part.counter, part.period, part.amount
    counter.holders -= 1
    if counter.unit == "concurrent":
        counter.hold(period, -amount)
        return
    used, overrun = charge.amount, charge.overrun
    if not 0 <= used <= MAX_NANO:
        used = _clamped(used)
    if not 0 <= overrun <= MAX_NANO:
        overrun = _clamped(overrun)
    if part.limited and used > amount:
        overrun += used - amount
        used = amount
    if type(counter) is not Counter:
        counter.add(period, used, -amount, overrun)
    elif period == counter.period:
        counter.used += used
        counter.held -= amount
        counter.overrun += overrun
    if used or overrun:
        entries.append(_entry(counter, period, used, overrun))


def _merged(part: Taken, taken: list[Taken]) -> bool:
    """Whether its counter is there already: it is the same use, so the larger amount counts."""
    for index, other in enumerate(taken):
        if other.counter is part.counter:
            taken[index] = Taken(part.counter, part.period, max(other.amount, part.amount), other.limited or part.limited)
            return True
    return False


def held_entries(taken: Iterable[Taken]) -> list[Entry]:
    """The books' word for what is held. Things at the same time end with the process, and are not written down."""
    entries: list[Entry] = []
    for part in taken:
        counter = part.counter
        if counter.unit != "concurrent":
            entries.append(_entry(counter, part.period, part.amount))  # a comprehension of one costs twice this
    return entries


def _entry(counter: Counter, period: int, amount: int, overrun: int = 0) -> Entry:
    return Entry(counter.scope, counter.unit, counter.window, counter.sliding, period, amount, overrun)


def _book(counter: Counter, period: int, used: int, overrun: int, entries: list[Entry]) -> None:
    if used or overrun:
        counter.add(period, used, 0, overrun)
        entries.append(_entry(counter, period, used, overrun))


def _later(one: Shortage | None, other: Shortage) -> Shortage:
    if one is None:
        return other
    return other if (other.frees_at or FOREVER) > (one.frees_at or FOREVER) else one


def _clamped(amount: int) -> int:
    return max(0, min(int(amount), MAX_NANO))


def _bounded(scope: str) -> str:
    """As the books can keep it."""
    return scope[:MAX_TEXT].encode("utf-8", "replace").decode()
