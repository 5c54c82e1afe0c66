"""docs/routing.md: its words are those of the code, its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import clawproxy_router
from clawproxy.config.checks_models import STRATEGIES
from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy.testing import claw
from clawproxy_router.tree import LEFT_OUT, REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SETTINGS = Plugins(PipelineConfig().order).registry.settings


def test_every_word_is_explained() -> None:
    assert tuple(REASONS) == STRATEGIES
    for strategy, reason in REASONS.items():
        assert re.search(rf"^\| `{strategy}` \|.*`{reason}`", PAGE, re.MULTILINE)
    for word in LEFT_OUT:
        assert f"\n| `{word}` |" in PAGE
    assert len(EXAMPLES) == 4
    assert clawproxy_router.RouterSettings().explore == 0.02


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_the_examples_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(EXAMPLES[number])
    loaded = load(tmp_path / "claw.toml", settings=SETTINGS, environ={})
    assert loaded.warnings == []
    async with claw(config=loaded.config) as running:
        for model in loaded.config.models:
            answer = await running.ask(model=model)
            assert answer.error is None
            assert answer.text == "ok"
            assert answer.exchange is not None
            assert len(answer.exchange.considered) >= 2
