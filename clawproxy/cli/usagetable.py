"""Reports as a terminal shows them: a table that fits its width, and bars. Pure."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from clawproxy.cli.common import printable
from clawproxy.ops.reports import Report, instant, names
from clawproxy.stores.base import UsageRow

if TYPE_CHECKING:
    from clawproxy.ops.standings import BudgetStanding

LEAST_NAME = 8
"""Characters a name keeps, however narrow the terminal is."""
NANO = 1_000_000_000
_FEWEST = ("requests", "input", "output", "cost")
_STEPS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}
MOST_BARS = 1000


def width() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns)


def table(made: Report, columns: int | None = None) -> list[str]:
    """Heading, a line for each group, the total, and what the marks mean."""
    columns = width() if columns is None else columns
    rows = [*made.rows, made.total]
    if not made.total.attempts:
        return ["Nothing was used in that time."]
    heads = [name.replace("_", " ") for name in made.query.by]
    groups = [[*names(made.rows, index), "total" if index == 0 else ""] for index in range(len(heads))]
    cells: dict[str, list[str]] = {
        "requests": [f"{row.requests:,}" for row in rows],
        "attempts": [f"{row.attempts:,}" for row in rows],
        "input": [_marked(row, row.input_tokens) for row in rows],
        "cached": ["-" if row.cached_tokens is None else f"{row.cached_tokens:,}" for row in rows],
        "output": [_marked(row, row.output_tokens) for row in rows],
        "reasoning": ["-" if row.reasoning_tokens is None else f"{row.reasoning_tokens:,}" for row in rows],
        "cost": [cost_cell(row) for row in rows],
    }
    for name in ("reasoning", "cached", "attempts"):  # the first to go where there is no room
        if set(cells[name]) == {"-"} or _wide(cells) + len(heads) * (LEAST_NAME + 6) > columns:
            del cells[name]
    return [*_lines(heads, groups, cells, columns), *_notes(made.total)]


def _wide(cells: dict[str, list[str]]) -> int:
    return sum(2 + max(len(name), *map(len, column)) for name, column in cells.items())


def _lines(heads: Sequence[str], groups: Sequence[list[str]], cells: dict[str, list[str]], columns: int) -> list[str]:
    """Names to the left, cut where they must be; figures to the right."""
    groups = [[printable(name) for name in column] for column in groups]
    widths = [max(len(head), *map(len, column)) for head, column in zip(heads, groups, strict=True)]
    room = columns - _wide(cells) - 2 * max(0, len(heads) - 1)
    while sum(widths) > room and max(widths, default=0) > LEAST_NAME:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for at in range(-1, len(next(iter(cells.values())))):
        left = [head if at < 0 else column[at] for head, column in zip(heads, groups, strict=True)]
        right = [name if at < 0 else column[at] for name, column in cells.items()]
        sizes = [max(len(name), *map(len, column)) for name, column in cells.items()]
        line = "  ".join(_cut(text, size).ljust(size) for text, size in zip(left, widths, strict=True))
        lines.append((line + "".join("  " + text.rjust(size) for text, size in zip(right, sizes, strict=True))).rstrip())
    return lines


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _marked(row: UsageRow, tokens: int) -> str:
    return f"~{tokens:,}" if row.estimated else f"{tokens:,}"


def cost_cell(row: UsageRow) -> str:
    known = row.known_nano or 0
    mark = "~" if row.estimated_nano else ""
    if row.unpriced:
        return f"{mark}{money(known)} + ?" if known else "?"
    return f"{mark}{money(known)}"


def money(nano: int) -> str:
    """Dollars with four decimals, or as many as it takes to be more than nothing."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    if 0 < nano < 100_000:
        return f"{sign}$0.{nano:09d}"
    tenths = (nano + 50_000) // 100_000
    return f"{sign}${tenths // 10_000:,}.{tenths % 10_000:04d}"


def _notes(total: UsageRow) -> list[str]:
    notes = []
    tokens = total.input_tokens + total.output_tokens
    if total.estimated:
        share = f"{total.estimated_tokens / tokens:.1%} of the tokens" if tokens else "no tokens"
        notes.append(f"~ estimated in part: {_many(total.estimated, 'attempt')}, {share}")
    if total.unpriced:
        notes.append(f"? not known: what {_many(total.unpriced, 'attempt')} cost; a price is missing, or the figures are")
    if total.open:
        notes.append(f"  under way, or not settled yet: {_many(total.open, 'attempt')}, at what was reserved")
    if total.orphaned:
        notes.append(f"  left by a crash: {_many(total.orphaned, 'attempt')}, at what was reserved")
    if total.overruns:
        more = f"{total.overrun_tokens:,} tokens more than was reserved"
        notes.append(f"  overruns: {_many(total.overruns, 'attempt')}, {more}")
    return ["", *notes] if notes else []


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# --- bars --------------------------------------------------------------------------------------------------------------------


def chart(made: Report, what: str, columns: int | None = None) -> list[str]:
    columns = width() if columns is None else columns
    if not made.rows:
        return ["Nothing was used in that time."]
    bars: list[tuple[str, int, str]] = []
    for row in _filled(made):
        label = printable(" ".join("-" if name is None else name for name in row.groups))
        if what == "cost":
            bars.append((label, row.known_nano or 0, cost_cell(row)))
        else:
            count = row.requests if what == "requests" else row.input_tokens + row.output_tokens
            bars.append((label, count, f"{count:,}" if what == "requests" else _marked(row, count)))
    labels = min(max(len(label) for label, _, _ in bars), max(LEAST_NAME, columns // 3))
    figures = max(len(text) for _, _, text in bars)
    room = max(8, columns - labels - figures - 4)
    most = max(value for _, value, _ in bars)
    lines = []
    for label, value, text in bars:
        bar = _bar(value, most, room)
        lines.append(f"{_cut(label, labels).ljust(labels)}  {bar.ljust(room)}  {text.rjust(figures)}")
    return [*lines, *_notes(made.total)]


def _bar(value: int, most: int, room: int) -> str:
    """In eighths of a character, where the terminal has them; whatever is not nothing is seen."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, value * room * 8 // most)
    if "utf" not in (sys.stdout.encoding or "").lower():
        return "#" * max(1, eighths // 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")


def _filled(made: Report) -> Sequence[UsageRow]:
    """Hours and days in which nothing was used are shown too."""
    step = _STEPS.get(made.query.by[0]) if len(made.query.by) == 1 else None
    if step is None or any(row.group is None for row in made.rows):
        return made.rows
    form = "%Y-%m-%d" if made.query.by[0] == "day" else "%Y-%m-%dT%H:00Z"
    known = {row.group: row for row in made.rows}
    at = datetime.strptime(str(made.rows[0].group), form).replace(tzinfo=UTC)
    end = datetime.strptime(str(made.rows[-1].group), form).replace(tzinfo=UTC)
    if (end - at) / step > MOST_BARS:
        return made.rows
    rows = []
    while at <= end:
        name = at.strftime(form)
        rows.append(known.get(name) or UsageRow(name, 0, 0, 0, 0, None, (name,)))
        at += step
    return rows


# --- budgets -----------------------------------------------------------------------------------------------------------------


def standings(found: Sequence[BudgetStanding], columns: int | None = None) -> list[str]:
    if not found:
        return ["No budgets are configured, or nobody has come under one yet."]
    columns = width() if columns is None else columns
    groups = [[each.name for each in found], [each.scope for each in found], [each.words for each in found]]
    cells = {
        "used": [amount(each.unit, each.used) for each in found],
        "held": ["?" if each.held is None else amount(each.unit, each.held) for each in found],
        "of limit": ["-" if each.share is None else f"{each.share:.0%}" for each in found],
        "resets": ["-" if each.resets_at is None else instant(each.resets_at)[:16] + "Z" for each in found],
    }
    lines = _lines(("budget", "scope", "limit"), groups, cells, columns)
    over = [each for each in found if each.overrun]
    said = [printable(f"  {each.name} {each.scope}: overrun by {amount(each.unit, each.overrun)}") for each in over]
    return [*lines, *said]


def amount(unit: str, count: int) -> str:
    return money(count) if unit == "nano" else f"{count:,}"
