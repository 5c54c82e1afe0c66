"""docs/policies.md and examples/policies: what they say is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from clawproxy.cli.policycases import Asked, Expected, read_cases, run_cases
from clawproxy.config.load import Loaded, load
from clawproxy.config.policies import ACTIONS
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy.testing import claw
from clawproxy_router.policies.facts import SCANNED
from tests.cli.test_policy_commands import KEYS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text()
EXAMPLE = ROOT / "examples" / "policies"
SETTINGS = Plugins(PipelineConfig().order).registry.settings


def loaded(path: Path) -> Loaded:
    found = load(path, settings=SETTINGS, environ=KEYS)
    assert found.warnings == []
    return found


def test_the_pages_cases_pass(tmp_path: Path) -> None:
    [config] = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    [cases] = re.findall(r"^```toml file=cases\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "claw.toml").write_text(config)
    (tmp_path / "cases.toml").write_text(cases)
    results = run_cases(loaded(tmp_path / "claw.toml"), *read_cases(tmp_path / "cases.toml"))
    assert len(results) == 3
    assert [result.problems for result in results] == [(), (), ()]


def test_every_word_is_explained() -> None:
    for action in ACTIONS:
        assert f"\n| `{action}` |" in PAGE
    tables = "".join(line for line in PAGE.splitlines() if line.startswith("| "))
    for cls in (Asked, Expected):
        for name in attrs.fields_dict(cls):
            assert f"`{name}`" in tables, name
    assert SCANNED == 256 * 1024


@pytest.mark.parametrize(("key", "prompt", "text"), [("staff", "hello", "ok"), ("intern", "Project Nightingale", "")])
async def test_the_example_runs(key: str, prompt: str, text: str) -> None:
    config = loaded(EXAMPLE / "clawproxy.toml").config
    async with claw(config=config) as running:
        from clawproxy.messages import Principal

        answer = await running.ask(prompt, model="large", principal=Principal(key, roles=config.keys[key].roles))
        assert answer.text == text
        assert (answer.error is None) is bool(text)
