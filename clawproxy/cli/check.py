"""`clawproxy check`: everything wrong with a configuration, before it runs."""

from __future__ import annotations

from pathlib import Path

import click

from clawproxy.cli.common import check_ready, config_option, load_config
from clawproxy.config.edge import relaxed


@click.command("check")
@config_option
@click.option("--edge", is_flag=True, help="Also list what lets more in, or more out, than the defaults do.")
def command(config_file: Path | None, edge: bool) -> None:
    """Say what is wrong with a configuration.

    Problems and warnings go to stderr, each with its file, line and fix. Exit code 0: it can be served (warnings do not count);
    2: it can not. Nothing is connected to, so that a provider that is down is no problem of the configuration.
    """
    loaded, plugins = load_config(config_file)
    for warning in check_ready(loaded, plugins):
        click.echo(f"warning: {warning}", err=True)
    config = loaded.config
    name = config.path or "no configuration file"
    click.echo(
        f"{name}: good. {_count(len(config.providers), 'provider')}, {_count(len(config.models), 'model')}, "
        f"{_count(len(config.keys), 'static key')}; plugins in order: {', '.join(config.pipeline.order)}."
    )
    if edge:
        rows = loaded.source.sentences(relaxed(config))
        click.echo("edge: nothing is relaxed" if not rows else f"edge: {_count(len(rows), 'thing')} relaxed")
        for row in rows:
            click.echo(f"  {row}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
