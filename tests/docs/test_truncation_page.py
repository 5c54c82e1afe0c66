"""docs/truncation.md: its strategies are those of the code, its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy.testing import claw
from clawproxy_truncate.settings import Strategy

PAGE = (Path(__file__).parents[2] / "docs" / "truncation.md").read_text()


def test_every_strategy_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(get_args(Strategy))


async def test_the_example_runs(tmp_path: Path) -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "claw.toml").write_text(example)
    loaded = load(tmp_path / "claw.toml", settings=Plugins(PipelineConfig().order).registry.settings, environ={})
    assert loaded.warnings == []
    async with claw(config=loaded.config) as running:
        assert (await running.ask(model="chat")).error is None
