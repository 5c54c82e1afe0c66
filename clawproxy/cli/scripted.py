"""`clawproxy scripted`: the scripted provider on its own, to point a gateway (or anything that speaks to OpenAI) at."""

from __future__ import annotations

import click
import trio

from clawproxy.errors import ConfigError


@click.command("scripted")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--script", metavar="TEXT|FILE", help="What it says, unless a prompt brings its own script (docs/scripted.md).")
def command(host: str, port: int, script: str | None) -> None:
    """Run an LLM provider that follows a script: answers, pauses, and faults on demand."""
    from clawproxy.scripted import DEMO_SCRIPT, ScriptError, run_standalone
    from clawproxy.scripted.__main__ import read_script

    try:
        parsed = read_script(DEMO_SCRIPT if script is None else script)
    except (ScriptError, UnicodeDecodeError) as problem:
        raise ConfigError([f"--script: {problem}"]) from None
    trio.run(run_standalone, host, port, parsed, _ready)


def _ready(base_url: str) -> None:
    click.echo(f"scripted provider listening on {base_url}")
