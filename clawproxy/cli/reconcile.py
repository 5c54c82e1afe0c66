"""A provider's export held against the ledger, by day and model, or by id where the export has them.

Rule 1: only what the export says is compared: no column, no verdict.
Rule 2: an export rounds its money. Half of the last decimal of each of its figures is no difference, nor is what the tolerance
        allows.
Rule 3: a cost the ledger does not know agrees with nothing.
Rule 4: models are compared without the date of their release, and without the case and the signs of a name for people:
        `Claude Haiku 4.5` is `claude-haiku-4-5-20251001`.
Rule 5: where no provider is named, models that the export names nowhere are another provider's, and left out.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from attrs import define, frozen

from clawproxy.cli.usagetable import money
from clawproxy.config.units import shown
from clawproxy.ops.reports import Query, usd
from clawproxy.stores.base import Store

FIELDS: Final = ("day", "model", "input", "output", "cost", "id")
MEASURES: Final = ("input", "output", "cost")
MOST_ROWS: Final = 2_000_000
_NANO: Final = Decimal(1_000_000_000)
_RELEASE = re.compile(r"-(?:\d{8}|\d{4}-\d{2}-\d{2})$")
_DAY = 86_400

Columns = Mapping[str, tuple[str, ...]]
"""Of each field the columns whose sum it is."""

KNOWN: Final[Sequence[tuple[str, Columns]]] = (
    (
        "Anthropic's usage",
        {
            "day": ("usage_date_utc",),
            "model": ("model_version",),
            "input": (
                "usage_input_tokens_no_cache",
                "usage_input_tokens_cache_write_5m",
                "usage_input_tokens_cache_write_1h",
                "usage_input_tokens_cache_read",
            ),
            "output": ("usage_output_tokens",),
        },
    ),
    ("Anthropic's cost", {"day": ("usage_date_utc",), "model": ("model",), "cost": ("cost_usd",)}),
    (
        "OpenAI's usage",
        {"day": ("start_time_iso",), "model": ("model",), "input": ("input_tokens",), "output": ("output_tokens",)},
    ),
    ("OpenAI's cost", {"day": ("start_time_iso",), "model": ("line_item",), "cost": ("amount_value",)}),
)
"""By the columns that each has and the others have not, most telling first."""


@define(slots=True)
class Sums:
    """Of one day and model, or one id."""

    input: int = 0
    output: int = 0
    cost: int | None = 0
    """Nano-dollars; None where it is not known."""
    slack: int = 0
    """What rounding may have taken or added, in nano-dollars."""
    estimated: bool = False


Key = tuple[str, str]
"""Day and model; or an id, and nothing."""


@frozen
class Export:
    form: str
    measures: tuple[str, ...]
    rows: Mapping[Key, Sums]
    by_id: bool
    begins: float
    """Unix time of the first day, and of the end of the last."""
    ends: float
    names: Mapping[str, str]
    """Of models, as the export calls them."""


@frozen
class Compared:
    day: str
    model: str
    measure: str
    ledger: int | None
    export: int | None
    """None where it has no such row, or the cost is not known."""
    agrees: bool
    estimated: bool


# --- reading -----------------------------------------------------------------------------------------------------------------


def parse_columns(text: str) -> Columns:
    """`day=date,model=sku,input=in+cached`. Raises ValueError."""
    columns: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name.strip() not in FIELDS or not equals or not value.strip():
            fields = ", ".join(f"{field}=..." for field in FIELDS)
            raise ValueError(f'--columns: "{shown(part)}" names no column; write {fields}, with + where a sum is meant')
        columns[name.strip()] = tuple(column.strip() for column in value.split("+"))
    if "id" not in columns and "day" not in columns:
        raise ValueError("--columns: names neither a day nor an id; write which column holds it, like day=date")
    if not columns.keys() & set(MEASURES):
        raise ValueError("--columns: names nothing to compare; write input=, output= or cost=")
    return columns


def parse_tolerance(text: str) -> Decimal:
    """The share in `1%`. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,4})?)%", text.strip())
    if match is None or Decimal(match[1]) > 100:
        raise ValueError(f'--tolerance: "{shown(text)}" is no share; write it like "0.5%"')
    return Decimal(match[1]) / 100


def read_export(lines: Iterable[str], columns: Columns | None) -> Export:
    """Raises ValueError with a sentence."""
    reader = csv.DictReader(lines)
    heads = [head.strip() for head in reader.fieldnames or ()]
    reader.fieldnames = heads
    form = "the columns given"
    if columns is None:
        fits = [known for known in KNOWN if all(name in heads for names in known[1].values() for name in names)]
        if not fits:
            raise ValueError(f"its columns ({shown(', '.join(heads))}) are of no known export; say which is which with --columns")
        form, columns = fits[0]
    missing = [name for names in columns.values() for name in names if name not in heads]
    if missing:
        raise ValueError(f'has no column "{shown(missing[0])}"; it has {shown(", ".join(heads))}')
    by_id = "id" in columns
    rows: dict[Key, Sums] = defaultdict(Sums)
    names: dict[str, str] = {}
    days: list[date] = []
    for number, row in enumerate(reader, 2):
        if number > MOST_ROWS:
            raise ValueError(f"has more than {MOST_ROWS:,} lines; split it by month")
        texts = {name: _text(row, columns[name][0]) for name in ("day", "model", "id") if name in columns}
        if not any(_text(row, column) for name in MEASURES for column in columns.get(name, ())):
            continue  # a day on which nothing was used
        if "day" in texts:
            days.append(_day(texts["day"], number))
        model = texts.get("model", "")
        if columns.get("model") == ("line_item",):
            model = model.rpartition(", ")[0] or model
        key = (texts["id"], "") if by_id else (days[-1].isoformat(), normal(model))
        names.setdefault(normal(model), model)
        _add(rows[key], row, columns, number)
    if not rows:
        raise ValueError("holds no figures; is it the right file?")
    first = datetime.combine(min(days, default=date(1970, 1, 1)), datetime.min.time(), UTC).timestamp()
    last = datetime.combine(max(days), datetime.min.time(), UTC).timestamp() + _DAY if days else float("inf")
    measures = tuple(measure for measure in MEASURES if measure in columns)
    return Export(form, measures, dict(rows), by_id, first, last, names)


def _text(row: Mapping[str | None, Any], column: str) -> str:
    value = row.get(column)
    return value.strip() if isinstance(value, str) else ""


def _add(sums: Sums, row: Mapping[str | None, Any], columns: Columns, number: int) -> None:
    for measure in MEASURES:
        for column in columns.get(measure, ()):
            text = _text(row, column).replace(",", "").removeprefix("$")
            try:
                value = Decimal(text or 0)
                if not value.is_finite() or abs(value) > 10**15 or value.adjusted() > 15:
                    raise InvalidOperation
            except InvalidOperation:
                raise ValueError(f'line {number}: {column}: "{shown(text)}" is no number') from None
            if measure == "cost":
                assert sums.cost is not None
                places = max(0, -int(value.as_tuple().exponent))
                sums.cost += round(value * _NANO)
                sums.slack += round(_NANO * Decimal(5).scaleb(-places - 1)) if text and places < 9 else 1
            else:
                setattr(sums, measure, getattr(sums, measure) + int(value))


def _day(text: str, number: int) -> date:
    try:
        if re.fullmatch(r"\d{9,11}", text):
            return datetime.fromtimestamp(int(text), UTC).date()
        if len(text) == 10:
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()
    except (ValueError, OverflowError):
        raise ValueError(
            f'line {number}: "{shown(text)}" is no day; it takes 2026-11-22, a date and time, or Unix time'
        ) from None


def normal(model: str) -> str:
    """How a model is called without its release and without signs that names for people have."""
    return _RELEASE.sub("", re.sub(r"[\s._/]+", "-", model.strip().lower()))


# --- the ledger's side -------------------------------------------------------------------------------------------------------


async def rows_for(store: Store, export: Export, query: Query) -> dict[Key, Sums]:
    """Of the export's days, or of those asked for."""
    since = export.begins if query.since is None else query.since
    until = export.ends if query.until is None else query.until
    found: dict[Key, Sums] = defaultdict(Sums)
    whole = not any(export.names) and not export.by_id
    if not export.by_id:
        for row in await store.usage(["day", "provider_model"], since, until, None, query.where):
            day, model = row.groups
            name = "" if whole else normal(model or "")
            if name not in export.names and "provider" not in query.where:
                continue
            sums = found[day or "-", name]
            sums.input += row.input_tokens
            sums.output += row.output_tokens
            sums.cost = None if row.unpriced or sums.cost is None else sums.cost + (row.known_nano or 0)
            sums.estimated = sums.estimated or bool(row.estimated)
        return dict(found)
    provider = query.where.get("provider")
    for each in await store.rows(since, until):
        opened, closed = each.opened, each.closed
        if provider is not None and opened.provider != provider:
            continue
        if closed is not None and not closed.sent:
            continue  # the provider never heard of it
        id_ = opened.id if (opened.id, "") in export.rows else opened.request_id
        sums = found[id_, ""]
        sums.input += opened.reserved_input if closed is None else closed.input_tokens or 0
        sums.output += (opened.reserved_output if closed is None else closed.output_tokens) or 0
        cost = opened.reserved_nano if closed is None else closed.cost_nano
        sums.cost = None if cost is None or sums.cost is None else sums.cost + cost
        sums.estimated = sums.estimated or closed is None or closed.source == "estimated"
    return dict(found)


# --- comparing ---------------------------------------------------------------------------------------------------------------


def compare(export: Export, ledger: Mapping[Key, Sums], share: Decimal) -> list[Compared]:
    found = []
    for key in sorted({*export.rows, *ledger}):
        theirs, ours = export.rows.get(key), ledger.get(key)
        for measure in export.measures:
            mine: int | None = getattr(ours, measure) if ours is not None else 0
            said: int | None = getattr(theirs, measure) if theirs is not None else 0
            slack = theirs.slack if theirs is not None and measure == "cost" else 0
            agrees = mine is not None and said is not None and _agree(mine, said, share, slack)
            agrees = agrees and (not export.by_id or (theirs is not None and ours is not None) or not (mine or said))
            estimated = ours is not None and ours.estimated
            shown_ours, shown_theirs = (None if ours is None else mine), (None if theirs is None else said)
            found.append(Compared(*key, measure, shown_ours, shown_theirs, agrees, estimated))
    return found


def _agree(one: int, other: int, share: Decimal, slack: int) -> bool:
    return abs(one - other) <= slack + share * max(abs(one), abs(other))


def told(compared: Sequence[Compared], export: Export, share: Decimal) -> dict[str, Any]:
    """The document."""
    apart = [each for each in compared if not each.agrees]
    rows = [
        {
            **({"id": each.day} if export.by_id else {"day": each.day, "model": each.model}),
            "measure": "cost_usd" if each.measure == "cost" else f"{each.measure}_tokens",
            "ledger": _figure(each.measure, each.ledger),
            "export": _figure(each.measure, each.export),
            "difference": _figure(each.measure, _difference(each)),
            "agrees": each.agrees,
            "estimated": each.estimated,
        }
        for each in compared
    ]
    return {"form": export.form, "tolerance": float(share), "agrees": not apart, "compared": len(compared), "rows": rows}


def _figure(measure: str, value: int | None) -> Any:
    return usd(value) if measure == "cost" and value is not None else value


def _difference(each: Compared) -> int | None:
    return None if each.ledger is None or each.export is None else each.ledger - each.export


def lines_of(compared: Sequence[Compared], export: Export, *, show_all: bool) -> list[str]:
    from clawproxy.cli.common import printable

    apart = [each for each in compared if not each.agrees]
    rows = compared if show_all else apart
    heads = ("id" if export.by_id else "day", "model", "", "ledger", "export", "difference", "")
    cells = [heads]
    for each in rows:
        difference = _difference(each)
        share = f"{difference / max(each.ledger or 0, each.export or 0, 1):+.2%}" if difference is not None else "missing"
        mark = "~" if each.estimated else ""
        said = [_cell(each.measure, value, not_there) for value, not_there in ((each.ledger, "?"), (each.export, "-"))]
        apart_by = "?" if difference is None else _cell(each.measure, difference, "?")
        model = export.names.get(each.model, each.model)
        cells.append((each.day, model, each.measure, mark + said[0], said[1], apart_by, "" if each.agrees else share))
    columns = [index for index in range(len(heads)) if not (export.by_id and index == 1)]
    widths = {index: max(len(printable(row[index])) for row in cells) for index in columns}
    lines = []
    for row in cells if rows else []:
        parts = [
            printable(row[index]).ljust(widths[index]) if index < 3 else printable(row[index]).rjust(widths[index])
            for index in columns
        ]
        lines.append("  ".join(parts).rstrip())
    verdict = f"{len(apart)} of {len(compared)} figures are apart" if apart else f"all {len(compared)} figures agree"
    lines.append(f"{export.form[:1].upper()}{export.form[1:]}: {verdict}.")
    if any(each.estimated for each in rows):
        lines.append("~ estimated in the ledger, at least in part")
    return lines


def _cell(measure: str, value: int | None, missing: str) -> str:
    return missing if value is None else money(value) if measure == "cost" else f"{value:,}"
