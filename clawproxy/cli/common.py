"""What the commands share: finding and reading the configuration with its plugins' help, and text that is safe to print."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from clawproxy.config import environment
from clawproxy.config.load import Loaded, load, parse, read
from clawproxy.config.schema import PipelineConfig, SecretRef
from clawproxy.config.secretrefs import resolve_secret
from clawproxy.context import App
from clawproxy.errors import ConfigError
from clawproxy.keys import load_or_create_pepper
from clawproxy.pipeline import Plugins, compile_pipeline, installed
from clawproxy.secrets import Secret
from clawproxy.stores.memory import MemoryStore

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration; else $CLAWPROXY_CONFIG, ./clawproxy.toml, or none: then the environment alone.",
)


def load_config(option: Path | None) -> tuple[Loaded, Plugins]:
    """The configuration the command line and the environment ask for, and its plugins.

    Raises:
        ConfigError: every problem, those of plugins included.
    """
    path = environment.find_config(option, os.environ, Path.cwd())
    plugins, problems = _plugins(_plugins_wanted(path))
    registry = plugins.registry
    try:
        loaded = load(
            path, settings=registry.settings, known_dialects=registry.dialects, known_plugins=installed(), environ=os.environ
        )
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    if problems:
        raise ConfigError(problems)
    return loaded, plugins


def check_ready(loaded: Loaded, plugins: Plugins) -> list[str]:
    """What can only be known with the secrets at hand: that they are there, and that each plugin accepts its settings.

    Returns warnings.

    Raises:
        ConfigError: every problem.
    """
    schemes = plugins.registry.secret_schemes
    problems, warnings = loaded.secret_problems(schemes)
    if not problems:
        config = loaded.config

        def resolve(ref: SecretRef) -> Secret:
            try:
                return resolve_secret(ref, schemes)
            except ConfigError as error:  # as the server has it: whoever asked knows the key
                raise LookupError(error.problems[0]) from None

        app = App(config, MemoryStore(), "check", None, resolve_secret=resolve, pepper=os.urandom(32))
        try:
            compile_pipeline(plugins, config.pipeline.order, loaded.settings, app, lambda *_: None)
        except ConfigError as error:
            problems = [loaded.source.located(problem) for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return [*loaded.warnings, *warnings]


def _plugins_wanted(path: Path | None) -> list[str]:
    """The plugins that are in the order or have a section: no other one is imported."""
    raw: Mapping[str, Any] = {} if path is None else parse(read(path), str(path))
    raw = environment.overlay(os.environ, raw).raw
    order = raw["pipeline"].get("order") if isinstance(raw.get("pipeline"), dict) else None
    if isinstance(order, str):  # from CLAWPROXY__PIPELINE__ORDER
        order = [part.strip(" []\"'") for part in order.split(",")]
    names = [name for name in order if isinstance(name, str)] if isinstance(order, list) else list(PipelineConfig().order)
    sections = raw.get("plugins")
    return [name for name in dict.fromkeys([*names, *(sections if isinstance(sections, dict) else ())]) if name in installed()]


def _plugins(names: list[str]) -> tuple[Plugins, list[str]]:
    """These plugins; where one is broken, the others, and its problems."""
    try:
        return Plugins(names), []
    except ConfigError as error:
        problems = error.problems
    return Plugins([name for name in names if _loads(name)]), problems


def _loads(name: str) -> bool:
    try:
        Plugins([name])
    except ConfigError:
        return False
    return True


def state_dir(loaded: Loaded) -> Path:
    """The folder that is kept. Raises ConfigError where the configuration leaves it to a home directory that is not there."""
    folder = loaded.config.server.state_dir
    if str(folder).startswith("~"):
        raise ConfigError(["server.state_dir: this user has no home directory; set it, or CLAWPROXY_STATE_DIR"])
    return folder


def pepper(loaded: Loaded, plugins: Plugins) -> bytes:
    """What client keys are hashed with: `server.pepper`, else the one in the state directory, made on first use."""
    if loaded.config.server.pepper is not None:
        secret = resolve_secret(loaded.config.server.pepper, plugins.registry.secret_schemes, needed_by="server.pepper")
        return secret.reveal().encode()
    return load_or_create_pepper(state_dir(loaded))


def printable(text: str, *, lines: bool = False) -> str:
    """A model's, a client's or a gateway's text without what moves a cursor, changes a terminal or reorders a line; those become
    `·`. So do line ends and tabs, with which a name could pass for a row of its own, but for `lines`."""
    return "".join(
        char
        if (lines and char in "\n\t") or (unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") and char not in _BIDI)
        else "·"
        for char in text
    )


def no_formula(text: str) -> str:
    """As a cell of a CSV file: a spreadsheet takes a text that begins like a formula for one (CWE-1236)."""
    return f"'{text}" if text.startswith(_FORMULA) else text


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the first, in full width."""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
