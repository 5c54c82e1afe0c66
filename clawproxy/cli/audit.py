"""`clawproxy audit`: whether the audit log is as it was written, and what stands in it; with the gateway up or down.

Rule 1: no provider's secret is resolved. `verify` needs the pepper, of which the chain's key is made; the others do not.
Rule 2: what a client said is printed without anything that moves a cursor.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clawproxy.cli import say
from clawproxy.cli.common import config_option, load_config, no_formula, pepper, printable, state_dir
from clawproxy.config.load import Loaded
from clawproxy.config.secretrefs import resolve_secret
from clawproxy.config.units import parse_duration
from clawproxy.errors import ConfigError
from clawproxy.pipeline import Plugins

if TYPE_CHECKING:
    from clawproxy_audit.verify import Report

_TABLES = ("usage", "route", "attribution", "timing_ms")
COLUMNS = ("time", "key", "user", "model", "route", "outcome", "input", "output", "ms", "request_id")
_MOST = 100_000


@click.group("audit")
def command() -> None:
    """Verify the audit log, look into it, take rows out of it."""


@command.command()
@config_option
@click.option(
    "--log",
    "logs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    multiple=True,
    help="A log of the gateway (`-`: stdin) whose anchors are to be held against it; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def verify(ctx: click.Context, config_file: Path | None, logs: tuple[Path, ...], as_json: bool) -> None:
    """Check every row of every chain. Exit code: 0 intact, 1 not, 2 it could not be tried."""
    from clawproxy_audit.anchors import Anchors, from_log
    from clawproxy_audit.chain import key_of
    from clawproxy_audit.verify import verify as check

    loaded, plugins = load_config(config_file)
    folder = state_dir(loaded)
    if loaded.config.server.pepper is None and not (folder / "pepper").exists():
        raise ConfigError([f"{folder / 'pepper'}: there is none, and the key of the audit chain is made of it; restore it"])
    key = key_of(pepper(loaded, plugins))
    reports = check(folder / "audit", Anchors(folder / "anchors", key), key, list(from_log(_lines(logs))))
    if as_json:
        click.echo(json.dumps({"intact": all(report.intact for report in reports), "chains": [_json(each) for each in reports]}))
    elif not reports:
        click.echo(f"No audit log in {folder}.")
    else:
        for report in reports:
            for line in _told(report):
                click.echo(printable(line))
    if not all(report.intact for report in reports):
        ctx.exit(1)


def _lines(logs: Iterable[Path]) -> Iterator[str]:
    for path in logs:
        with click.open_file(str(path), "r", encoding="utf-8", errors="replace") as file:
            yield from file


def _told(report: Report) -> list[str]:
    rows = f"{report.rows:,} rows ({report.first} to {report.last})" if report.rows else "no rows"
    verdict = "intact" if report.intact else "BROKEN"
    lines = [f"{report.chain}: {rows}, {verdict}"]
    if report.cut:
        lines.append(f"  of {report.cut:,} of them retention has removed the text, or what was said")
    lines += [f"  {finding}" for finding in report.findings]
    if report.unsaid:
        lines.append(f"  ... and {report.unsaid} more")
    if report.torn:
        lines.append(f"  {report.torn} bytes of a row that was never finished: a crash, or a row being written")
    if report.tail and report.intact:
        lines.append(f"  unanchored tail of {report.tail} rows: had it been cut shorter, nothing here would show it")
    return lines


def _json(report: Report) -> dict[str, Any]:
    return {
        "chain": report.chain,
        "intact": report.intact,
        "rows": report.rows,
        "first": report.first,
        "last": report.last,
        "anchored": report.anchored,
        "unanchored": report.tail,
        "torn_bytes": report.torn,
        "cut": report.cut,
        "findings": report.findings,
        "more_findings": report.unsaid,
    }


_since = click.option("--since", help='A duration ("2h", "7d") or a date and time ("2026-01-31T00:00:00Z").')
_until = click.option("--until", help="The same, of the end.")
_key = click.option("--key", help="Only this key's.")
_user = click.option("--user", help="Only this user's.")
_outcome = click.option("--outcome", help="Only what ended so; `refused.` takes all that begin with it.")


@command.command()
@click.argument("request_id", required=False)
@config_option
@_since
@_until
@_key
@_user
@_outcome
@click.option("--last", type=click.IntRange(1, _MOST), default=20, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="The rows as they are, one a line.")
@click.option("--content", is_flag=True, help="What was said, too, where it was kept; it takes the content_key.")
def show(request_id: str | None, config_file: Path | None, last: int, as_json: bool, content: bool, **wanted: str | None) -> None:
    """The newest rows; or all that is known of REQUEST_ID."""
    loaded, plugins = load_config(config_file)
    folder = state_dir(loaded) / "audit"
    rows = [row for row in _rows(folder, **wanted) if request_id is None or row["request_id"] == request_id]
    rows = sorted(rows, key=lambda row: str(row.get("time")))[-last:]
    if request_id is not None and not rows:
        raise ConfigError([f"REQUEST_ID: no row of {folder} has {printable(request_id)}; retention may have removed it"])
    if content:
        _open(rows, loaded, plugins)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    elif request_id is not None:
        for name, value in rows[-1].items():
            if value not in (None, [], {}) and (content or name != "content"):
                click.echo(printable(f"{name:<18} {value if isinstance(value, str) else json.dumps(value)}"))
    elif rows:
        _table([COLUMNS, *(_cells(row) for row in rows)])
    else:
        click.echo(f"No such rows in {folder}.")


def _open(rows: list[dict[str, Any]], loaded: Loaded, plugins: Plugins) -> None:
    """In place. Raises ConfigError."""
    from clawproxy_audit.content import Box
    from clawproxy_audit.settings import AuditSettings

    settings = loaded.settings.get("audit")
    if not isinstance(settings, AuditSettings) or settings.content_key is None:
        raise ConfigError(["--content: plugins.audit.content_key is not set"])
    schemes = plugins.registry.secret_schemes
    box = Box(resolve_secret(settings.content_key, schemes, needed_by="plugins.audit.content_key"))
    for row in rows:
        if "content" in row:
            try:
                row["content"] = box.open(row["request_id"], row["content"])
            except ValueError as error:
                raise ConfigError([f"{printable(row['request_id'])}: {error}"]) from None


@command.command()
@config_option
@_since
@_until
@_key
@_user
@_outcome
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
def export(config_file: Path | None, form: str, **wanted: str | None) -> None:
    """Write rows to stdout, oldest first by chain, for other tools.

    As JSON lines they keep their links and MACs. A line of CSV is for people: it has neither those nor the content.
    """
    from clawproxy_audit.rows import Row

    loaded, _ = load_config(config_file)
    rows = _rows(state_dir(loaded) / "audit", **wanted)
    if form == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    names = [name for name, _ in _flat(dict.fromkeys(["seq", *Row.__struct_fields__]))]
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(names)
        flat = dict(_flat(row))
        cells = [flat.get(name) for name in names]
        writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in cells])
        click.echo(buffer.getvalue(), nl=False)
        buffer.seek(0)
        buffer.truncate()


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name in _TABLES:
            fields = {"usage": ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "source"),
                      "route": ("provider", "model"), "attribution": ("client", "agent_id", "session_id", "project_id"),
                      "timing_ms": ("queue", "first_token", "upstream", "gateway", "total")}[name]  # fmt: skip
            yield from ((f"{name}.{each}", (value or {}).get(each)) for each in fields)
        else:
            yield name, json.dumps(value) if isinstance(value, (list, dict)) else value


def _rows(
    folder: Path, *, since: str | None, until: str | None, key: str | None, user: str | None, outcome: str | None
) -> Iterator[dict[str, Any]]:
    from clawproxy_audit.verify import chains_in, opened

    begin, end = _moment("--since", since, 0.0), _moment("--until", until, float("inf"))
    unreadable = 0
    for chain in chains_in(folder):
        files = opened(folder, chain)
        try:
            for _, file in files:
                for line in file:
                    try:
                        row = json.loads(line)
                        if isinstance(row, dict) and "removed" in row:  # by retention
                            continue
                        at = datetime.datetime.fromisoformat(row["time"]).timestamp()
                        said = row["outcome"], row["request_id"]
                        if not all(isinstance(row.get(name), dict | None) for name in _TABLES):
                            raise TypeError
                    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # who looks may suspect as much
                        unreadable += 1
                        continue
                    if not begin <= at <= end or (key is not None and row.get("key") != key):
                        continue
                    if (user is None or row.get("user") == user) and (outcome is None or _is(said[0], outcome)):
                        yield row
        finally:
            for _, file in files:
                file.close()
    if unreadable:
        say(f"{unreadable} lines could not be read; `clawproxy audit verify` says more")


def _is(outcome: object, wanted: str) -> bool:
    return outcome == wanted or (wanted.endswith(".") and str(outcome).startswith(wanted))


def _moment(option: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        if text[:4].isdecimal() and text[4:5] == "-":
            moment = datetime.datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            return moment.timestamp()
        return time.time() - parse_duration(text)
    except ValueError as error:
        raise ConfigError([f"{option}: {error}; or write a date and time, like 2026-01-31T00:00:00Z"]) from None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    usage, route, timing = row.get("usage") or {}, row.get("route") or {}, row.get("timing_ms") or {}
    values = (
        str(row.get("time"))[:19], row.get("key"), row.get("user"), row.get("model"),
        f"{route.get('provider')}/{route.get('model')}" if route else None, row.get("outcome"),
        usage.get("input_tokens"), usage.get("output_tokens"), timing.get("total"), row.get("request_id"),
    )  # fmt: skip
    return tuple("-" if value is None else printable(str(value))[:40] for value in values)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        sys.stdout.write(line + "\n")
