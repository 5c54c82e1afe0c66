"""A configuration file, as the gateway and `check` load it with the built-in plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config.load import Loaded, load
from clawproxy.config.schema import PipelineConfig
from clawproxy.errors import ConfigError
from clawproxy.pipeline import Plugins

PLUGINS = Plugins(PipelineConfig().order).registry


def loaded(folder: Path, text: str) -> Loaded:
    file = folder / "claw.toml"
    file.write_text(text)
    return load(file, settings=PLUGINS.settings, environ={})


def problems(folder: Path, text: str) -> list[str]:
    """What is told of a file that is refused, as `claw.toml:LINE: key: sentence`."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]
