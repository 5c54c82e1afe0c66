"""`clawproxy check`: everything wrong with a configuration, before it runs."""

from __future__ import annotations

from pathlib import Path

import click

from clawproxy.cli.common import config_option, load_config
from clawproxy.errors import ConfigError


@click.command("check")
@config_option
def command(config_file: Path | None) -> None:
    """Say what is wrong with a configuration.

    Problems and warnings go to stderr, each with its file, line and fix. Exit code 0: it can be served (warnings do not count);
    2: it can not. Nothing is connected to, so that a provider that is down is no problem of the configuration.
    """
    loaded, registry = load_config(config_file)
    problems, warnings = loaded.secret_problems(registry.secret_schemes)
    for warning in [*loaded.warnings, *warnings]:
        click.echo(f"warning: {warning}", err=True)
    if problems:
        raise ConfigError(problems)
    config = loaded.config
    name = config.path or "no configuration file"
    click.echo(
        f"{name}: good. {_count(len(config.providers), 'provider')}, {_count(len(config.models), 'model')}, "
        f"{_count(len(config.keys), 'static key')}; plugins in order: {', '.join(config.pipeline.order)}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
