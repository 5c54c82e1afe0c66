"""`websocket` in a provider's section."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.errors import ConfigError
from clawproxy.pipeline import Plugins

SETTINGS = Plugins(PipelineConfig().order).registry.settings
FILE = '[providers.a]\ndialect = "{dialect}"\nbase_url = "https://x.example/v1"\nwebsocket = {value}\n'


def test_a_responses_provider_may_be_asked_over_websockets(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(FILE.format(dialect="openai_responses", value="true"))
    result = load(tmp_path / "claw.toml", settings=SETTINGS, environ={})
    assert result.config.providers["a"].websocket
    assert not result.warnings


@pytest.mark.parametrize("dialect", ["openai_chat", "azure", "anthropic", "gemini", "acme"])
def test_no_other_dialect_has_that_mode(tmp_path: Path, dialect: str) -> None:
    file = tmp_path / "claw.toml"
    file.write_text(FILE.format(dialect=dialect, value="true"))
    with pytest.raises(ConfigError) as caught:
        load(file, settings=SETTINGS, known_dialects=["acme"], environ={})
    said = f'providers.a.websocket: has no meaning for dialect = "{dialect}"; only openai_responses has that mode'
    assert f"{file}:4: {said}" in caught.value.problems
