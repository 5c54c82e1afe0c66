"""Reports on the ledger: what is asked for, in words, and the document that answers it. For the command line and the admin API.

Rule 1: a document's money is an exact decimal number of dollars, and null where it is not known, which is never 0.
Rule 2: times are UTC. `since` belongs to what is reported, `until` does not.
Rule 3: every refusal is a ValueError whose text names what was asked, what is wrong and what would be right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

import msgspec
from attrs import field, frozen

from clawproxy.config.structure import suggest
from clawproxy.config.units import parse_duration, shown
from clawproxy.dialects.claw_frames import dollars
from clawproxy.stores.base import Dimension, GroupBy, Store, UsageRow
from clawproxy.stores.usage import CLASSES

MOST_GROUPS: Final = 4
"""Dimensions in one report."""


@frozen
class Query:
    by: tuple[GroupBy, ...] = ()
    since: float | None = None
    """Unix time; None: since the beginning."""
    until: float | None = None
    where: Mapping[Dimension, str | None] = field(factory=dict)


@frozen
class Report:
    query: Query
    at: float
    """When it was made, Unix time."""
    total: UsageRow
    rows: Sequence[UsageRow]


def parse_by(text: str) -> tuple[GroupBy, ...]:
    """`model,day`."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in get_args(GroupBy):
            raise ValueError(f'by: "{shown(name)}" is nothing usage is grouped by; {suggest(name, get_args(GroupBy))}')
    if len(set(names)) < len(names):
        raise ValueError(f'by: "{shown(text)}" names something twice; name each once')
    if len(names) > MOST_GROUPS:
        raise ValueError(f'by: "{shown(text)}" is more than {MOST_GROUPS} at once; ask twice')
    return cast("tuple[GroupBy, ...]", names)


def parse_moment(name: str, text: str, now: float) -> float:
    """`7d` before now, `2026-11-01`, `2026-11`, or a date and a time; those without an offset are UTC."""
    text = text.strip()
    try:
        if text[:4].isdecimal() and text[4:5] == "-":
            moment = datetime.fromisoformat(f"{text}-01" if len(text) == 7 else text)
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        ago = parse_duration(text)
        return now - ago if math.isfinite(ago) else 0.0
    except (ValueError, OverflowError):
        wrong = f'{name}: "{shown(text)}" is no time'
        raise ValueError(f'{wrong}; write how long ago ("7d", "12h"), or a date ("2026-11-01", "2026-11-01T08:00Z")') from None


def parse_query(asked: Mapping[str, str], now: float) -> Query:
    """From names and words: `by`, `since`, `until`, and any dimension; `-` is whatever has none."""
    times = {name: parse_moment(name, asked[name], now) for name in ("since", "until") if asked.get(name)}
    if "since" in times and times.get("until", math.inf) <= times["since"]:
        raise ValueError(f'until: "{shown(asked["until"])}" is not after since; nothing is between them')
    where: dict[Dimension, str | None] = {}
    for name, value in asked.items():
        if name in get_args(Dimension):
            where[cast("Dimension", name)] = None if value == "-" else value
        elif name not in ("by", "since", "until"):
            known = ["by", "since", "until", *get_args(Dimension)]
            raise ValueError(f"{shown(name)}: is nothing a report is asked for; {suggest(name, known)}")
    return Query(parse_by(asked.get("by", "")), times.get("since"), times.get("until"), where)


async def report(store: Store, query: Query) -> Report:
    """Raises ClawError("store_unavailable")."""
    since = query.since or 0.0
    rows = await store.usage(query.by, since, query.until, None, query.where) if query.by else []
    [total] = await store.usage(None, since, query.until, None, query.where)
    return Report(query, time.time(), total, rows)


# --- the document ------------------------------------------------------------------------------------------------------------


def document(made: Report) -> dict[str, Any]:
    query = made.query
    begins = None if query.since is None else instant(query.since)
    ends = instant(made.at if query.until is None else query.until)
    rows = []
    for row in made.rows:
        groups: dict[str, str | None] = dict(zip(query.by, row.groups, strict=True))
        rows.append({**groups, **figures(row), "from": begins, "to": ends, "group_by": groups})
    return {"from": begins, "to": ends, **figures(made.total), "group_by": list(query.by), "rows": rows}


def figures(row: UsageRow) -> dict[str, Any]:
    """What a document says of a group."""
    tokens = row.input_tokens + row.output_tokens
    return {
        "requests": row.requests,
        "attempts": row.attempts,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cost_usd": cost(row),
        "known_cost_usd": usd(row.known_nano or 0),
        "unpriced_attempts": row.unpriced,
        **{name: getattr(row, name) for name in CLASSES},
        "estimated_attempts": row.estimated,
        "estimated_tokens": row.estimated_tokens,
        "estimated_cost_usd": usd(row.estimated_nano),
        "estimated_share": round(row.estimated_tokens / tokens, 6) if tokens else 0,
        "open_attempts": row.open,
        "orphaned_attempts": row.orphaned,
        "overruns": row.overruns,
        "overrun_tokens": row.overrun_tokens,
        "overrun_usd": usd(row.overrun_nano),
        "first": None if row.first is None else instant(row.first),
        "last": None if row.last is None else instant(row.last),
    }


def cost(row: UsageRow) -> msgspec.Raw | None:
    """Where nothing was billed it is 0; where a price is missing it is not known."""
    return None if row.unpriced else usd(row.known_nano or 0)


def usd(nano: int) -> msgspec.Raw:
    return msgspec.Raw(dollars(nano))


def instant(at: float) -> str:
    """`2026-11-22T05:00:00Z`."""
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return "9999-12-31T23:59:59Z"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if at == int(at) else moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def names(rows: Iterable[UsageRow], index: int) -> list[str]:
    """How the groups of a dimension are shown."""
    return ["-" if row.groups[index] is None else str(row.groups[index]) for row in rows]
