"""Sums of the ledger: what `Store.usage` means, once in SQL and once over rows in memory.

Rule 1: an attempt that is not closed counts with what it reserved, and so does the input of one that was sent and of which nobody
        knows it. What was never sent is free.
Rule 2: a sum of costs with an unknown one in it is not known. What is known of it, and how many are not, stand beside it.
Rule 3: values go into SQL as parameters, always. The only names put there are those of this file.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, get_args

from clawproxy.stores.base import By, Dimension, GroupBy, LedgerRow, UsageRow, Where

SPANS: Final[Mapping[str, str]] = {"hour": "%Y-%m-%dT%H:00Z", "day": "%Y-%m-%d", "month": "%Y-%m"}
"""Of time, in UTC: how a group of each is called."""
CLASSES: Final = (
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "cached_audio_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
)
"""Parts of the input and the output."""
_LAST_SECOND: Final = 253_402_300_799
"""Where calendars end."""

_GIVEN = """CASE WHEN closed IS NULL THEN reserved_input WHEN input_tokens IS NOT NULL THEN input_tokens
    WHEN sent THEN reserved_input ELSE 0 END"""
_TAKEN = "coalesce(CASE WHEN closed IS NULL THEN reserved_output ELSE output_tokens END, 0)"
_COST = "CASE WHEN closed IS NULL THEN reserved_nano ELSE cost_nano END"
_GUESSED = "(closed IS NULL OR source = 'estimated')"
_MORE = """CASE WHEN source = 'measured' THEN
    max(0, coalesce(input_tokens, 0) - reserved_input) + max(0, coalesce(output_tokens - reserved_output, 0)) ELSE 0 END"""
_SUMS = f"""count(DISTINCT request_id), count(*), coalesce(sum(given), 0), coalesce(sum(taken), 0), sum(cost), sum(unpriced),
    {", ".join(f"sum({name})" for name in CLASSES)},
    coalesce(sum(guessed), 0), coalesce(sum(CASE WHEN guessed THEN given + taken END), 0),
    coalesce(sum(CASE WHEN guessed THEN cost END), 0), coalesce(sum(open), 0), coalesce(sum(orphaned), 0),
    coalesce(sum(more > 0), 0), coalesce(sum(more), 0), coalesce(sum(more_nano), 0), min(opened), max(opened)"""
_EACH = f"""request_id, opened, {", ".join(CLASSES)}, {_GIVEN} AS given, {_TAKEN} AS taken, {_COST} AS cost,
    coalesce(sent, 1) AND ({_COST}) IS NULL AS unpriced, {_GUESSED} AS guessed, closed IS NULL AS open,
    coalesce(outcome = 'orphaned', 0) AS orphaned, {_MORE} AS more,
    CASE WHEN source = 'measured' THEN max(0, coalesce(cost_nano - reserved_nano, 0)) ELSE 0 END AS more_nano"""


def dimensions(by: By) -> tuple[GroupBy, ...]:
    """Raises ValueError for one that is not known."""
    names = () if by is None else (by,) if isinstance(by, str) else tuple(by)
    for name in names:
        if name not in get_args(GroupBy):
            raise ValueError(f"usage can not be grouped by {name!r}")
    return names


def filters(key: str | None, where: Where) -> dict[Dimension, str | None]:
    """Raises ValueError for one that is not known."""
    for name in where:
        if name not in get_args(Dimension):
            raise ValueError(f"usage can not be told by {name!r}")
    return {**where, "key": key} if key is not None else dict(where)


def span_of(name: str, at: float) -> str | None:
    """The hour, day or month that a time is in, by name; None where no calendar has it."""
    if not -62_135_596_800 <= at < _LAST_SECOND + 1:
        return None
    return datetime.fromtimestamp(int(at), UTC).strftime(SPANS[name])


def usage(
    connection: sqlite3.Connection, by: By, since: float, until: float | None, key: str | None, where: Where
) -> list[UsageRow]:
    """Blocking. Raises sqlite3.Error, ValueError."""
    names, wanted = dimensions(by), filters(key, where)
    picked = [_column(name) for name in names]
    groups = ", ".join(f"g{index}" for index in range(len(picked)))
    given = "".join(f"{column} AS g{index}, " for index, column in enumerate(picked))
    conditions = " AND ".join(["opened >= ?", "opened < ?", *(f'"{name}" IS ?' for name in wanted)])
    inner = f"SELECT {given}{_EACH} FROM attempts WHERE {conditions}"
    sql = f"SELECT {groups + ', ' if groups else ''}{_SUMS} FROM ({inner})"
    if groups:
        sql += f" GROUP BY {groups} ORDER BY {groups}"
    found = connection.execute(sql, [since, math.inf if until is None else until, *wanted.values()])
    return [_row(values, len(names)) for values in found]


def _column(name: str) -> str:
    return f"strftime('{SPANS[name]}', CAST(opened AS INTEGER), 'unixepoch')" if name in SPANS else f'"{name}"'


def _row(values: tuple[Any, ...], groups: int) -> UsageRow:
    names, figures = values[:groups], values[groups:]
    requests, attempts, given, taken, known, unpriced, *rest = figures
    cost = None if unpriced else known
    return UsageRow(names[0] if names else None, requests, attempts, given, taken, cost, names, known, unpriced or 0, *rest)


# --- the same, of rows -------------------------------------------------------------------------------------------------------


def summed(rows: Iterable[LedgerRow], by: By, key: str | None, where: Where) -> list[UsageRow]:
    """Raises ValueError."""
    names, wanted = dimensions(by), filters(key, where)
    groups: dict[tuple[str | None, ...], list[LedgerRow]] = defaultdict(list)
    if not names:
        groups[()] = []
    for row in rows:
        if all(_value(row, name) == value for name, value in wanted.items()):
            groups[tuple(_value(row, name) for name in names)].append(row)
    found = sorted(groups.items(), key=lambda item: [(name is not None, name or "") for name in item[0]])
    return [_row((*group, *_figures(members)), len(group)) for group, members in found]


def _value(row: LedgerRow, name: str) -> str | None:
    if name in SPANS:
        return span_of(name, row.opened.opened)
    value: str | None = (row.closed.outcome if row.closed else None) if name == "outcome" else getattr(row.opened, name)
    return value


def _figures(rows: list[LedgerRow]) -> list[Any]:
    """In the order of `_SUMS`."""
    given = [_given(row) for row in rows]
    taken = [_taken(row) for row in rows]
    costs = [row.closed.cost_nano if row.closed else row.opened.reserved_nano for row in rows]
    guessed = [row.closed is None or row.closed.source == "estimated" for row in rows]
    more = [_more(row) for row in rows]
    known = [cost for cost in costs if cost is not None]
    times = [row.opened.opened for row in rows]
    return [
        len({row.opened.request_id for row in rows}),
        len(rows),
        sum(given),
        sum(taken),
        sum(known) if known else None,
        sum(cost is None and (row.closed is None or row.closed.sent) for row, cost in zip(rows, costs, strict=True)),
        *(_class(rows, name) for name in CLASSES),
        sum(guessed),
        sum(one + other for one, other, guess in zip(given, taken, guessed, strict=True) if guess),
        sum(cost or 0 for cost, guess in zip(costs, guessed, strict=True) if guess),
        sum(row.closed is None for row in rows),
        sum(row.closed is not None and row.closed.outcome == "orphaned" for row in rows),
        sum(tokens > 0 for tokens, _ in more),
        sum(tokens for tokens, _ in more),
        sum(nano for _, nano in more),
        min(times, default=None),
        max(times, default=None),
    ]


def _given(row: LedgerRow) -> int:
    closed, reserved = row.closed, row.opened.reserved_input
    if closed is None:
        return reserved
    return closed.input_tokens if closed.input_tokens is not None else reserved if closed.sent else 0


def _taken(row: LedgerRow) -> int:
    return (row.opened.reserved_output if row.closed is None else row.closed.output_tokens) or 0


def _class(rows: list[LedgerRow], name: str) -> int | None:
    said = [count for row in rows if row.closed is not None and (count := getattr(row.closed, name)) is not None]
    return sum(said) if said else None


def _more(row: LedgerRow) -> tuple[int, int]:
    """Tokens and nano-dollars that were measured beyond what was reserved."""
    opened, closed = row.opened, row.closed
    if closed is None or closed.source != "measured":
        return 0, 0
    beyond: Callable[[int | None, int | None], int] = lambda used, held: (  # noqa: E731
        0 if used is None or held is None else max(0, used - held)
    )
    tokens = beyond(closed.input_tokens, opened.reserved_input) + beyond(closed.output_tokens, opened.reserved_output)
    return tokens, beyond(closed.cost_nano, opened.reserved_nano)
