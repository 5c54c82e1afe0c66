"""What is held and charged, in the database: folded with the attempts, read at start, and settled for those who left.

    holds     what attempts under way hold, as the journal said it; a top-up is a row of its own
    totals    what was charged, by account and period: start reads these, not the ledger

Rule 1: all of it changes in the transactions that fold journals, so that totals are the sum of what was folded.
Rule 2: a closing charges only where its hold is there, and takes it away. Whatever is folded twice is charged once.
Rule 3: whoever has the lock at start owns no attempt yet: all that is open then was left behind by a crash. It is closed as
        `orphaned` and charged what it held, marked as estimated: it may have been used, and nobody knows.

Blocking functions of a connection; those that write are called inside a transaction. They raise sqlite3.Error.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence

import msgspec

from clawproxy.stores.accounts import Accounts
from clawproxy.stores.base import Account, Standing, Total, Window
from clawproxy.stores.records import Entry, Values
from clawproxy.stores.windows import oldest

log = logging.getLogger("clawproxy.store")

ORPHANED: Values = ("orphaned", 1, "estimated", None, None)
"""How what a crash left has ended (`ledger.ENDING`)."""
MOST = 2**62
"""A total stays there: one more charge must not overflow it."""
CLOCK_OFF = 86_400.0
"""Seconds by which the ledger's last row may be ahead of the clock; beyond that its clock was wrong."""

_DAY = 86_400
_KEPT: dict[tuple[Window, bool], int] = {
    ("minute", False): 2 * _DAY,
    ("hour", False): 60 * _DAY,
    ("day", False): 800 * _DAY,
    ("minute", True): 3600,
    ("hour", True): _DAY,
    ("day", True): 8 * _DAY,
    ("month", True): 90 * _DAY,
}
"""Seconds for which totals are kept. Months and `total` stay."""
_WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "month", "total")
_KINDS = [(window, sliding) for window in _WINDOWS for sliding in (False, True)]

_CHARGE = (
    'INSERT INTO totals (scope, unit, "window", sliding, period, used, overrun) VALUES (?, ?, ?, ?, ?, ?, ?) '
    f"ON CONFLICT DO UPDATE SET used = min(used + excluded.used, {MOST}), overrun = min(overrun + excluded.overrun, {MOST})"
)
_HOLD = "INSERT INTO holds (id, entries) VALUES (?, ?)"
_LET_GO = "DELETE FROM holds WHERE id = ?"
_TOTALS = 'SELECT scope, unit, "window", sliding, period, used, overrun FROM totals'
_SETTLE = (
    "UPDATE ledger SET closed = max(opened, ?), ending = ?, input_tokens = reserved_input, "
    "output_tokens = nullif(max(coalesce(reserved_output, -1), coalesce(?, -1), coalesce(? - reserved_input, -1)), -1), "
    "cost_nano = coalesce(?, reserved_nano) WHERE closed IS NULL"
)
"""What was held at last: an answer may have been given more than it began with."""

_SETTLED = ("output_tokens", "tokens", "nano")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Entry]).decode

Booked = tuple[str, Values, Sequence[Entry] | None]


def apply(connection: sqlite3.Connection, lines: Iterable[Booked]) -> None:
    """The entries of journal lines, in their order."""
    held: dict[str, Sequence[Entry]] = {}
    added: list[tuple[str, Sequence[Entry]]] = []
    charges: list[Entry] = []
    for kind, values, entries in lines:
        id_: str = values[0]
        if kind == "o":
            held.setdefault(id_, entries or ())
        elif kind == "t":
            if id_ in held:
                held[id_] = [*held[id_], *(entries or ())]
            else:
                added.append((id_, entries or ()))
        elif held.pop(id_, None) is not None or connection.execute(_LET_GO, (id_,)).rowcount > 0:
            charges += entries or ()
            added = [each for each in added if each[0] != id_]
    connection.executemany(_HOLD, [(id_, _encode(entries).decode()) for id_, entries in (*held.items(), *added)])
    charge(connection, charges)


def charge(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    sums: dict[tuple[str | int, ...], list[int]] = {}
    for entry in entries:
        if entry.amount or entry.overrun:
            key = (entry.scope, entry.unit, entry.window, entry.sliding, entry.period)
            total = sums.get(key)
            if total is None:
                total = sums[key] = [0, 0]
            total[0] += entry.amount
            total[1] += entry.overrun
    connection.executemany(_CHARGE, [(*key, min(used, MOST), min(overrun, MOST)) for key, (used, overrun) in sums.items()])


def settle_orphans(connection: sqlite3.Connection, now: float, ending: int) -> int:
    """How many attempts were closed (rule 3). Those open are found by an index of their own: a big ledger costs nothing.
    `ending`: the number of `ORPHANED`."""
    held: dict[str, list[Entry]] = {}
    for id_, entries in connection.execute("SELECT id, entries FROM holds"):
        held.setdefault(id_, []).extend(_decode(entries))
    charge(connection, (entry for entries in held.values() for entry in entries))
    connection.execute("DELETE FROM holds")
    figures = [(now, ending, *(_most(entries, unit) for unit in _SETTLED), id_) for id_, entries in held.items()]
    before = connection.total_changes
    connection.executemany(f"{_SETTLE} AND id = ?", figures)
    connection.execute(_SETTLE, (now, ending, None, None, None))
    return connection.total_changes - before


def _most(entries: Iterable[Entry], unit: str) -> int | None:
    """What was held of a unit; of several accounts the most: it is the same use."""
    sums: dict[tuple[str | bool, ...], int] = {}
    for entry in entries:
        if entry.unit == unit:
            account = (entry.scope, entry.unit, entry.window, entry.sliding)
            sums[account] = sums.get(account, 0) + entry.amount
    return max(sums.values(), default=None)


def prune(connection: sqlite3.Connection, now: float) -> None:
    """Forget totals that nobody asks for any more. Never by a time that the next start would not know: a request that was turned
    away may have moved the accounts on, for a clock that was wrong, and is in no book."""
    now = min(now, last_time(connection))
    for (window, sliding), seconds in _KEPT.items():
        connection.execute(
            'DELETE FROM totals WHERE "window" = ? AND sliding = ? AND period < ?', (window, sliding, int(now) - seconds)
        )


def last_time(connection: sqlite3.Connection) -> float:
    """The latest time that the books know of; 0.0 where there is nothing in them."""
    newest = 'SELECT max(period) FROM totals WHERE "window" = ? AND sliding = ?'  # a top-up may be later than all openings
    times = [connection.execute("SELECT max(opened) FROM ledger").fetchone()[0]]
    times += [connection.execute(newest, kind).fetchone()[0] for kind in _KINDS]
    return max(at or 0.0 for at in times)


def load(connection: sqlite3.Connection, now: float, held: Iterable[Entry] = ()) -> Accounts:
    """All accounts, as they stand after the last attempt in the ledger, and after what is `held`. Reads the periods that count
    still.

    The ledger's last time is the time, where it is ahead of the clock: else a clock set back would give a window twice. Far ahead
    it is not believed, for the windows to come would never end.
    """
    held = list(held)
    last = max([last_time(connection), *(entry.period for entry in held)])
    if last > now + CLOCK_OFF:
        log.warning("the ledger's last attempt is %d s ahead of the clock: budgets go by the clock", last - now)
        last = now
    accounts = Accounts(last)
    for window, sliding in _KINDS:
        first = oldest(window, sliding, last)
        live = f'{_TOTALS} WHERE "window" = ? AND sliding = ? AND period >= ?'
        for *account, period, used, overrun in connection.execute(live, (window, sliding, first)):
            accounts.restore(_account(*account), period, used, overrun)
    accounts.restore_held(held)
    return accounts


def _account(scope: str, unit: str, window: str, sliding: int) -> Account:
    return msgspec.convert((scope, unit, window, bool(sliding)), Account)


# --- for those who do not write ----------------------------------------------------------------------------------------------


def standing(connection: sqlite3.Connection, accounts: Sequence[Account], now: float) -> list[Standing]:
    """From the database alone: as a command beside the gateway sees it."""
    held = [entry for (entries,) in connection.execute("SELECT entries FROM holds") for entry in _decode(entries)]
    return load(connection, time.time(), held).standing(accounts, now)


def totals(connection: sqlite3.Connection, since: float) -> list[Total]:
    found = connection.execute(f'{_TOTALS} WHERE period >= ? ORDER BY scope, unit, "window", sliding, period', (since,))
    return [Total(_account(*account), period, used, overrun) for *account, period, used, overrun in found]


def holding(connection: sqlite3.Connection) -> int:
    count: int = connection.execute("SELECT count(DISTINCT id) FROM holds").fetchone()[0]
    return count
