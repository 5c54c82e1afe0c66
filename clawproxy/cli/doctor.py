"""`clawproxy doctor`: which clock cuts what, how often, whose fault it is, and what to change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from clawproxy.cli.common import config_option, load_config
from clawproxy.config.units import parse_duration
from clawproxy.doctor import Evidence, as_json, as_text, diagnose, gather
from clawproxy.doctor.balancers import BALANCERS, named


@click.command("doctor")
@config_option
@click.option("--log", "logs", multiple=True, metavar="FILE|-", help="A log of the gateway's; may be given several times.")
@click.option(
    "--behind",
    type=click.Choice(list(BALANCERS)),
    metavar="NAME",
    help=f"What stands between the clients and the gateway: {', '.join(BALANCERS)}.",
)
@click.option("--behind-idle", metavar="DURATION", help="Its idle limit, where that is not the default: 60s.")
@click.option("--json", "as_object", is_flag=True, help="One JSON object instead of text.")
@click.pass_context
def command(
    ctx: click.Context,
    config_file: Path | None,
    logs: tuple[str, ...],
    behind: str | None,
    behind_idle: str | None,
    as_object: bool,
) -> None:
    """Say which clock cuts what, whose fault it is, and what to change.

    Reads the configuration and JSON logs, and nothing else; the gateway may be up or down. Exit code 0: healthy; 1: there is
    something to change; 2: the configuration, a log or the command line can not be read.
    """
    loaded, _ = load_config(config_file)
    idle = None
    if behind_idle is not None:
        try:
            idle = parse_duration(behind_idle)
        except ValueError as error:
            raise click.UsageError(f"--behind-idle: {error}") from None
    evidence: Evidence | None = None
    for log in logs:
        try:
            evidence = gather(_lines(log), evidence)
        except OSError as error:
            raise click.UsageError(f"--log {log}: {error.strerror}; name a file that this user may read") from None
    findings = diagnose(loaded.config, evidence or Evidence(), named(behind, idle))
    click.echo((as_json if as_object else as_text)(findings, evidence), nl=False)
    ctx.exit(1 if any(finding.wrong for finding in findings) else 0)


def _lines(log: str) -> Iterator[str]:
    if log == "-":
        yield from (line.decode("utf-8", "replace") for line in sys.stdin.buffer)
        return
    with Path(log).open(encoding="utf-8", errors="replace") as file:
        yield from file
