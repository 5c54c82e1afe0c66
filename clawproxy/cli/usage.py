"""`clawproxy usage`: what was used and what it cost, from the ledger, with the gateway up or down.

Rule 1: no provider's secret is resolved.
Rule 2: what is estimated is marked `~`, what is not known `?`. A cost that is not known is never 0.
Rule 3: names came from clients: they are printed without anything that moves a cursor, and exported without formulas.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import evolve

from clawproxy.cli.common import config_option, load_config, no_formula
from clawproxy.cli.keys import with_store
from clawproxy.cli.usagetable import chart, table
from clawproxy.config.load import Loaded
from clawproxy.errors import ConfigError
from clawproxy.ops.reports import Report, document, encode, figures, parse_query, report

DIMENSIONS = ("key", "user", "team", "app", "model", "provider", "provider_model", "outcome")


def _told_by(function: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(DIMENSIONS):
        words = "Only what ended so." if name == "outcome" else f"Only this {name.replace('_', ' ')}'s; `-`: without one."
        function = click.option(f"--{name.replace('_', '-')}", name, help=words)(function)
    return function


since_option = click.option("--since", help='How long ago ("7d"), or a date or a time in UTC ("2026-11-01"). The beginning.')
until_option = click.option("--until", help="The same, of the end, which does not belong to it. Now.")


@click.group("usage", invoke_without_command=True)
@config_option
@click.option("--by", help=f"What to group by, up to four: {', '.join(DIMENSIONS)}, hour, day, month.")
@since_option
@until_option
@_told_by
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="One line for each group.")
@click.option(
    "--chart",
    "charted",
    is_flag=False,
    flag_value="cost",
    type=click.Choice(["cost", "tokens", "requests"]),
    help="Bars, of the cost where nothing else is said.",
)
@click.pass_context
def command(ctx: click.Context, /, config_file: Path | None, **asked: Any) -> None:
    """What was used and what it cost: sums of the ledger."""
    as_json, as_csv, charted = asked.pop("as_json"), asked.pop("as_csv"), asked.pop("charted")
    given = {name: value for name, value in asked.items() if value is not None}
    if ctx.invoked_subcommand is not None:
        if given or as_json or as_csv or charted:
            raise click.UsageError(f"what is asked of `{ctx.invoked_subcommand}` is written after that word")
        ctx.obj = config_file
        return
    if (as_json, as_csv, charted is not None).count(True) > 1:
        raise click.UsageError("one of --json, --csv and --chart")
    if "by" not in given and not as_json:
        given["by"] = "day" if charted else "model"
    made = reported(load_config(config_file)[0], given)
    if as_json:
        click.echo(encode(document(made)).decode())
    elif as_csv:
        click.echo(csv_of(made), nl=False)
    else:
        for line in chart(made, charted) if charted else table(made):
            click.echo(line)


def reported(loaded: Loaded, asked: dict[str, str]) -> Report:
    """Raises ConfigError, ClawError."""
    try:
        query = parse_query(asked, time.time())
    except ValueError as error:
        raise ConfigError([f"--{str(error).replace('_', '-', 1) if str(error).startswith('provider_') else error}"]) from None
    return with_store(loaded, lambda store: report(store, query))


def csv_of(made: Report) -> str:
    """A line for each group; without any, one for all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = made.rows if made.query.by else [evolve(made.total, groups=())]
    for index, row in enumerate(rows):
        groups: dict[str, str | None] = dict(zip(made.query.by, row.groups, strict=True))
        cells = {**groups, **figures(row)}
        if index == 0:
            writer.writerow(cells)
        writer.writerow([safe(value) for value in cells.values()])
    return buffer.getvalue() or ",".join([*made.query.by, *figures(made.total)]) + "\n"


def safe(value: Any) -> Any:
    """As a cell."""
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, str):
        return bytes(value).decode()
    return no_formula(value)


@command.command(short_help="How each budget stands.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def budgets(ctx: click.Context, config_file: Path | None, as_json: bool) -> None:
    """Each budget: what is used of it, what is held by requests under way, and when it begins anew."""
    from clawproxy.cli.usagetable import standings
    from clawproxy.ops.standings import budget_standings, standings_document

    loaded, _ = load_config(config_file or ctx.obj)
    now = time.time()
    found = with_store(loaded, lambda store: budget_standings(store, loaded.config, now))
    if as_json:
        click.echo(encode(standings_document(found, now)).decode())
        return
    for line in standings(found):
        click.echo(line)


@command.command(short_help="Hold a provider's export against the ledger.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@config_option
@click.option(
    "--columns",
    help='Of another form: day=, model=, input=, output=, cost=, id=, like "day=date,input=in+cached".',
)
@click.option("--provider", help="Only this provider's attempts: the export is of one account.")
@since_option
@until_option
@click.option("--tolerance", default="1%", show_default=True, help="How far the two may be apart.")
@click.option("--all", "show_all", is_flag=True, help="What agrees, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def reconcile(
    ctx: click.Context, /, file: Path, config_file: Path | None, show_all: bool, as_json: bool, tolerance: str, **asked: Any
) -> None:
    """Hold a provider's export (CSV) against the ledger, by day and model. Exit code: 1 where they are apart.

    OpenAI's usage and cost exports and Anthropic's are known by their columns.
    """
    from clawproxy.cli.reconcile import compare, lines_of, parse_columns, parse_tolerance, read_export, rows_for, told

    columns = asked.pop("columns")
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        share = parse_tolerance(tolerance)
        with click.open_file(str(file), "r", encoding="utf-8-sig", errors="replace") as lines:
            export = read_export(lines, None if columns is None else parse_columns(columns))
        query = parse_query(given, time.time())
    except (ValueError, csv.Error) as error:
        raise ConfigError([f"{file}: {error}"]) from None
    loaded, _ = load_config(config_file or ctx.obj)
    ledger = with_store(loaded, lambda store: rows_for(store, export, query))
    compared = compare(export, ledger, share)
    if as_json:
        click.echo(encode(told(compared, export, share)).decode())
    else:
        for line in lines_of(compared, export, show_all=show_all):
            click.echo(line)
    if any(not each.agrees for each in compared):
        ctx.exit(1)
