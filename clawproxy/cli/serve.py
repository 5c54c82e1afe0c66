"""`clawproxy serve`: the gateway itself.

Rule 1: stdout gets one line, when every listener is up; everything after that is JSON on stderr.
Rule 2: the ready file appears by rename and whole, and goes when the gateway does: who finds it can connect.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from clawproxy.cli import leaves
from clawproxy.cli.common import check_ready, config_option, load_config, state_dir
from clawproxy.cli.firstkey import first_key
from clawproxy.errors import ConfigError
from clawproxy.ops import logs

if TYPE_CHECKING:
    from clawproxy.server import Listening


@click.command("serve")
@config_option
@click.option("--ready-file", type=click.Path(path_type=Path), metavar="PATH", help="Write the addresses here once all listen.")
@click.option("--ephemeral", is_flag=True, help="Keep nothing: no ledger, no keys, no audit log.")
def command(config_file: Path | None, ready_file: Path | None, ephemeral: bool) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then let running answers finish.

    SIGHUP, or a change of the file, reloads the configuration; a file that is wrong changes nothing and is reported in the log.
    """
    from clawproxy.server import run

    loaded, plugins = load_config(config_file)
    warnings = check_ready(loaded, plugins)
    if not ephemeral:
        state_dir(loaded)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
        if not os.access(ready_file.absolute().parent, os.W_OK):
            raise ConfigError([f"--ready-file {ready_file}: its folder can not be written; name a file that this user may write"])
    logs.setup(loaded.config.log.level)
    for warning in warnings:
        logs.log_event("config.warning", "warning", message=warning, cause=warning)
    try:
        config = first_key(loaded, plugins, ephemeral=ephemeral)
        trio.run(partial(run, config, ready=partial(announce, ready_file), ephemeral=ephemeral))
    except (ConfigError, ExceptionGroup) as error:
        problems = [problem for leaf in leaves(error) if isinstance(leaf, ConfigError) for problem in leaf.problems]
        if not problems:
            raise
        raise ConfigError([loaded.source.located(problem) for problem in problems]) from error
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        logs.LOG.say_suppressed()


def settle() -> None:
    """What start-up made stays for good: out of the collector's sight, which then has little to look at. Of what requests make
    nearly nothing is left when they end; a collection each 700 of it took 6 % of the time, and pauses of 20 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def announce(ready_file: Path | None, listening: Listening) -> None:
    """Tell whoever started us. Raises OSError where the ready file can not be written."""
    settle()
    if ready_file is not None:
        draft = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        # "x": where somebody else may write in the folder too, what stands there under this name is not followed
        with draft.open("x") as file:
            file.write(json.dumps({"listen": listening.listen, "admin": listening.admin, "pid": listening.pid}) + "\n")
        draft.rename(ready_file)
    try:
        sys.stdout.write(f"clawproxy listening on {', '.join(listening.listen)}\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        logs.log_event("server.stdout_closed", "warning")
