"""Plugins' own sections, checked by the plugins' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clawproxy.config.locate import dotted
from clawproxy.config.schema import Config
from clawproxy.config.structure import make_converter, structure_section
from clawproxy.errors import ConfigError


def settings_of(config: Config, classes: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Each plugin's settings by its name, defaults where the configuration has no section. Raises ConfigError."""
    base = Path.cwd() if config.path is None else config.path.absolute().parent
    converter = make_converter(base)
    settings: dict[str, Any] = {}
    problems: list[str] = []
    for name, cls in classes.items():
        made, wrong = structure_section(converter, cls, config.plugins.get(name, {}), ("plugins", name))
        problems += [f"{dotted(path)}: {sentence}" for path, sentence in wrong]
        settings[name] = made
    if problems:
        raise ConfigError(problems)
    return settings
