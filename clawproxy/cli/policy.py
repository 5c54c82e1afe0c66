"""`clawproxy policy`: policies tested, replayed over the past, and asked why.

Rule 1: nothing is asked of a provider, and no provider's secret is resolved; the audit log is read as it lies there, with the
        gateway up or down.
Rule 2: exit codes as everywhere; 1 also where a case fails, or a request is not in the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from clawproxy.cli import say
from clawproxy.cli.auditrows import parse_since, row_of, rows
from clawproxy.cli.common import config_option, load_config, printable, state_dir

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value.")
since_option = click.option(
    "--since", help='How far back: a duration ("24h"), or a date and time with its offset. All, where not given.'
)


@click.group("policy")
def command() -> None:
    """Test policies, and ask why a request went where it went."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
def test(file: Path, config_file: Path | None) -> None:
    """Run the cases in FILE through the policies and the router. Exit code 1 where one fails."""
    from clawproxy.cli.policycases import read_cases, run_cases

    loaded, _ = load_config(config_file)
    cases, source = read_cases(file)
    results = run_cases(loaded, cases, source)
    for result in results:
        click.echo(f"{'FAIL' if result.problems else 'ok  '} {printable(result.name)}")
        for problem in result.problems:
            click.echo(f"     {problem}")
    failed = sum(bool(result.problems) for result in results)
    click.echo(f"{len(results)} cases, {failed} failed.")
    if failed:
        raise click.exceptions.Exit(1)


@command.command(short_help="Say why a request went where it went.")
@click.argument("request_id")
@config_option
@json_option
def explain(request_id: str, config_file: Path | None, as_json: bool) -> None:
    """Say why the request REQUEST_ID went where it went: candidates, rules, the reason, attempts."""
    from clawproxy.cli.policyexplain import explained, lines

    loaded, _ = load_config(config_file)
    folder = state_dir(loaded)
    row = row_of(folder, request_id)
    if row is None:
        say(f"clawproxy: no request {printable(request_id)!r} in {folder / 'audit'}; it may be too old, or of another gateway")
        raise click.exceptions.Exit(1)
    found = explained(row, loaded.config)
    click.echo(json.dumps(found) if as_json else "\n".join(lines(found)))


@command.command("dry-run", short_help="Replay past requests through the policies.")
@config_option
@since_option
@click.option(
    "--policies",
    "policies_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Other policies than the configuration's.",
)
@json_option
def dry_run(config_file: Path | None, since: str | None, policies_file: Path | None, as_json: bool) -> None:
    """Replay past requests through the policies, and say what would have been different."""
    from clawproxy.cli import policyreplay

    loaded, _ = load_config(config_file)
    start = parse_since(since)
    policies = loaded.config.policies if policies_file is None else policyreplay.policies_in(policies_file, loaded)
    made = policyreplay.replay(rows(state_dir(loaded), start), policies)
    if as_json:
        click.echo(json.dumps(policyreplay.as_json(made)))
        return
    click.echo(f"{made.requests} requests; policies would have done something else on {made.differ} of them.")
    table: list[Sequence[Any]] = [("policy", "action", "recorded", "now", "newly", "no longer", "for example")]
    for line in sorted(made.lines.values(), key=lambda line: (line.shadow, line.policy, line.action)):
        name = f"{line.policy} (shadow)" if line.shadow else line.policy
        example = line.examples[0] if line.examples else ""
        table.append((name, line.action, line.recorded, line.now, line.newly, line.no_longer, example))
    _print(table)
    for name, count in made.unknown.items():
        asked = ", ".join(policyreplay.undecidable(policies[name]))
        click.echo(f"{name}: not known for {count} requests; the audit log does not hold {asked}.")


@command.command(short_help="Say what shadows would have changed.")
@config_option
@since_option
@json_option
def diff(config_file: Path | None, since: str | None, as_json: bool) -> None:
    """Say what policies in a shadow would have changed, as they recorded it on live traffic."""
    from clawproxy.cli import policyreplay

    loaded, _ = load_config(config_file)
    found = policyreplay.shadows(rows(state_dir(loaded), parse_since(since)), loaded.config)
    if as_json:
        click.echo(json.dumps([attrs.asdict(each) for each in found]))
    elif not found:
        click.echo("No policy in a shadow has applied.")
    else:
        table = [(each.policy, each.action, each.requests, each.different, "".join(each.examples[:1])) for each in found]
        _print([("policy", "action", "requests", "different", "for example"), *table])


def _print(table: Sequence[Sequence[Any]]) -> None:
    cells = [[printable(str(cell)) for cell in row] for row in table]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    for row in cells if len(cells) > 1 else ():
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
