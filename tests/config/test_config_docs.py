"""docs/configuration.md and docs/timeouts.md say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from clawproxy.clocks import CLOCKS, Deadlines
from clawproxy.config import ResidencyConfig, RoleConfig, TLSConfig, TLSNameConfig, environment, policies, prices, schema
from clawproxy.config.load import load
from clawproxy.config.units import render_duration, render_size
from clawproxy.errors import ConfigError
from clawproxy.pipeline import Plugins
from clawproxy_audit.settings import AuditTeam
from clawproxy_sanitize import settings as sanitize
from clawproxy_truncate import TruncateModel
from tests.docs.timeouts import RUNS, timeouts_page

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "configuration.md").read_text()
PLUGINS = Plugins(schema.PipelineConfig().order).registry
SECTIONS: dict[str, type[Any]] = {
    "## `[server]`": schema.ServerConfig,
    "## `[server.tls]`": TLSConfig,
    "### `[[server.tls.names]]`": TLSNameConfig,
    "## `[providers.NAME]`": schema.ProviderConfig,
    "## `[providers.NAME.pool]`": schema.PoolConfig,
    "## `[providers.NAME.oauth]`": schema.OAuthConfig,
    "## `[providers.NAME.tls]`": schema.ProviderTLSConfig,
    "## `[providers.NAME.health]`": schema.HealthConfig,
    "## `[models.NAME]`": schema.ModelConfig,
    "Each route:": schema.RouteConfig,
    '`price = { input = "0.15", output = "0.60", cached_input = "0.075" }`': prices.PriceConfig,
    "## `[keys.NAME]`": schema.KeyConfig,
    "## `[policies.NAME]`": policies.PolicyConfig,
    "`when` and `unless`:": policies.WhenConfig,
    "`size`:": policies.SizeConfig,
    "`time`:": policies.TimeConfig,
    "`restrict`:": policies.RestrictConfig,
    "## `[roles.NAME]`": RoleConfig,
    "## `[residency.NAME]`": ResidencyConfig,
    "## `[pipeline]`": schema.PipelineConfig,
    "## `[deadlines]`": Deadlines,
    "## `[limits]`": schema.LimitsConfig,
    "## `[budgets.NAME]`": schema.BudgetConfig,
    "## `[alerts]`": schema.AlertsConfig,
    "## `[log]`": schema.LogConfig,
    "## `[rates]`": prices.RatesConfig,
    "### `[plugins.truncate.models.NAME]`": TruncateModel,
    "### `[plugins.audit.teams.NAME]`": AuditTeam,
    **{f"### `[plugins.{name}]`": cls for name, cls in PLUGINS.settings.items()},
    **{
        f"### `[plugins.router.{name}]`": type(getattr(PLUGINS.settings["router"](), name))
        for name in ("breaker", "credentials", "retries", "ejection")
    },
    "#### `[plugins.sanitize.personal]`": sanitize.PersonalSettings,
    "#### `[plugins.sanitize.invisible]`": sanitize.InvisibleSettings,
    "#### `[plugins.sanitize.injection]`": sanitize.InjectionSettings,
    "#### `[plugins.sanitize.links]`": sanitize.LinkSettings,
    "#### `[plugins.sanitize.classifier]`": sanitize.ClassifierSettings,
}


def table(heading: str) -> dict[str, str]:
    """Key and default of the first table after a heading."""
    after = PAGE.split(f"\n{heading}\n", 1)[1]
    rows = {}
    for line in after[after.index("|---") :].splitlines()[1:]:
        if not line.startswith("|"):
            break
        key, default = (cell.strip() for cell in line.split("|")[1:3])
        rows[key.strip("`")] = default
    return rows


def shown(cls: type[Any], attribute: Any) -> str:
    """A default as the page writes it."""
    default = attribute.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        if default.takes_self:  # made from the others: said in words
            return "twice `stall`"
        default = default.factory()
    if default is attrs.NOTHING:
        return "required"
    if default is None:
        return "none"
    if attrs.has(type(default)):
        return "a table"
    if isinstance(default, (dict, tuple)):
        return f"`{json.dumps(default)}`"
    if cls is Deadlines or "Duration" in str(attribute.type):
        return f'`"{render_duration(default)}"`'
    if "Size" in str(attribute.type):
        return f'`"{render_size(default)}"`'
    if isinstance(default, Path):
        return f'`"{default}"`'
    return f"`{json.dumps(default)}`"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_default(heading: str) -> None:
    cls = SECTIONS[heading]
    assert table(heading) == {attribute.name: shown(cls, attribute) for attribute in attrs.fields(cls) if not attribute.metadata}


def test_no_section_is_left_out() -> None:
    classes = set(SECTIONS.values())
    assert {cls for cls in vars(schema).values() if attrs.has(cls) and cls.__name__.endswith("Config")} <= classes | {
        schema.Config
    }
    for attribute in attrs.fields(schema.Config):
        assert attribute.name == "path" or f"`[{attribute.name}" in PAGE


def test_the_examples_load(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "claw.toml").write_text(block)
        assert load(tmp_path / "claw.toml", settings=PLUGINS.settings, environ={}).warnings == []


def test_the_quoted_problems_are_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text('# one\n[server]\nlisen = "x"\n\n\n\n\n[deadlines]\nstall = 60\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "claw.toml", settings=PLUGINS.settings, environ={})
    for problem in caught.value.problems:
        assert problem.replace(f"{tmp_path}/", "") + "\n" in PAGE


def test_every_variable_is_documented() -> None:
    for name, (variable, base) in environment.PROVIDERS.items():
        assert f"| `{variable}` | `{name}` | `{base}` |" in PAGE
    for variable in environment.OWN_NAMES:
        assert f"| `{variable}` |" in PAGE


def test_the_page_of_timeouts_is_in_step() -> None:
    assert set(RUNS) == set(CLOCKS)
    assert (DOCS / "timeouts.md").read_text() == timeouts_page(), "run `python -m tests.docs.timeouts`"
