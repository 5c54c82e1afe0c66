"""`python -m clawproxy.scripted [--host H] [--port N] [--script FILE|TEXT] [--cache D]`: print the base URL and serve."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import trio

from clawproxy.scripted.cursor import ScriptError
from clawproxy.scripted.script import Script, parse
from clawproxy.scripted.server import DEMO_SCRIPT, run_standalone
from clawproxy.scripted.values import read_duration


def read_script(given: str) -> Script:
    """From a file's name, or the text itself. Raises ScriptError, OSError."""
    path = Path(given)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False  # too long for a name, or holds a NUL: a text
    return parse(path.read_text(encoding="utf-8") if is_file else given)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m clawproxy.scripted", description="An LLM provider that follows a script.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--script", default=DEMO_SCRIPT, help="a script's text, or a file that holds it")
    parser.add_argument("--cache", default=None, help="how long it caches prompts, such as 5m; it does not, unless told so")
    options = parser.parse_args(arguments)
    try:
        script = read_script(options.script)
    except (ScriptError, OSError) as problem:
        parser.error(f"--script: {problem}")
    try:
        cache = None if options.cache is None else read_duration(options.cache)
    except ValueError as problem:
        parser.error(f"--cache: {problem}")
    try:
        trio.run(partial(run_standalone, options.host, options.port, script, _ready, cache=cache))
    except* OSError as problems:
        parser.exit(1, f"cannot listen on {options.host}:{options.port}: {problems.exceptions[0]}\n")
    except* KeyboardInterrupt:
        sys.exit(130)


def _ready(base_url: str) -> None:
    sys.stdout.write(f"scripted provider listening on {base_url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
