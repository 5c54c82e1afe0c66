"""The command line: one module per command, imported only when the command is run, so that `--help` is quick.

Exit codes, all commands: 0 done; 1 this machine or the gateway said no (a file can not be written, nobody listens there); 2 the
configuration or the command line is wrong (an address that can not be listened on included: the configuration names it);
130 Ctrl-C. Problems go to stderr, one a line, never as a traceback; a defect is one JSON line with the places it came through.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from clawproxy._version import __version__

COMMANDS = {
    "serve": "Run the gateway.",
    "demo": "See it work: no key, no network.",
    "chat": "Talk to a gateway from a terminal.",
    "check": "Say what is wrong with a configuration.",
    "audit": "Verify the audit log, and look into it.",
    "doctor": "Say which clock cuts what, and what to change.",
    "keys": "Make, list and revoke client keys.",
    "policy": "Test policies, and ask why a request went where it went.",
    "usage": "What was used and what it cost, from the ledger.",
    "scripted": "Run the scripted provider on its own.",
}


class Commands(click.Group):
    """A group whose commands' modules are imported late; the list of commands imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"clawproxy.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="clawproxy")
def clawproxy() -> None:
    """A gateway between applications and LLM providers."""


def main() -> NoReturn:
    """Run one command and exit with its code."""
    try:
        code = clawproxy.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        code = explain(error)
    if code == 1 and _stdout_is_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: BaseException) -> int:
    """Say what ended the command, in words, and with which code to exit."""
    from clawproxy.errors import ClawError, ConfigError

    found = leaves(error)
    if any(isinstance(leaf, (KeyboardInterrupt, click.Abort)) for leaf in found):
        return 130
    for kind in (ConfigError, ClawError, OSError):
        for leaf in found:
            if not isinstance(leaf, kind):
                continue
            if isinstance(leaf, ConfigError):
                for problem in leaf.problems:
                    say(problem)
                return 2
            if isinstance(leaf, ClawError):
                say(f"clawproxy: {leaf.message}")
            elif not isinstance(leaf, BrokenPipeError):
                assert isinstance(leaf, OSError)
                where = f"{leaf.filename}: " if leaf.filename else ""
                say(f"clawproxy: {where}{leaf.strerror or type(leaf).__name__}")
            return 1
    from clawproxy.ops.logs import log_exception

    log_exception("cli.crashed", error)
    say("clawproxy: this is a defect in ClawProxy; please report it with the line above")
    return 1


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in leaves(child)]
    return [error]


def say(line: str) -> None:
    """One line on stderr; lost where nobody reads it."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def _stdout_is_gone() -> bool:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False
