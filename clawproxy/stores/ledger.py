"""Journal lines become rows of the ledger.

Rule 1: idempotent by attempt id: the first opening and the first closing stay.
Rule 2: many rows share their labels and their endings (`schema`): each is looked up once and then known by number (`Names`). What
        was looked up in a transaction that failed is forgotten.
Rule 3: a line that the database refuses holds up no other: it is counted, and left out.

Blocking functions of a connection, called inside a transaction. They raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from clawproxy.stores import books
from clawproxy.stores.records import CLOSE_FIELDS, OPEN_FIELDS, Values

_CLOSE = CLOSE_FIELDS[1:]  # without the id, which both have
COLUMNS: Final = (*OPEN_FIELDS, *_CLOSE)
"""Of the view `attempts`."""
LABELS: Final = OPEN_FIELDS[OPEN_FIELDS.index("instance") : OPEN_FIELDS.index("provider_model") + 1]
ENDING: Final = ("outcome", "sent", "source", "service_tier", "card")
MOST_NAMES = 4096
"""Kept in memory of each kind; begun anew when full."""

_RARE: Final = CLOSE_FIELDS[CLOSE_FIELDS.index("cache_write_tokens") : CLOSE_FIELDS.index("service_tier")]
_SHORT: Final = (
    *("id", "request_id", "labels", "opened", "reserved_input", "reserved_output", "reserved_nano"),
    *("closed", "ending", "input_tokens", "output_tokens", "cost_nano"),
)
"""Columns of most rows. Each further one costs, a None most: the driver asks it how it wants to be adapted (0.4 us)."""
_PARTS: Final = ("cached_tokens", "reasoning_tokens")
_LONG: Final = (*_SHORT, *_PARTS)
_WHOLE: Final = (*_LONG, "number", "reason", *_RARE)
_CLOSED: Final = (*_SHORT[_SHORT.index("closed") :], *_PARTS, *_RARE)
_NO_RARE: Final[Values] = (None,) * len(_RARE)
_NOT_CLOSED: Final[Values] = (None,) * len(CLOSE_FIELDS)


_NUMBER, _REASON, _OPENED = map(OPEN_FIELDS.index, ("number", "reason", "opened"))
_RESERVED, _OUTPUT, _NANO = map(OPEN_FIELDS.index, ("reserved_input", "reserved_output", "reserved_nano"))
_INSTANCE, _AFTER_LABELS = OPEN_FIELDS.index(LABELS[0]), OPEN_FIELDS.index(LABELS[-1]) + 1
_CLOSED_AT, _GIVEN, _TAKEN, _COST = map(CLOSE_FIELDS.index, ("closed", "input_tokens", "output_tokens", "cost_nano"))
_CACHED, _THOUGHT = map(CLOSE_FIELDS.index, _PARTS)
_RARE_FROM, _TIER = CLOSE_FIELDS.index(_RARE[0]), CLOSE_FIELDS.index("service_tier")
_OUTCOME, _SENT, _SOURCE, _CARD = map(CLOSE_FIELDS.index, ("outcome", "sent", "source", "card"))

_encode = msgspec.json.Encoder().encode
_BAD_VALUES = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class Names:
    """The numbers of labels and endings, as one connection has looked them up."""

    def __init__(self) -> None:
        self._labels: dict[Values, int] = {}
        self._endings: dict[Values, int] = {}

    def forget(self) -> None:
        self._labels.clear()
        self._endings.clear()

    def labels(self, connection: sqlite3.Connection, values: Values) -> int | None:
        """Of `LABELS`; None where the database refuses them."""
        try:
            return self._labels[values]
        except KeyError:
            return _number(connection, "labels", LABELS, values, self._labels)
        except TypeError:  # a list, of a line that somebody made
            return None

    def ending(self, connection: sqlite3.Connection, values: Values) -> int | None:
        """The same of `ENDING`."""
        try:
            return self._endings[values]
        except KeyError:
            return _number(connection, "endings", ENDING, values, self._endings)
        except TypeError:
            return None

    def orphaned(self, connection: sqlite3.Connection) -> int:
        """Of `books.ORPHANED`."""
        number = self.ending(connection, books.ORPHANED)
        assert number is not None
        return number


def _number(
    connection: sqlite3.Connection, table: str, columns: Sequence[str], values: Values, known: dict[Values, int]
) -> int | None:
    if len(known) >= MOST_NAMES:
        known.clear()
    line = _encode(values).decode()
    try:
        marks = ", ".join("?" * (1 + len(columns)))
        insert = f"INSERT INTO {table} (line, {_quoted(columns)}) VALUES ({marks}) ON CONFLICT (line) DO NOTHING"
        connection.execute(insert, (line, *values))
    except _BAD_VALUES:
        return None
    found: int = connection.execute(f"SELECT n FROM {table} WHERE line = ?", (line,)).fetchone()[0]
    known[values] = found
    return found


class _Insert:
    """Statements that insert rows of some columns: one, and so many at once as any SQLite takes parameters for, so that the GIL
    changes hands once for all of them."""

    def __init__(self, columns: Sequence[str]) -> None:
        row = f"({', '.join('?' * len(columns))})"
        first_close = ", ".join(f"{name} = excluded.{name}" for name in columns if name in _CLOSED)
        self._width = len(columns)
        self._most = 999 // len(columns) * len(columns)
        self._one, self._many = (
            f"INSERT INTO ledger ({_quoted(columns)}) VALUES {rows} ON CONFLICT (id) DO UPDATE SET {first_close} "
            "WHERE ledger.closed IS NULL AND excluded.closed IS NOT NULL"
            for rows in (row, ", ".join([row] * (999 // len(columns))))
        )

    def __call__(self, connection: sqlite3.Connection, values: list[Any]) -> int:
        """`values`: of all rows, one after another. How many rows were not acceptable."""
        broken, most = 0, self._most
        whole = len(values) - len(values) % most
        for at in range(0, whole, most):
            some = values[at : at + most]
            try:
                connection.execute(self._many, some)
            except _BAD_VALUES:
                broken += self._each(connection, some)
        return broken + self._each(connection, values[whole:])

    def _each(self, connection: sqlite3.Connection, values: list[Any]) -> int:
        width = self._width
        return _execute(connection, self._one, [tuple(values[at : at + width]) for at in range(0, len(values), width)])


_insert_short, _insert_long, _insert_whole = _Insert(_SHORT), _Insert(_LONG), _Insert(_WHOLE)
_UPDATE = f"UPDATE ledger SET {', '.join(f'{name} = ?' for name in _CLOSED)} WHERE id = ? AND closed IS NULL"


def put(connection: sqlite3.Connection, names: Names, lines: Sequence[books.Booked]) -> int:
    """Apply journal lines, in their order; how many could not be applied."""
    opened: dict[str, Values] = {}
    closed: dict[str, Values] = {}
    later: list[Values] = []
    booked: list[books.Booked] = []
    for line in lines:
        kind, values, entries = line
        id_ = values[0]
        if entries is not None:
            booked.append(line)
        if kind == "o":
            opened.setdefault(id_, values)
        elif kind == "t":
            continue
        elif id_ in opened:
            closed.setdefault(id_, values)
        else:
            later.append(values)
    if booked:
        books.apply(connection, booked)
    # first, for a closing that comes before its opening closes nothing
    updates = [(*_ended(connection, names, ended), *ended[_RARE_FROM:_TIER], ended[0]) for ended in later]
    broken = _execute(connection, _UPDATE, updates)
    short: list[Any] = []
    long: list[Any] = []
    whole: list[Any] = []
    for id_, begun in opened.items():
        ended = closed.get(id_, _NOT_CLOSED)
        label = names.labels(connection, begun[_INSTANCE:_AFTER_LABELS])
        row = (id_, begun[1], label, begun[_OPENED], begun[_RESERVED], begun[_OUTPUT], begun[_NANO])
        at, ending, given, taken, cost, cached, thought = _ended(connection, names, ended)
        rare = ended[_RARE_FROM:_TIER]
        if rare != _NO_RARE or begun[_NUMBER] != 1 or begun[_REASON] != "first":
            whole += (*row, at, ending, given, taken, cost, cached, thought, begun[_NUMBER], begun[_REASON], *rare)
        elif cached is None and thought is None:
            short += row
            short += (at, ending, given, taken, cost)
        else:
            long += row
            long += (at, ending, given, taken, cost, cached, thought)
    return broken + _insert_short(connection, short) + _insert_long(connection, long) + _insert_whole(connection, whole)


def _ended(connection: sqlite3.Connection, names: Names, ended: Values) -> Values:
    """In the order of `_LONG`."""
    at = ended[_CLOSED_AT]
    ending = None
    if at is not None:
        ending = names.ending(connection, (ended[_OUTCOME], ended[_SENT], ended[_SOURCE], ended[_TIER], ended[_CARD]))
    return at, ending, ended[_GIVEN], ended[_TAKEN], ended[_COST], ended[_CACHED], ended[_THOUGHT]


def _execute(connection: sqlite3.Connection, sql: str, rows: list[Values]) -> int:
    """All rows; where one of them is not acceptable, all but it. How many were not."""
    try:
        connection.executemany(sql, rows)
    except _BAD_VALUES:
        return sum(_is_bad(connection, sql, row) for row in rows)
    return 0


def _is_bad(connection: sqlite3.Connection, sql: str, row: Values) -> bool:
    try:
        connection.execute(sql, row)
    except _BAD_VALUES:
        return True
    return False
